"""A day's load as a short path."""

from __future__ import annotations

from pocqueue.hosts.gateway.page.sparkline import Load, load_of
from pocqueue.hosts.store.health import LOAD_STEP_MS

NOW_MS = 1_000 * LOAD_STEP_MS + 7


def quarter(back: int) -> int:
    """Return the start of a quarter of an hour, so many before this one."""
    return (1_000 - back) * LOAD_STEP_MS


def test_a_day_is_short_and_ends_at_the_right() -> None:
    """Runs of the same level are one stroke, what is unknown is a gap, what is older than a day is left out."""
    quarters = [(quarter(96), 9.0), (quarter(3), 50.0), (quarter(2), 50.0), (quarter(0), 100.0)]
    assert load_of(quarters, NOW_MS) == Load("M92 10h2M95 1h1", 100)
    assert load_of([(quarter(1), 0.0), (quarter(0), 250.0)], NOW_MS) == Load("M94 19h1V1h1", 250)
    assert load_of([], NOW_MS) is None
    assert load_of([(quarter(200), 50.0)], NOW_MS) is None
    restless = [(quarter(back), 100.0 * (back % 2)) for back in range(95, -1, -1)]
    found = load_of(restless, NOW_MS)
    assert found is not None
    assert len(found.path) < 600
