"""Where a batch's time goes as a stacked bar: in the terminal and, with a sweep below it, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pocqueue.cli.output import percent
from pocqueue.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.text import Text

    from pocqueue.measure.profile import Profile


@dataclass(frozen=True, slots=True)
class _Look:
    """How a stage is shown: never by colour alone."""

    label: str
    cell: str
    plain: str  #: for terminals that know no block characters
    colour: str  #: in the terminal
    paint: str  #: in the plot


#: By the names of `profile.STAGES`, the rest, and a call of which no more is known.
_LOOKS = {
    "seeds": _Look("seeds", "░", ".", "yellow", "#e9b949"),
    "inputs": _Look("inputs", "▒", ":", "cyan", "#4ba3b8"),
    "forward": _Look("forward pass", "█", "#", "green", "#2a9d54"),
    "distances": _Look("permutation and distance", "▓", "%", "magenta", "#a05195"),
    "rest": _Look("rest", "·", "-", "blue", "#8a8f98"),
    "call": _Look("engine call", "█", "#", "green", "#2a9d54"),
}
_MAX_WIDTH = 100


def parts_of(profile: Profile) -> list[tuple[str, float]]:
    """Return the stages and the rest of a batch, as (name, seconds), in order.

    Where the stages are not known the call is one part.
    """
    if not profile.stages_s:
        return [("call", profile.batch_s)]
    return [*profile.stages_s.items(), ("rest", profile.rest_s)]


def share_cells(seconds: Sequence[float], width: int) -> list[int]:
    """Share out the cells of a bar: in proportion, and all of them.

    Args:
        seconds: of each part, >= 0, together more than 0.
        width: cells; >= 1.

    Returns:
        Cells of each part; where rounding leaves some over, those that lost most have them.
    """
    total = sum(seconds)
    exact = [width * part / total for part in seconds]
    cells = [int(part) for part in exact]
    lost = sorted(range(len(cells)), key=lambda place: cells[place] - exact[place])
    for place in lost[: width - sum(cells)]:
        cells[place] += 1
    return cells


def draw_stages(profile: Profile, width: int = 80, *, plain: bool = False) -> Text:
    """Draw one bar and, below it, a line for each part of it with its milliseconds and share.

    Args:
        profile: of an engine with known stages.
        width: columns of the terminal.
        plain: ASCII only.
    """
    from rich.text import Text

    parts = parts_of(profile)
    total = sum(seconds for _, seconds in parts)
    text = Text(no_wrap=True)
    cells = share_cells([seconds for _, seconds in parts], min(width, _MAX_WIDTH))
    for (name, _), num in zip(parts, cells, strict=True):
        look = _LOOKS[name]
        text.append((look.plain if plain else look.cell) * num, look.colour)
    for name, seconds in parts:
        look = _LOOKS[name]
        text.append(f"\n{(look.plain if plain else look.cell) * 2} ", look.colour)
        text.append(f"{look.label:<24} {1000 * seconds:10.3f} ms  {percent(seconds / total):>8}")
    return text


def save_plot(path: Path, profile: Profile, title: str) -> None:
    """Write a PNG: a batch's stages as a stacked bar, and rates by batch size where there was a sweep.

    Raises:
        SettingsError: it cannot be written.
    """
    # Not pyplot: no window system, no state that outlives the call.
    from matplotlib.figure import Figure

    num = 1 if profile.sweep is None else 2
    figure = Figure(figsize=(9, 3 + 3.2 * (num - 1)), layout="constrained")
    axes = figure.subplots(num, 1, squeeze=False, height_ratios=[2, 3][:num])[:, 0]
    left = 0.0
    for name, seconds in parts_of(profile):
        look = _LOOKS[name]
        label = f"{look.label}: {1000 * seconds:.3g} ms"
        axes[0].barh([0], [1000 * seconds], left=[left], color=look.paint, label=label)
        left += 1000 * seconds
    axes[0].set_yticks([])
    axes[0].set_xlim(0, left)
    axes[0].set_xlabel("milliseconds of a batch")
    axes[0].set_title(f"{title}\n{profile.nonces_per_s:,.1f} nonces/s")
    axes[0].legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.45), frameon=False)
    if profile.sweep is not None:
        points, best = profile.sweep.points, profile.sweep.best
        sizes = [point.batch_size for point in points]
        axes[1].plot(sizes, [p.nonces_per_s for p in points], marker="o", color="#2a9d54")
        axes[1].axvline(best.batch_size, color="#b8860b", label=f"best: {best.batch_size}")
        axes[1].set_xscale("log", base=2)
        axes[1].set_xticks(sizes, [str(size) for size in sizes])
        axes[1].set_ylim(bottom=0)
        axes[1].set_xlabel("batch size")
        axes[1].set_ylabel("nonces/s")
        axes[1].legend()
    try:
        figure.savefig(path, format="png", dpi=150)
    except OSError as exc:
        raise SettingsError(f"--plot {path} cannot be written ({exc.strerror}).") from exc
