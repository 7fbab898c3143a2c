"""What a node did is remembered, and forgotten by halves."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given, strategies as st

from pocqueue.hosts.reputation import (
    HALF_LIFE_MS,
    HOUR_MS,
    KNOWN_STREAK,
    Reputation,
    paused_until,
)

EVENTS = st.lists(st.tuples(st.sampled_from(["good", "bad"]), st.integers(-(10**9), 10**10)))


@given(EVENTS)
def test_whatever_happens_the_score_is_a_share(
    events: list[tuple[Literal["good", "bad"], int]],
) -> None:
    """Above 0 and below 1, and the counts are at most what happened, also where a clock goes back."""
    reputation, now_ms = Reputation(), 0
    for event, step_ms in events:
        now_ms += step_ms
        reputation = reputation.after(event, now_ms)
    assert 0 < reputation.score < 1
    assert 0 <= reputation.good + reputation.bad <= len(events)
    assert reputation.streak <= sum(event == "good" for event, _ in events)


def test_half_is_forgotten_in_a_week() -> None:
    """Of the counts; a streak stays."""
    reputation = Reputation(at_ms=0)
    for _ in range(KNOWN_STREAK):
        assert not reputation.is_known
        reputation = reputation.after("good", 0)
    assert reputation.is_known
    later = reputation.at(HALF_LIFE_MS)
    assert later.good == pytest.approx(5)
    assert later.is_known
    assert not later.after("bad", HALF_LIFE_MS).is_known
    assert reputation.at(-5) == reputation


def test_the_better_one_has_the_better_score() -> None:
    """A stranger is in the middle."""
    good, bad = Reputation().after("good", 0), Reputation().after("bad", 0)
    assert bad.score < Reputation().score == 0.5 < good.score
    assert good.after("good", 0).score > good.score


def test_three_lost_ones_in_an_hour_pause_for_an_hour() -> None:
    """Two do not, nor three in two hours, nor ones of the future."""
    now_ms = 10 * HOUR_MS
    assert paused_until([], now_ms) is None
    assert paused_until([now_ms, now_ms - 1], now_ms) is None
    assert paused_until([now_ms - HOUR_MS, now_ms, now_ms - 1], now_ms) is None
    assert paused_until([now_ms + 5, now_ms, now_ms - 1], now_ms) is None
    assert paused_until([now_ms - 7, now_ms - HOUR_MS + 1, now_ms - 9], now_ms) == (
        now_ms - 7 + HOUR_MS
    )
