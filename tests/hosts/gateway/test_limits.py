"""The counts behind the limits: right, and not kept for longer than they count."""

from __future__ import annotations

import pytest

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


async def test_each_address_has_its_own_count() -> None:
    """What is one too many is refused, and counts for nobody else."""
    limits = RateLimits()
    for _ in range(Limit.CONNECTS.value.amount):
        await limits.count_address(Limit.CONNECTS, "192.0.2.1")
    with pytest.raises(RateLimited) as refused:
        await limits.count_address(Limit.CONNECTS, "192.0.2.1")
    assert 0 < refused.value.retry_after_s <= 2 * 60
    await limits.count_address(Limit.CONNECTS, "192.0.2.2")
