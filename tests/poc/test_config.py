"""A round's stopwatch."""

from __future__ import annotations

import time

import pytest

from pocqueue.poc.config import PoCStats


def test_the_clock_stops_with_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elapsed freezes on stop, stays frozen, and leaves out the pause when resumed."""
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    stats = PoCStats(start_time=now)
    now = 1010.0
    assert stats.elapsed == 10.0
    stats.stop()
    now = 1500.0
    stats.stop()
    assert stats.elapsed == 10.0
    stats.resume()
    now = 1505.0
    assert stats.elapsed == 15.0


def test_stats_never_run_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock that is set back gives zero; a round that never was has nothing to stop."""
    monkeypatch.setattr(time, "time", lambda: 5.0)
    assert PoCStats(total_checked=3, start_time=10.0).elapsed == 0.0
    assert PoCStats(total_checked=3, start_time=10.0).rate == 0.0
    stats = PoCStats()
    stats.stop()
    assert stats == PoCStats()
