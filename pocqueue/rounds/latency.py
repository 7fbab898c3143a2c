"""How long something took, many times over: counts by bucket, as a heartbeat carries them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

#: Upper bounds of the buckets, in seconds; a last one has all that took longer.
BOUNDS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Latency:
    """Counts of durations. Never changed in place, so threads may share one."""

    #: One for each of BOUNDS_S, and one more; each counts its own bucket only.
    counts: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)
    #: Seconds in all.
    sum_s: float = 0.0

    def add(self, seconds: float) -> Latency:
        """Return these counts with one more duration."""
        at = bisect_left(BOUNDS_S, seconds)
        counts = (*self.counts[:at], self.counts[at] + 1, *self.counts[at + 1 :])
        return Latency(counts, self.sum_s + seconds)

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (upper bound, durations up to it) of each bucket, as Prometheus has them."""
        total, buckets = 0, []
        for bound, count in zip([*map(str, BOUNDS_S), "+Inf"], self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` wrote; nothing if it was written with other buckets."""
        counts = tuple(int(count) for count in values.get("counts", ()))
        if len(counts) != len(BOUNDS_S) + 1:
            return cls()
        return cls(counts, float(values.get("sum_s", 0.0)))
