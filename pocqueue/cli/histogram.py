"""Histograms of distances: in the terminal and as a PNG, with r_target between two bins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pocqueue.cli.output import percent
from pocqueue.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.text import Text

    from pocqueue.measure.calibration import Calibration

#: Bars from nothing to a whole cell, in eighths.
_EIGHTHS = " ▏▎▍▌▋▊▉"
_FULL = "█"
#: Rows in the terminal, about, and bars in the plot.
NUM_ROWS = 20
NUM_BARS = 60
#: Below this the distances are equal for all that can be seen.
_LEAST_WIDTH = 1e-7


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of distances in bins of one width, of which r_target is an edge."""

    #: One more than there are bins; ascending.
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    r_target: float
    #: Distances that are no finite number; in no bin.
    num_nonfinite: int

    @property
    def num(self) -> int:
        """Number of distances, those in no bin too."""
        return sum(self.counts) + self.num_nonfinite

    @property
    def num_below(self) -> int:
        """Number of distances below r_target: those of valid nonces."""
        pairs = zip(self.edges, self.counts, strict=False)
        return sum(count for edge, count in pairs if edge < self.r_target)


def bin_distances(
    distances: Sequence[float], r_target: float, num_bins: int = NUM_ROWS
) -> Histogram:
    """Count distances in bins.

    Args:
        distances: any number; NaN and the infinities are counted apart.
        r_target: becomes an edge, so that every bin is valid as a whole or not at all.
        num_bins: how many to make, about: one or two more where r_target asks for it.
    """
    finite = [d for d in distances if math.isfinite(d)]
    low, high = min([*finite, r_target]), max([*finite, r_target])
    width = max((high - low) / num_bins, _LEAST_WIDTH)
    # Bins by their number from r_target on: those below zero are valid, exactly as `d < r_target`.
    numbers = [math.floor((d - r_target) / width) for d in finite]
    first, last = min([*numbers, -1]), max([*numbers, 0])
    counts = [0] * (last - first + 1)
    for number in numbers:
        counts[number - first] += 1
    edges = tuple(
        r_target + number * width if number else r_target for number in range(first, last + 2)
    )
    return Histogram(edges, tuple(counts), r_target, len(distances) - len(finite))


def draw(histogram: Histogram, width: int = 80, *, plain: bool = False) -> Text:
    """Draw a histogram in lines of text, one a bin, with a line where r_target is.

    Args:
        width: columns of the terminal.
        plain: ASCII only, for terminals that know no block characters.
    """
    from rich.text import Text

    bin_width = histogram.edges[1] - histogram.edges[0]
    digits = max(2, math.ceil(-math.log10(bin_width)) + 1)
    most = max(histogram.counts) or 1
    label_width, count_width = 2 + digits, len(f"{most:,}")
    bar_width = max(10, min(width, 100) - label_width - count_width - 5)
    wall = "|" if plain else "│"
    text = Text(no_wrap=True)
    for edge, count in zip(histogram.edges, histogram.counts, strict=False):
        if edge == histogram.r_target:
            text.append(_mark(histogram, min(width, 100), "-" if plain else "─"), "bold yellow")
        bar = _bar(count / most * bar_width, plain)
        text.append(f"{edge:{label_width}.{digits}f} {wall}", "dim")
        text.append(f"{bar:<{bar_width}}", "green" if edge < histogram.r_target else "blue")
        text.append(f" {count:{count_width},}\n")
    if histogram.num_nonfinite:
        text.append(f"{histogram.num_nonfinite:,} more are no finite numbers\n", "red")
    text.right_crop(1)
    return text


def check_plot(path: Path) -> None:
    """Find out before the work that a plot could not be made or written.

    Raises:
        SettingsError: matplotlib is not installed, or the path is no place for a file.
    """
    import os
    from importlib.util import find_spec

    if path.suffix.lower() != ".png":
        raise SettingsError(f"--plot is {str(path)!r}; allowed: the path of a .png file.")
    if path.exists() and not path.is_file():
        raise SettingsError(f"--plot is {str(path)!r}, which is no file; allowed: a file's path.")
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise SettingsError(
            f"--plot is {str(path)!r}, but {folder} is no folder that can be written to; make it, "
            "or name another file."
        )
    if find_spec("matplotlib") is None:
        raise SettingsError(
            "--plot needs matplotlib, which is not installed: `pip install 'pocqueue[plot]'`."
        )


def save_plot(
    path: Path, distances: Sequence[float], found: Calibration, vocab_size: int, title: str
) -> None:
    """Write a PNG: the histogram, r_target with its interval, and what random directions would give.

    Raises:
        SettingsError: it cannot be written.
    """
    # Not pyplot: no window system, no state that outlives the call.
    from matplotlib.figure import Figure

    from pocqueue.poc.distance.directions import ideal_valid_rate

    histogram = bin_distances(distances, found.r_target, NUM_BARS)
    edges, counts = histogram.edges, histogram.counts
    shares = [ideal_valid_rate(min(max(edge, 1e-9), 2.0), vocab_size) for edge in edges]
    ideal = [histogram.num * (b - a) for a, b in itertools.pairwise(shares)]
    colours = ["#2a9d54" if edge < found.r_target else "#5b8db8" for edge in edges[:-1]]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(edges[:-1], counts, width=edges[1] - edges[0], align="edge", color=colours)
    axes.stairs(ideal, edges, color="#555555", linewidth=1, label="random directions")
    axes.axvspan(found.low, found.high, color="#e9b949", alpha=0.35, linewidth=0)
    axes.axvline(
        found.r_target,
        color="#b8860b",
        label=f"r_target {found.r_target:.6f}, {found.confidence:.0%} interval shaded",
    )
    axes.set_title(f"{title}\n{percent(found.sampled_rate)} of {histogram.num:,} below r_target")
    axes.set_xlabel("distance")
    axes.set_ylabel("nonces")
    axes.legend()
    try:
        figure.savefig(path, format="png", dpi=150)
    except OSError as exc:
        raise SettingsError(f"--plot {path} cannot be written ({exc.strerror}).") from exc


def _bar(cells: float, plain: bool) -> str:
    """Return a bar so many cells long; what is not nothing shows as something."""
    if plain:
        return "#" * (round(cells) or int(cells > 0))
    eighths = round(cells * 8) or int(cells > 0)
    whole, rest = divmod(eighths, 8)
    return _FULL * whole + (_EIGHTHS[rest] if rest else "")


def _mark(histogram: Histogram, width: int, dash: str) -> str:
    share = histogram.num_below / histogram.num if histogram.num else 0.0
    words = f" r_target {histogram.r_target:.6f}: {percent(share)} below "
    return f"{dash * 2}{words}{dash * max(2, width - len(words) - 2)}\n"
