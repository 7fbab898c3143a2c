"""The two machines of jobs and attempts, driven by anything that can happen in any order."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from pocqueue.hosts.leases import (
    GRACE_MS,
    LOST,
    JobState,
    Outcome,
    Verdict,
    hard_until,
    job_after,
    judge,
    lost_how,
    outcome_of,
)


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("num_tried", [0, 2, 3, 4])
def test_a_job_ends_with_a_result_or_when_all_tries_are_used(
    outcome: Outcome, num_tried: int
) -> None:
    """Whatever is lost is tried again, up to the bound."""
    state = job_after(outcome, num_tried=num_tried, max_attempts=3)
    if outcome in LOST:
        assert state is (JobState.QUEUED if num_tried < 3 else JobState.FAILED)
    else:
        assert state.value == outcome.value
        assert state.is_over


@pytest.mark.parametrize("num_tried", [1, 2, 3])
def test_a_failure_that_only_a_stranger_has_seen_is_one_try(num_tried: int) -> None:
    """Nothing else depends on whom one believes."""
    for outcome in Outcome:
        states = [
            job_after(outcome, num_tried=num_tried, max_attempts=3, is_believed=is_believed)
            for is_believed in (True, False)
        ]
        is_tried = outcome is Outcome.FAILED and num_tried < 3
        assert (states[0] is not states[1]) == is_tried
        if is_tried:
            assert states[1] is JobState.QUEUED


@given(
    st.sampled_from(JobState),
    st.integers(1, 9),
    st.integers(1, 9),
    st.none() | st.sampled_from(Outcome),
    st.booleans(),
)
def test_a_result_counts_only_where_nobody_else_can_have_done_the_job(
    job_state: JobState, newest: int, n: int, outcome: Outcome | None, reported: bool
) -> None:
    """Its attempt is open; or was given up, is the newest, and the job waits."""
    verdict = judge(job_state=job_state, newest=newest, n=n, outcome=outcome, reported=reported)
    if outcome is None:
        assert verdict is Verdict.COUNTS
    elif verdict is Verdict.COUNTS:
        assert job_state is JobState.QUEUED
        assert n == newest
        assert outcome in LOST - {Outcome.REFUSED}
        assert not reported
    elif reported:
        assert verdict is Verdict.REPEATED


def test_how_an_attempt_is_lost() -> None:
    """Never sent, silent, or out of time."""
    until_ms = hard_until(1000, 10)
    assert until_ms == 11_000 + GRACE_MS
    assert lost_how(sent_ms=None, hard_until_ms=None, now_ms=5) is Outcome.RELAY_LOST
    assert lost_how(sent_ms=1000, hard_until_ms=until_ms, now_ms=5000) is Outcome.NODE_LOST
    assert lost_how(sent_ms=1000, hard_until_ms=until_ms, now_ms=until_ms) is Outcome.TIMEOUT


def test_what_a_node_says() -> None:
    """A job whose time was up has failed; one that the node ended by itself goes on elsewhere."""
    said = {status: outcome_of(status) for status in ("completed", "failed", "timeout")}
    assert list(said.values()) == [Outcome.COMPLETED, Outcome.FAILED, Outcome.FAILED]
    assert outcome_of("cancelled") in LOST
