"""How much a run of the benchmarks does: all that is reported, or a little of each to see that it works."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """A share of the full run.

    Args:
        share: 1 for figures that are reported; less for a smoke run, whose figures mean nothing.
    """

    share: float = 1.0

    @property
    def is_full(self) -> bool:
        """Say whether the figures are to be believed."""
        return self.share >= 1

    def runs(self, full: int) -> int:
        """Return how often to repeat what a full run repeats so often; at least twice."""
        return max(2, round(full * self.share))

    def size(self, full: int) -> int:
        """Return how much to do at a time of what a full run does so much of; at least two."""
        return self.runs(full)

    def seconds(self, full: float) -> float:
        """Return how long to measure what a full run measures so long; at least a second."""
        return max(1.0, full * self.share)


FULL = Effort()
SMOKE = Effort(0.02)
