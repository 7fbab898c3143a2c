"""Wrong tokens: whom they are counted for, by one process and by all of them."""

from __future__ import annotations

import pytest

from pocqueue.errors import StoreUnavailable, TooManyFailures
from pocqueue.web import failure_limit
from pocqueue.web.failure_limit import WINDOW_S, FailureLimit, subscriber
from tests.support.waiting import Clock

ADDRESS = "192.0.2.1"


class Shared:
    """A count of all processes; `error` is raised instead while it is set."""

    def __init__(self) -> None:
        self.num = 0
        self.error: Exception | None = None

    async def count(self, address: str) -> tuple[int, float]:
        assert address == ADDRESS
        if self.error is not None:
            raise self.error
        self.num += 1
        return self.num, 30.0


async def test_a_process_counts_for_itself() -> None:
    """Without a store, or while it is away; a window later it is forgotten."""
    for shared in (None, Shared()):
        clock = Clock()
        limit = FailureLimit(2, clock)
        limit.shared = None if shared is None else shared.count
        if shared is not None:
            shared.error = StoreUnavailable("Redis does not answer.")
        await limit.count(ADDRESS)
        await limit.count(ADDRESS)
        with pytest.raises(TooManyFailures):
            await limit.count(ADDRESS)
        with pytest.raises(TooManyFailures) as caught:
            await limit.count(ADDRESS)
        assert caught.value.retry_after_s == WINDOW_S
        if shared is None:
            await limit.count("192.0.2.2")
        clock.now_s += WINDOW_S
        await limit.count(ADDRESS)


async def test_processes_count_together() -> None:
    """What others saw counts here, for as long as the store says; meanwhile it is not asked again."""
    clock = Clock()
    limit = FailureLimit(2, clock)
    shared = Shared()
    limit.shared, shared.num = shared.count, 2
    with pytest.raises(TooManyFailures) as caught:
        await limit.count(ADDRESS)
    assert caught.value.retry_after_s == 30.0
    for _ in range(3):
        with pytest.raises(TooManyFailures):
            await limit.count(ADDRESS)
    assert shared.num == 3
    shared.num = 0
    clock.now_s += 30.0
    await limit.count(ADDRESS)


async def test_no_more_addresses_than_some_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are within a window: the oldest is forgotten, nothing else is looked through."""
    monkeypatch.setattr(failure_limit, "_MANY", 3)
    clock = Clock()
    limit = FailureLimit(1, clock)
    for n in range(10):
        clock.now_s += 1
        await limit.count(f"192.0.2.{n}")
        assert len(limit._seen) <= 3
    with pytest.raises(TooManyFailures):
        await limit.count("192.0.2.7")
    await limit.count("192.0.2.6")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::2"),
        ("", "testclient"),
    ],
)
def test_addresses_of_one_subscriber(one: str, other: str) -> None:
    """Count as one."""
    assert subscriber(one) == subscriber(other)


def test_addresses_of_two_subscribers() -> None:
    """Count as two."""
    assert subscriber("2001:db8:1:2::1") != subscriber("2001:db8:1:3::1")
    assert subscriber("192.0.2.1") != subscriber("192.0.2.2")
