"""What a node measures of itself."""

from __future__ import annotations

import dataclasses

from pocqueue.pouw.health import Machine, NodeHealthMetrics, Recent

_GOOD = NodeHealthMetrics("n", 1.0, 0.01, 1.0, 1.0, 100.0, 50.0, 50.0, "running")


def test_a_node_is_healthy_unless_a_person_is_needed() -> None:
    """Percent, and 90 of them are too many."""
    assert _GOOD.is_healthy()
    for worse in (
        {"cpu_usage": 95.0},
        {"memory_usage": 90.0},
        {"success_rate": 0.2},
        {"status": "isolated"},
    ):
        assert not dataclasses.replace(_GOOD, **worse).is_healthy()


def test_the_machine_is_looked_at_in_percent() -> None:
    """Both within 0 to 100."""
    machine = Machine()
    assert all(0 <= value <= 100 for value in machine.look())


def test_a_rate_is_of_the_last_ones() -> None:
    """1 before the first."""
    recent = Recent(4)
    assert recent.rate == 1.0
    for went_well in (False, False, True, True, True, True):
        recent.add(went_well)
    assert recent.rate == 1.0
    recent.add(False)
    assert recent.rate == 0.75
