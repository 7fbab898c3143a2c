"""A line of a GPU's load in the last day, for SVG: a function from values to a short text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pocqueue.hosts.store.health import LOAD_STEP_MS

#: Quarters of an hour in a day; the line is as wide, its height is `HEIGHT`.
WIDTH: Final = 96
HEIGHT: Final = 20


@dataclass(frozen=True, slots=True)
class Load:
    """The load of a GPU in the last day."""

    path: str  #: `d` of an SVG path
    now: int  #: percent, in the newest quarter of an hour


def load_of(quarters: Sequence[tuple[int, float]], now_ms: int) -> Load | None:
    """Draw a day, the newest quarter at its right end; quarters without a sample are a gap.

    Args:
        quarters: start of each and percent, the oldest first.

    Returns:
        None if nothing is known of the day.

    >>> load_of([(0, 50.0), (LOAD_STEP_MS, 50.0), (2 * LOAD_STEP_MS, 100.0)], 2 * LOAD_STEP_MS)
    Load(path='M93 10h2V1h1', now=100)
    """
    newest = now_ms // LOAD_STEP_MS
    drawn: list[str] = []
    at, level, run = -1, -1, 0
    now = None

    def end_run() -> None:
        if run:
            drawn.append(f"h{run}")

    for from_ms, percent in quarters:
        x = WIDTH - 1 - (newest - from_ms // LOAD_STEP_MS)
        if not 0 <= x < WIDTH:
            continue
        y = HEIGHT - 1 - round((HEIGHT - 2) * min(max(percent, 0.0), 100.0) / 100)
        if x != at or y != level:
            end_run()
            drawn.append(f"M{x} {y}" if x != at else f"V{y}")
            run = 0
        at, level, run = x + 1, y, run + 1
        now = round(percent)
    end_run()
    return None if now is None else Load("".join(drawn), now)
