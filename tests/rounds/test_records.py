"""What the store hands out, and what is worked out from it."""

from __future__ import annotations

import json

import pytest

from pocqueue.rounds.records import Outcome, OutstandingRange
from pocqueue.rounds.spec import RoundState
from tests.support.factories import NOW_MS, make_range, make_spec, make_status


@pytest.mark.parametrize(
    ("outcome", "goes_on"),
    [
        (Outcome.COMMITTED, True),
        (Outcome.REPEATED, True),
        (Outcome.GAP, True),
        (Outcome.REASSIGNED, False),
        (Outcome.LATE, False),
        (Outcome.CLOSED, False),
    ],
)
def test_a_worker_goes_on_only_while_the_range_is_its_own(outcome: Outcome, goes_on: bool) -> None:
    """Repeats and gaps are no reason to stop; a lost range or an ended round is."""
    assert outcome.goes_on == goes_on


def test_a_range_reads_what_the_store_keeps() -> None:
    """One line of text, with indices beyond 2^40."""
    out = OutstandingRange.parse(
        "r", "12", "1099511627776 1099511627876 1099511627786 h.gpu3 w 2 5"
    )
    assert (out.start, out.stop, out.done) == (2**40, 2**40 + 100, 2**40 + 10)
    assert (out.queue, out.worker, out.attempts, out.assigned_ms) == ("h.gpu3", "w", 2, 5)
    assert out.left == 90
    assert out.key == "r:12"


def test_an_active_round_counts_down() -> None:
    """Remaining and elapsed time add up to the window."""
    status = make_status(now_ms=NOW_MS + 10_500)
    assert (status.elapsed_s, status.remaining_s) == (10.5, 19.5)


def test_no_time_remains_past_the_deadline_nor_in_an_ended_round() -> None:
    """And the elapsed time ends with the window, or with the round."""
    late = make_status(now_ms=NOW_MS + 31_000)
    assert (late.elapsed_s, late.remaining_s) == (30.0, 0.0)
    stopped = make_status(
        state=RoundState.STOPPED, ended_ms=NOW_MS + 4000, now_ms=NOW_MS + 9000, checked=100
    )
    assert (stopped.elapsed_s, stopped.remaining_s, stopped.rate) == (4.0, 0.0, 25.0)
    closed_late = make_status(state=RoundState.EXPIRED, ended_ms=NOW_MS + 90_000)
    assert closed_late.elapsed_s == 30.0


def test_a_round_past_its_deadline_is_expired_whoever_could_not_write_it_down() -> None:
    """From the deadline on, and since then; every other round is as it is."""
    over = make_status(now_ms=NOW_MS + 30_000, checked=5).seen_now()
    assert (over.state, over.ended_ms, over.checked) == (RoundState.EXPIRED, NOW_MS + 30_000, 5)
    active = make_status(now_ms=NOW_MS + 29_999)
    stopped = make_status(state=RoundState.STOPPED, ended_ms=NOW_MS + 5, now_ms=NOW_MS + 90_000)
    for status in (active, stopped):
        assert status.seen_now() == status


def test_rates_of_a_round_that_did_nothing_are_zero() -> None:
    """No division by nothing."""
    status = make_status()
    assert (status.rate, status.valid_rate) == (0.0, 0.0)
    assert make_status(checked=8, valid=2).valid_rate == 0.25


def test_a_status_is_fit_for_json() -> None:
    """`--json` prints it."""
    status = make_status(spec=make_spec(max_nonces=5), checked=4, now_ms=NOW_MS + 2000)
    said = json.loads(json.dumps(status.to_dict()))
    assert said["state"] == "active"
    assert (said["checked"], said["rate"], said["remaining_s"]) == (4, 2.0, 28.0)
    assert said["spec"]["max_nonces"] == 5


def test_ranges_made_by_the_factory_are_whole() -> None:
    """The twin of a fresh range has everything left."""
    assert make_range().left == 100
