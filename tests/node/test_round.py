"""A round as the small node was asked for it, and the window of its search."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pocqueue.node.round import SearchRequest
from tests.support.node import make_round


@pytest.mark.parametrize(
    ("change", "same_search", "sends_the_same"),
    [
        ({}, True, True),
        ({"batch_size": 20, "fraud_threshold": 0.5}, True, True),
        ({"r_target": 1.5}, False, True),
        ({"url": "http://a/v1/"}, True, True),
        ({"url": "http://b/v1"}, True, False),
        ({"block_hash": "other"}, False, False),
        ({"public_key": "other"}, False, False),
        ({"node_id": 1, "node_count": 2}, False, False),
        ({"seq_len": 9}, False, False),
        ({"params": {"model": "other"}}, False, False),
    ],
)
def test_requests_for_the_same(
    change: dict[str, Any], same_search: bool, sends_the_same: bool
) -> None:
    """The nonces and what makes them valid; of what is sent, the proof and its receiver."""
    one = make_round("http://a/v1")
    other = make_round(**{"url": "http://a/v1"} | change)
    assert one.is_same_search(other) is same_search
    assert one.sends_the_same(other) is sends_the_same


@pytest.mark.parametrize(
    ("set_by_s", "least_s", "most_s"), [(-4000, 0, 60), (0, 0, 60), (30, -60, 30), (90, -100, -30)]
)
def test_a_window_after_a_restart(
    monkeypatch: pytest.MonkeyPatch, set_by_s: float, least_s: float, most_s: float
) -> None:
    """What is left by what is on disk, and never more than there was."""
    written = SearchRequest.begin(make_round(), 60).model_dump_json()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + set_by_s)
    left_s = SearchRequest.model_validate_json(written).left_s
    assert least_s - 60 <= left_s <= most_s


def test_a_window_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set changes nothing, also for a copy."""
    request = SearchRequest.begin(make_round(), 60)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    copy = request.model_copy(update={"stopped": True})
    assert 0 < copy.left_s <= request.left_s + 60 <= 120
    assert not request.is_forgotten
