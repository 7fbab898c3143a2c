"""Real nodes: a supervisor alone, then three more, who take office with it; one of them stops and comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.node import PoUWNode
from pocqueue.pouw.wire.slots import Certificate
from tests.pouw.flow.nodes import begin, node, quick_genesis, running, until


def _slots(one: PoUWNode) -> SlotFlow:
    assert one._life is not None
    return one._life._slots


def _newest(one: PoUWNode) -> Certificate | None:
    signed = _slots(one).newest[2]
    return None if signed is None else signed.certificate


def _anchor(one: PoUWNode) -> int:
    assert one._life is not None
    return one._life._core.chain.anchor.height


def _epoch(one: PoUWNode) -> int:
    found = _newest(one)
    return -1 if found is None else found.epoch


async def _go_on(nodes: list[PoUWNode], num_turns: int) -> None:
    """Wait until all have so many turns more than any has now."""
    due = max(_slots(one).next_turn for one in nodes) + num_turns
    await until(lambda: all(_slots(one).next_turn >= due for one in nodes), f"{num_turns} turns")


@pytest.mark.long
async def test_one_hands_over_to_four_and_three_go_on(tmp_path: Path) -> None:
    """On one chain of certificates: alone, four together, three of them, and the fourth again with its own folder."""
    network = quick_genesis(tmp_path, epoch_blocks=4)
    first = node("s0", NodeRole.SUPERVISOR, network)
    async with running(first):
        await begin(first, mine=False)
        miner = node("m0", NodeRole.MINER, network, first)
        second = node("s1", NodeRole.SUPERVISOR, network, first)
        third = node("s2", NodeRole.SUPERVISOR, network, first)
        fields: dict[str, Any] = {"key": SigningKey.generate(), "data_dir": tmp_path / "last"}
        last = node("s3", NodeRole.SUPERVISOR, network, first, **fields)
        async with running(miner, second, third):
            await begin(miner)
            for one in (second, third):
                await begin(one, mine=False)
            others = [first, second, third, miner]
            async with running(last):
                await begin(last, mine=False)
                everybody = [*others, last]
                await until(lambda: all(_epoch(one) == 1 for one in everybody), "an epoch of four")
                committee = await _slots(first).committee()
                assert committee is not None
                assert (len(committee.members), committee.threshold) == (4, 3)
                await _go_on(everybody, 8)
            await _go_on(others, 8)
            stood = _anchor(first)
            await until(lambda: _anchor(first) > stood, "an anchor of three")
            again = node("s3", NodeRole.SUPERVISOR, network, first, third, miner, **fields)
            async with running(again):
                await again.start()
                await _go_on([*others, again], 4)
                # Now nothing goes on without it.
                await second.stop()
                await _go_on([first, third, miner, again], 8)
                assert _epoch(again) == 1
