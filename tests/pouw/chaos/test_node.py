"""A node that can be told to fail: real processes, told over HTTP as `testnet --chaos` does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pouw.acceptance.history import assert_one_history
from tests.pouw.acceptance.processes import NodeProcess
from tests.pouw.flow.nodes import quick_genesis
from tests.support.waiting import wait_until


@pytest.mark.long
def test_who_is_cut_off_stands_still_until_it_is_healed(tmp_path: Path) -> None:
    """Its links end and none begins, while slots go on elsewhere; then it has them all."""
    network = quick_genesis(tmp_path, slot_ms=100, first_target_bits=252)
    supervisor = NodeProcess(tmp_path / "supervisor", "supervisor", network, can_be_told=True)
    observer = NodeProcess(tmp_path / "observer", "peer", network, supervisor, can_be_told=True)
    nodes = (supervisor, observer)
    try:
        for one in nodes:
            one.start()
        observer.until_past("turn", 5)
        supervisor.cut(observer)
        observer.cut(supervisor)
        for one in nodes:
            wait_until(lambda one=one: one.ask("peers") == [], message="the end of its link")  # type: ignore[misc]
        stood = observer.number("turn")
        supervisor.until_past("turn", stood + 20)
        assert (observer.number("turn"), observer.ask("peers")) == (stood, [])
        for one in nodes:
            one.tell("heal")
        observer.until_past("turn", supervisor.number("turn"))
        observer.until_past("anchor_height", 0)
        assert_one_history(nodes)
    finally:
        for one in nodes:
            one.stop()


def test_a_node_of_the_command_cannot_be_told(tmp_path: Path) -> None:
    """It answers, but has no such routes."""
    node = NodeProcess(tmp_path / "node", "peer", quick_genesis(tmp_path))
    try:
        node.start()
        wait_until(lambda: node.ask(), message="an answer")
        assert node.ask("chaos/heal", post=True) is None
        assert node.ask("status")["role"] == "peer"
    finally:
        node.stop()
