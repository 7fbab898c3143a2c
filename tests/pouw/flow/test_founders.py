"""Two supervisors that founded a network each, because neither knew of the other one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.node import PoUWNode
from pocqueue.pouw.slots import collector
from tests.pouw.flow.nodes import begin, height, node, quick_genesis, running, until


def _committee(one: PoUWNode) -> list[str]:
    found = one.get_status()["committee"]
    assert isinstance(found, list)
    return found


def _newest(one: PoUWNode) -> Any:
    assert one._life is not None
    return one._life._slots.newest[2]


async def test_two_that_founded_apart_go_on_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before there is an anchor the heavier branch counts, and the slots of the other one's committee are forgotten."""
    monkeypatch.setattr(collector, "IDLE_MS", 200)
    network = quick_genesis(tmp_path)
    both = [node(name, NodeRole.SUPERVISOR, network) for name in ("first", "second")]
    async with running(*both):
        for one in both:
            await begin(one, mine=False)
        await until(lambda: all(_newest(one) is not None for one in both), "slots apart")
        assert _committee(both[0]) != _committee(both[1])
        assert [height(one) for one in both] == [1, 1]
        assert await both[1].connect_to_peer("127.0.0.1", both[0].port)
        await until(lambda: _committee(both[0]) == _committee(both[1]), "one committee")
        before = _newest(both[0])
        await until(lambda: _newest(both[0]) == _newest(both[1]) != before, "the same slots")
        assert [len(one.views.peers()) for one in both] == [1, 1]
        # The one that is not in office has its ticket on the branch that counts, too.
        await until(lambda: all(one.ticket is not None for one in both), "both tickets")
