"""Charts in the terminal: where a batch's time goes as one bar, and a histogram of distances."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from pocqueue.cli.output import percent

if TYPE_CHECKING:
    from rich.text import Text

    from pocqueue.measure.profile import Profile

_MAX_WIDTH = 100
#: Bars from nothing to a whole cell, in eighths.
_EIGHTHS = " ▏▎▍▌▋▊▉"
_FULL = "█"
#: Rows of a histogram, about.
NUM_ROWS = 20
#: Below this the distances are equal for all that can be seen.
_LEAST_WIDTH = 1e-7


#: How a stage is shown, never by colour alone: label, cell, cell in ASCII, colour; by the names of
#: `profiled.STAGES`, and the rest.
_LOOKS = {
    "seeds": ("seeds", "░", ".", "yellow"),
    "inputs": ("inputs", "▒", ":", "cyan"),
    "forward": ("forward pass", "█", "#", "green"),
    "distances": ("permutation and distance", "▓", "%", "magenta"),
    "rest": ("rest", "·", "-", "blue"),
}


def share_cells(seconds: Sequence[float], width: int) -> list[int]:
    """Share out the cells of a bar: in proportion, and all of them.

    Args:
        seconds: of each part, >= 0, together more than 0.
        width: cells; >= 1.

    Returns:
        Cells of each part, less than one away from its exact share.
    """
    edges = [0.0, *accumulate(seconds)]
    return [right - left for left, right in pairwise(int(e / edges[-1] * width) for e in edges)]


def draw_stages(profile: Profile, width: int = 80, *, plain: bool = False) -> Text:
    """Draw one bar and, below it, a line for each part of it with its milliseconds and share.

    Args:
        profile: of an engine with known stages.
        width: columns of the terminal.
        plain: ASCII only.
    """
    from rich.text import Text

    parts = profile.stages_s | {"rest": profile.rest_s}
    total = sum(parts.values())
    bar, lines = Text(no_wrap=True), Text()
    cells = share_cells(list(parts.values()), min(width, _MAX_WIDTH))
    for (name, seconds), num in zip(parts.items(), cells, strict=True):
        label, block, ascii_cell, colour = _LOOKS[name]
        cell = ascii_cell if plain else block
        bar.append(cell * num, colour)
        lines.append(f"\n{cell * 2} ", colour)
        lines.append(f"{label:<24} {1000 * seconds:10.3f} ms  {percent(seconds / total):>8}")
    return bar.append_text(lines)


def bin_distances(
    distances: Sequence[float], r_target: float, num_bins: int = NUM_ROWS
) -> list[tuple[float, int]]:
    """Count distances in bins of one width.

    Args:
        distances: any number; NaN and the infinities are in no bin.
        r_target: becomes an edge, so that every bin is valid as a whole or not at all.
        num_bins: how many to make, about; one or two more if r_target needs them.

    Returns:
        The lower edge of each bin and the number of distances in it, in order.
    """
    finite = [d for d in distances if math.isfinite(d)]
    low, high = min([*finite, r_target]), max([*finite, r_target])
    width = max((high - low) / num_bins, _LEAST_WIDTH)
    # Bins by their number from r_target on: those below zero are valid, exactly as `d < r_target`.
    counts = Counter(math.floor((d - r_target) / width) for d in finite)
    numbers = range(min([*counts, -1]), max([*counts, 0]) + 1)
    return [
        (r_target + number * width if number else r_target, counts[number]) for number in numbers
    ]


def draw_histogram(
    distances: Sequence[float],
    r_target: float,
    width: int = 80,
    *,
    plain: bool = False,
    name: str = "r_target",
) -> Text:
    """Draw a histogram in lines of text, one a bin, with a line where r_target is.

    Args:
        distances: at least one.
        r_target: a distance below it is that of a valid nonce.
        width: columns of the terminal.
        plain: ASCII only, for terminals that know no block characters.
        name: what r_target is called.
    """
    from rich.text import Text

    bins, width = bin_distances(distances, r_target), min(width, _MAX_WIDTH)
    digits = max(2, math.ceil(-math.log10(bins[1][0] - bins[0][0])) + 1)
    most = max(count for _, count in bins) or 1
    label_width, count_width = 2 + digits, len(f"{most:,}")
    bar_width = max(10, width - label_width - count_width - 5)
    wall, dash = ("|", "-") if plain else ("│", "─")
    below = percent(sum(d < r_target for d in distances) / len(distances))
    mark = f"{dash * 2} {name} {r_target:.6f}: {below} below "
    text = Text(no_wrap=True)
    for edge, count in bins:
        if edge == r_target:
            text.append(f"{mark:{dash}<{max(width, len(mark) + 2)}}\n", "bold yellow")
        bar = _bar(count / most * bar_width, plain)
        text.append(f"{edge:{label_width}.{digits}f} {wall}", "dim")
        text.append(f"{bar:<{bar_width}}", "green" if edge < r_target else "blue")
        text.append(f" {count:{count_width},}\n")
    if num_nonfinite := len(distances) - sum(count for _, count in bins):
        text.append(f"{num_nonfinite:,} more are no finite numbers\n", "red")
    text.right_crop(1)
    return text


def _bar(cells: float, plain: bool) -> str:
    """Return a bar of this many cells; any amount above zero shows."""
    if plain:
        return "#" * (round(cells) or int(cells > 0))
    eighths = round(cells * 8) or int(cells > 0)
    whole, rest = divmod(eighths, 8)
    return _FULL * whole + (_EIGHTHS[rest] if rest else "")
