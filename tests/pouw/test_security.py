"""Alerts: kept, logged, handed on; thresholds keep their bounds; scores find who stands alone."""

from __future__ import annotations

import asyncio
import logging
import tracemalloc
from typing import Any

import numpy as np
import pytest

from pocqueue.pouw.errors import ConfigError
from pocqueue.pouw.security import GradientDetector, SecuritySystem
from pocqueue.pouw.slots.maps import SignMap


def _tell(system: SecuritySystem, kind: str = "gradient_poisoning") -> None:
    system.tell(kind, source_peer="02ab", detail="why", height=3, slot=9, evidence="ff")


async def test_an_alert_is_logged_kept_and_handed_on(caplog: pytest.LogCaptureFixture) -> None:
    """With seed's words in the log, and seed's keys in the dict."""
    system, seen = SecuritySystem("node_1"), asyncio.Queue[dict[str, Any]]()
    system["custom_handler"] = seen.put
    assert system["threat_level"] == "LOW"
    _tell(system)
    alert = await asyncio.wait_for(seen.get(), 10)
    assert (alert["type"], alert["source_peer"], alert["height"]) == (
        "gradient_poisoning",
        "02ab",
        3,
    )
    assert "[node_1] Security alert: gradient_poisoning_detected" in caplog.text
    assert list(system["alerts"]) == [alert]
    assert system["threat_level"] == "MEDIUM"
    _tell(system, "forged_history")
    assert system["threat_level"] == "HIGH"
    await system.close()


async def test_a_handler_that_fails_is_in_nobodys_way(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is logged, the next alert comes through, plain functions are taken too."""
    system, seen = SecuritySystem("node_1"), list[str]()
    done = asyncio.Event()

    def handler(alert: dict[str, Any]) -> None:
        seen.append(alert["type"])
        if len(seen) == 1001:
            done.set()
        raise RuntimeError("mine")

    system["custom_handler"] = handler
    with caplog.at_level(logging.ERROR):
        for _ in range(1001):
            _tell(system)
        await asyncio.wait_for(done.wait(), 60)
    assert "custom handler of alerts failed" in caplog.text
    assert len(system["alerts"]) == 1000
    assert system.num_alerts == 1001
    await system.close()


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("byzantine_tolerance", "threshold", 0.34),
        ("byzantine_tolerance", "threshold", 0),
        ("gradient_detector", "sensitivity", 1.1),
        ("gradient_detector", "sensitivity", True),
    ],
)
def test_a_threshold_outside_its_bounds_is_refused(key: str, field: str, value: float) -> None:
    """And the old one stays."""
    system = SecuritySystem("node_1")
    before = getattr(system[key], field)
    with pytest.raises(ConfigError, match=field):
        setattr(system[key], field, value)
    assert getattr(system[key], field) == before


def test_one_who_goes_against_the_others_stands_out() -> None:
    """Eight who agree on most signs, and one with all of them turned; fewer than three say nothing."""
    rng = np.random.default_rng(3)
    common = np.sign(rng.normal(size=400)).astype(np.int8)
    kept = [np.flatnonzero(rng.random(400) < 0.8) for _ in range(9)]
    maps = [SignMap(indices, common[indices]) for indices in kept]
    turned = SignMap(maps[8].indices, -maps[8].signs)
    scores = GradientDetector.scores([*maps[:8], turned], 400)
    assert scores[8] > GradientDetector().threshold
    assert max(scores[:8]) < GradientDetector().threshold
    assert GradientDetector.scores(maps[:2], 400) == [0.0, 0.0]


def test_scores_are_cosine_distances_without_dense_maps() -> None:
    """They are what dense vectors give, and a slot of many lanes of a large model takes few times its sum's memory."""
    rng = np.random.default_rng(4)
    indices = [np.sort(rng.choice(50, 20, replace=False)) for _ in range(5)]
    maps = [SignMap(at, rng.choice(np.array([-1, 1], np.int8), 20)) for at in indices]
    dense = np.zeros((5, 50))
    for row, one in zip(dense, maps, strict=True):
        row[one.indices] = one.signs
    others = dense.sum(axis=0) - dense
    lengths = np.linalg.norm(dense, axis=1) * np.linalg.norm(others, axis=1)
    distances = 1 - (dense * others).sum(axis=1) / lengths
    above = distances - np.median(distances)
    expected = above / (1.4826 * np.median(np.abs(above)))
    assert GradientDetector.scores(maps, 50) == pytest.approx(expected.tolist())

    num_weights = 1_000_000
    lane = SignMap(np.arange(0, num_weights, 50), np.ones(num_weights // 50, np.int8))
    tracemalloc.start()
    GradientDetector.scores([lane] * 200, num_weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000_000
