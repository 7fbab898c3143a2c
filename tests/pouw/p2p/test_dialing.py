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
    assert failures.worked("host", 80)
    assert failures.is_due("host", 80, 0.0)
    assert not failures.worked("host", 80)
    assert failures.failed("host", 80, 0.0) <= 1


def test_some_are_waited_for_less_long() -> None:
    """As long as is asked for at most, however often it fails."""
    failures = Failures()
    waits = [failures.failed("host", 80, 0.0, 4.0) for _ in range(20)]
    assert max(waits) <= 4


def test_all_may_be_tried_at_once_again() -> None:
    """What then fails once more waits as long as it would have."""
    failures = Failures()
    for port in (80, 81):
        for _ in range(7):
            failures.failed("host", port, 0.0)
    failures.all_due(1.0)
    assert all(failures.is_due("host", port, 1.0) for port in (80, 81))
    assert failures.failed("host", 80, 1.0) >= 30
    assert not failures.is_due("host", 80, 1.0)
