"""What `pocqueue bench` says: the table of rates, what stands beside it, and the stacked bar."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocqueue.cli.output import console, percent

if TYPE_CHECKING:
    from pocqueue.measure.profile import Profile, Sweep
    from pocqueue.measure.window import WindowEstimate


@dataclass(frozen=True)
class BenchReport:
    """What the command says."""

    profile: Profile
    #: Seconds of a round.
    window_s: float
    r_target: float | None
    #: Queues of live workers on the same device.
    shared_with: list[str]
    plot: Path | None

    def window(self) -> WindowEstimate | None:
        from pocqueue.measure.calibration import spread_between
        from pocqueue.measure.window import estimate_window

        if self.r_target is None:
            return None
        samples = [*self.profile.distances.values()]
        between = None
        if len(samples) > 1:
            spread = spread_between(samples, self.r_target)
            between = math.sqrt(max(0.0, spread.observed**2 - spread.chance**2))
        return estimate_window(
            self.profile.nonces_per_s, self.window_s, samples, self.r_target, between
        )

    def to_dict(self) -> dict[str, Any]:
        window = self.window()
        return {
            **self.profile.to_dict(),
            "window_s": self.window_s,
            "nonces_per_window": int(self.profile.nonces_per_s * self.window_s),
            "window": None if window is None else window.to_dict(),
            "shared_with": self.shared_with,
            "plot": None if self.plot is None else str(self.plot),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return what there is to say beside the figures, as (name, value)."""
        found = self.profile
        info, matrix, parameters = found.info, found.matrix, found.parameters
        rows = [
            ("model", f"{info.model} ({info.fingerprint[:12]}), {info.dtype}"),
            ("device", f"{info.device} {info.device_name}, engine {info.engine}"),
            ("shape", f"{found.seq_len} positions in batches of {found.batch_size}"),
        ]
        if matrix is not None:
            size = f"{matrix.size} x {matrix.size}"
            rate = f"{_flop(matrix.flop_per_s)}/s, measured with {size} matrices in {matrix.dtype}"
            if matrix.num_devices > 1:
                rate += f" on the first of {matrix.num_devices} GPUs, times {matrix.num_devices}"
            rows.append(("matrix rate", rate))
        if parameters is not None and found.flop_per_nonce is not None:
            counted = (
                f"{_flop(found.flop_per_nonce)}: 2 x ({parameters.per_token:,} parameters x "
                f"{found.seq_len} positions + {parameters.last_token:,} for the last one)"
            )
            if parameters.counts_all_experts:
                counted += "; all experts counted, so shares are upper bounds"
            rows.append(("work of a nonce", counted))
        elif found.stages_s:
            rows.append(("work of a nonce", "unknown: the model's weights are packed"))
        else:
            rows.append(("not measured", "all but whole engine calls: the model is in a server"))
        if found.sweep is not None:
            rows.append(("best batch size", _advice(found.sweep)))
        nonces = int(found.nonces_per_s * self.window_s)
        rows.append((f"{self.window_s:g} s window", f"{nonces:,} nonces at this rate"))
        window = self.window()
        if window is not None:
            rows += _window_rows(window)
        if self.plot is not None:
            rows.append(("plot", str(self.plot)))
        return rows

    def print(self) -> None:
        from rich.markup import escape
        from rich.table import Table

        from pocqueue.cli.stacked import draw_stages
        from pocqueue.measure.profile import SAME_RATE

        view, found = console(), self.profile
        if found.sweep is not None:
            view.print(_sweep_table(found.sweep))
            view.print()
        view.print(_figures(found))
        view.print()
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in self.rows():
            table.add_row(name, escape(value))
        view.print(table)
        if not found.stages_s:
            return
        view.print()
        plain = not view.encoding.lower().startswith("utf")
        view.print(draw_stages(found, view.width, plain=plain))
        if found.overlap_s > SAME_RATE * found.batch_s:  # less is what measurements differ by
            view.print(
                f"One after another the stages take {_ms(sum(found.stages_s.values()))}, and an engine call "
                f"{_ms(found.batch_s)}: {_ms(found.overlap_s)} run beside something else."
            )


def _figures(found: Profile) -> Any:
    """Make the table of nonces per second: whole engine, model alone, one by the other."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    flop = found.flop_per_nonce
    shares = () if flop is None else ("FLOP/s", "of the matrix rate")
    for name in ("nonces/s", "per batch", *shares):
        table.add_column(name, justify="right")
    rates = [("engine", found.nonces_per_s), ("forward pass alone", found.forward_nonces_per_s)]
    for name, rate in rates:
        if rate is None:
            continue
        cells = [name, f"{rate:,.1f}", _ms(found.batch_size / rate)]
        if flop is not None:
            share = found.share_of_rate(rate)
            cells += [f"{_flop(rate * flop)}/s", "" if share is None else percent(share)]
        table.add_row(*cells)
    if found.ratio is not None:
        table.add_row("engine / forward pass", f"{found.ratio:.3f}")
    return table


def _sweep_table(sweep: Sweep) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("batch size", "nonces/s", "per batch"):
        table.add_column(name, justify="right")
    table.add_column("")
    for point in sweep.points:
        table.add_row(
            str(point.batch_size),
            f"{point.nonces_per_s:,.1f}",
            _ms(point.batch_s),
            "[green]best[/green]" if point == sweep.best else "",
        )
    return table


def _advice(sweep: Sweep) -> str:
    from pocqueue.measure.profile import SAME_RATE
    from pocqueue.poc.search import MAX_BATCH_SIZE

    best = sweep.best.batch_size
    return (
        f"{best}: the smallest within {100 * SAME_RATE:g} % of the fastest. Give it to a round with --batch-size "
        f"{best} (1 to {MAX_BATCH_SIZE}). No larger ones were tried than {sweep.points[-1].batch_size}: "
        f"{sweep.end}."
    )


def _window_rows(window: WindowEstimate) -> list[tuple[str, str]]:
    shown = f"{100 * window.confidence:g} % interval"
    rate = (
        f"{percent(window.rate)} of {window.num_samples:,} samples are below {window.r_target:.9g}; "
        f"{shown} {percent(window.rate_low)} to {percent(window.rate_high)}"
    )
    if window.between_blocks is None:
        blocks = "; one block only, and others differ: more --seconds sample more blocks"
    else:
        blocks = (
            f"; {window.num_blocks} blocks differ by {percent(window.between_blocks)} beyond chance"
        )
    valid = (
        f"{window.num_valid:,.0f} in a window; {shown} {window.num_valid_low:,.0f} to "
        f"{window.num_valid_high:,.0f}"
    )
    return [("valid rate", rate + blocks), ("valid nonces", valid)]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.2f} ms"


def _flop(value: float) -> str:
    """Write a number of FLOP: ``3.21 TFLOP``."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
        if value >= factor:
            return f"{value / factor:,.2f} {prefix}FLOP"
    return f"{value / 1e6:,.2f} MFLOP"
