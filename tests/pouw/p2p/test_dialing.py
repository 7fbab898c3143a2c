"""When an address is dialled again; the clock is an argument."""

from __future__ import annotations

from pocqueue.pouw.p2p.dialing import Failures


def test_each_failure_doubles_the_wait_up_to_a_minute() -> None:
    """Shortened at random by up to half, and for that address alone."""
    failures = Failures()
    waits = [failures.failed("host", 80, 0.0) for _ in range(40)]
    for wait_s, longest in zip(waits, [1, 2, 4, 8, 16, 32] + [60] * 34, strict=True):
        assert longest / 2 <= wait_s <= longest
    assert len(set(waits)) == 40
    assert not failures.is_due("host", 80, waits[-1] - 0.01)
    assert failures.is_due("host", 80, waits[-1])
    assert failures.is_due("host", 81, 0.0)


def test_one_that_worked_begins_anew() -> None:
    """With a second at most."""
    failures = Failures()
    for _ in range(5):
        failures.failed("host", 80, 0.0)
    failures.worked("host", 80)
    assert failures.is_due("host", 80, 0.0)
    assert failures.failed("host", 80, 0.0) <= 1
