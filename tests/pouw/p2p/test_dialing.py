"""When an address is dialled again; the clock is an argument."""

from __future__ import annotations

from random import Random

from pocqueue.pouw.p2p.dialing import Backoff


def test_each_failure_doubles_the_wait_up_to_a_minute() -> None:
    """A fifth more or less, at random."""
    backoff = Backoff(Random(1))  # noqa: S311 - the same in each run
    waits = [backoff.failed("host", 80, 0.0) for _ in range(40)]
    for wait_s, middle in zip(waits, [1, 2, 4, 8, 16, 32] + [60] * 34, strict=True):
        assert 0.8 * middle <= wait_s <= 1.2 * middle
    assert len(set(waits)) == 40
    assert not backoff.is_due("host", 80, waits[-1] - 0.01)
    assert backoff.is_due("host", 80, waits[-1])
    assert backoff.is_due("host", 81, 0.0)


def test_one_that_worked_begins_anew() -> None:
    """With a second."""
    backoff = Backoff(Random(1))  # noqa: S311 - the same in each run
    for _ in range(5):
        backoff.failed("host", 80, 0.0)
    backoff.worked("host", 80)
    assert backoff.is_due("host", 80, 0.0)
    assert backoff.failed("host", 80, 0.0) <= 1.2
