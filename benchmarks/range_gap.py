"""How long a worker's engine is idle between two ranges: as the worker itself tells the pool."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

from benchmarks.effort import FULL, Effort
from benchmarks.stats import Figure, Sample
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.pool import BOUNDS_S


def range_gap(backend: Backend, effort: Effort = FULL) -> list[Figure]:
    """Return the gaps of a real worker since it started, between ranges that came by Celery.

    A heartbeat carries counts by bucket, so the median is known as the bucket that it falls into.

    A smoke run may be too short for a single one; then there is no figure.

    Raises:
        RuntimeError: no range ever waited while another one was searched.
    """
    gaps = backend.pool.live()[0].gaps
    num = sum(gaps.counts)
    if num == 0 and not effort.is_full:
        return []
    if num == 0:
        raise RuntimeError("The worker never had a range waiting.")
    at = bisect_left(list(accumulate(gaps.counts)), num / 2)
    median_ms = 1000 * [*BOUNDS_S, float("inf")][at]
    figure = Figure(
        "gap between two ranges on a worker",
        Sample([1000 * gaps.sum_s / num], f"ms, mean of {num}"),
        None,
        "",
        median_ms,
        "median at most 0.5 ms, here the bound of its bucket",
        median_ms <= 0.5,
    )
    return [figure]
