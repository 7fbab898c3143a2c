"""What an attempt earns."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, strategies as st

from pocqueue.hosts.leases import Outcome
from pocqueue.hosts.pay import PAID, earned, hyper, most_paid_s, paid_seconds

MS = st.integers(0, 10**14)


@given(MS, MS, st.integers(1, 86_400), st.none() | st.integers(-(10**14), 10**14))
def test_no_claim_raises_the_pay(
    sent_ms: int, ended_ms: int, timeout_s: int, claimed_ms: int | None
) -> None:
    """It is never below 0, above the time by the server's clock, or above the time-out."""
    seconds = paid_seconds(sent_ms, ended_ms, timeout_s, claimed_ms)
    assert 0 <= seconds <= paid_seconds(sent_ms, ended_ms, timeout_s) <= timeout_s
    assert seconds <= max(0, ended_ms - sent_ms) / 1000


@pytest.mark.parametrize(
    ("sent_ms", "ended_ms", "claimed_ms", "seconds"),
    [
        (0, 5_000, None, 5),
        (0, 5_999, 5_001, 5),
        (0, 4_999, None, 4),
        (0, 3_600_000, 5_000, 5),
        (0, 3_600_000, None, 60),
        (86_400_000, 0, None, 0),
        (None, 5_000, None, 0),
    ],
)
def test_whole_seconds_rounded_down(
    sent_ms: int | None, ended_ms: int, claimed_ms: int | None, seconds: int
) -> None:
    """Capped by the time-out; a clock that went back and a job that was never sent are worth nothing."""
    assert paid_seconds(sent_ms, ended_ms, 60, claimed_ms) == seconds


def test_the_most_that_a_job_pays_for() -> None:
    """Its time-out, or what is less."""
    assert most_paid_s({}, 60) == 60
    assert most_paid_s({"paid_s": 5}, 65) == 5
    assert most_paid_s({"paid_s": 90}, 60) == 60


@pytest.mark.parametrize("outcome", [None, *Outcome])
def test_who_is_paid(outcome: Outcome | None) -> None:
    """Whoever did the job, or would have."""
    micro = earned(
        outcome, sent_ms=0, ended_ms=5_000, most_s=60, claimed_ms=None, rate_micro=10_000
    )
    assert micro == (50_000 if outcome in PAID else 0)


@given(st.integers(-(10**15), 10**15))
def test_amounts_are_written_exactly(micro: int) -> None:
    """As a decimal number, which is the same when it is read."""
    assert Decimal(hyper(micro)) * 10**6 == micro
    assert "E" not in hyper(micro)
    assert hyper(50_000) == "0.05"
