"""`pocqueue bench`: how fast one GPU makes proofs with one model, and where its time goes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocqueue.cli.options import Json, Model, RTarget, SeqLen, check_count, option_names
from pocqueue.cli.output import columns, console, facts, interruptible, is_plain, percent, show

if TYPE_CHECKING:
    from pocqueue.measure.profile import Profile, Sweep
    from pocqueue.measure.valid_rate import WindowEstimate

#: Largest batch size of a sweep that does not say.
MAX_BATCH = 1024
#: Distances of that time stay in memory.
MAX_SECONDS = 60.0
PUBLIC_KEY = "pocqueue-bench"


def bench(
    queue: Annotated[
        str, typer.Option(help="GPU queue whose device to measure, such as gpu0.")
    ] = "gpu0",
    model: Model = None,
    seq_len: SeqLen = 256,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Nonces of one forward pass [default: 32, or the best of --sweep]."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds to measure each figure for.")] = 5.0,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Find the best batch size: 1, 2, 4 and so on.")
    ] = False,
    max_batch: Annotated[
        int | None, typer.Option(help="Largest batch size of --sweep [default: 1024].")
    ] = None,
    r_target: RTarget = None,
    as_json: Json = False,
) -> None:
    """Measure the engine of the settings on one GPU, or on the CPU, with a model.

    With --r-target it says, too, how many nonces of a window will be valid.

    Loads the model in a process of its own; stop the worker that serves this GPU first. Of a vLLM
    server only whole engine calls can be measured.
    """
    from pocqueue.engine.devices import parse_queue
    from pocqueue.errors import InvalidRound, SettingsError
    from pocqueue.measure.bench import ProfileRequest, profile_in_child, workers_beside
    from pocqueue.measure.samples import made_up_blocks
    from pocqueue.measure.valid_rate import estimate_window
    from pocqueue.poc.search import MAX_BATCH_SIZE
    from pocqueue.rounds.start import draft_spec
    from pocqueue.settings import Settings

    view, blocks = console(stderr=True), made_up_blocks()
    with option_names():
        if parse_queue(queue) is None:
            raise InvalidRound("queue", queue, "gpuN or HOST.gpuN, such as gpu0")
        if not 0.1 <= seconds <= MAX_SECONDS:
            raise InvalidRound("seconds", seconds, f"seconds from 0.1 to {MAX_SECONDS:g}")
        if max_batch is not None and not sweep:
            raise SettingsError(
                f"--max-batch is {max_batch}, which is for --sweep: give that, too."
            )
        if max_batch is not None:
            check_count("max_batch", max_batch, MAX_BATCH_SIZE)
        draft = draft_spec(
            block_hash=blocks[0],
            public_key=PUBLIC_KEY,
            seq_len=seq_len,
            batch_size=batch_size,
            r_target=r_target,
        )
        request = ProfileRequest(
            round=draft,
            batch_size=batch_size,
            seconds=seconds,
            max_batch=(max_batch or MAX_BATCH) if sweep else None,
            blocks=tuple(blocks),
        )
        settings = Settings.override(model=model)
        shared_with = workers_beside(settings, queue)
        if shared_with:
            view.print(
                f"A live worker of the pool may use this device, too ({', '.join(shared_with)}): figures will "
                "be too low while a round runs. Stop it first, or measure while the pool is idle.",
                style="yellow",
                markup=False,
            )
        with interruptible():
            profile = profile_in_child(
                settings, queue, request, lambda line: view.print(line, markup=False)
            )
    window = None
    if r_target is not None:
        samples = [*profile.distances.values()]
        window = estimate_window(profile.nonces_per_s, draft.window_s, samples, r_target)
    show(_Report(profile, draft.window_s, window, shared_with), as_json=as_json)


@dataclass(frozen=True)
class _Report:
    """What the command says."""

    profile: Profile
    window_s: float  #: of a round
    window: WindowEstimate | None
    shared_with: list[str]  #: queues of live workers on the same device

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.profile.to_dict(),
            "window_s": self.window_s,
            "nonces_per_window": int(self.profile.nonces_per_s * self.window_s),
            "window": None if self.window is None else asdict(self.window),
            "shared_with": self.shared_with,
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
        if self.window is not None:
            rows += _window_rows(self.window)
        return rows

    def print(self) -> None:
        from pocqueue.cli.charts import draw_stages
        from pocqueue.measure.profile import SAME_RATE

        view, found = console(), self.profile
        if found.sweep is not None:
            view.print(_sweep_table(found.sweep))
            view.print()
        view.print(_figures(found))
        view.print()
        view.print(facts(self.rows()))
        if not found.stages_s:
            return
        view.print()
        view.print(draw_stages(found, view.width, plain=is_plain(view)))
        if found.overlap_s > SAME_RATE * found.batch_s:  # less is what measurements differ by
            view.print(
                f"One after another the stages take {_ms(sum(found.stages_s.values()))}, and an engine call "
                f"{_ms(found.batch_s)}: {_ms(found.overlap_s)} run beside something else."
            )


def _figures(found: Profile) -> Any:
    """Make the table of nonces per second: whole engine, model alone, one by the other."""
    flop = found.flop_per_nonce
    shares = () if flop is None else ("FLOP/s", "of the matrix rate")
    table = columns("", right=("nonces/s", "per batch", *shares))
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
    table = columns(right=("batch size", "nonces/s", "per batch"))
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
