"""The counts behind the limits: right, and not kept for longer than they count."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from pocqueue.hosts.gateway import limits
from pocqueue.hosts.gateway.limits import Counts, Limit, RateLimited, RateLimits


async def test_counts_that_have_expired_are_forgotten() -> None:
    """Also those of addresses that never come again."""
    counts = Counts(look_s=0)
    for number in range(100):
        assert await counts.incr(f"gone {number}", expiry=-1) == 1
    assert await counts.incr("here", expiry=600) == 1
    assert await counts.incr("here", expiry=600) == 2
    assert dict(counts.storage) == {"here": 2}
    assert set(counts.expirations) == {"here"}
    # One that is over is counted anew, whenever it was looked at last.
    lazy = Counts()
    assert [await lazy.incr("a", expiry=-1) for _ in range(3)] == [1, 1, 1]


async def test_no_more_counts_than_some_are_kept() -> None:
    """However many addresses somebody has: the oldest are forgotten."""
    counts = Counts(most=3)
    for number in range(10):
        assert await counts.incr(f"a {number}", expiry=600) == 1
    assert set(counts.storage) == set(counts.expirations) == {"a 7", "a 8", "a 9"}
    assert await counts.incr("a 7", expiry=600) == 2


async def test_a_clock_that_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has expired is looked for all the same."""
    wall_s, seconds = time.time(), 0.0
    clocks = SimpleNamespace(time=lambda: wall_s, monotonic=lambda: seconds)
    monkeypatch.setattr(limits, "time", clocks)
    counts = Counts()
    for name in ("looked at", "gone"):
        await counts.incr(name, expiry=-86_400)
    wall_s, seconds = wall_s - 3600, 61.0
    await counts.incr("here", expiry=600)
    assert set(counts.storage) == {"here"}


async def test_each_address_has_its_own_count() -> None:
    """What is one too many is refused, and counts for nobody else."""
    rates = RateLimits()
    for _ in range(Limit.CONNECTS.value.amount):
        await rates.count_address(Limit.CONNECTS, "192.0.2.1")
    with pytest.raises(RateLimited) as refused:
        await rates.count_address(Limit.CONNECTS, "192.0.2.1")
    assert 0 < refused.value.retry_after_s <= 2 * 60
    await rates.count_address(Limit.CONNECTS, "192.0.2.2")
