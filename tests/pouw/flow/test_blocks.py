"""Blocks and slots on their way into a node do not wait for each other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pocqueue.pouw.chain.chain import RE_EXECUTION
from pocqueue.pouw.errors import InvalidBlock, PeerFault
from pocqueue.pouw.flow.core import now_ms
from pocqueue.pouw.wire.slots import Iteration
from tests.pouw.blocks import trained
from tests.pouw.flow.nodes import until
from tests.pouw.flow.parts import PEER, Parts, Signed, follow, parts

_DEADLINE_S = 60.0


def _judged(node: Parts, verdict: InvalidBlock | None = None) -> list[int]:
    """Have laps judged without training; return the slots of those that were."""
    slots: list[int] = []

    async def train_over(winner: Iteration) -> str:
        slots.append(winner.slot)
        if verdict is not None:
            raise verdict
        return "good"

    node.blocks.train_over = train_over  # type: ignore[method-assign]
    return slots


async def test_a_block_before_its_slot_waits_for_nobody() -> None:
    """Its slots are fetched, one of them names another anchor, and a record comes in while it is trained over."""
    async with parts() as node, asyncio.timeout(_DEADLINE_S):
        signed = Signed()
        signed.go_on(9)
        chain = node.core.chain
        signed.go_on(3, anchor=chain.tip.id, anchor_height=1)
        node.net.answers = signed.answers()
        judged = _judged(node)
        block = trained(chain.tip, slot=10)
        running = asyncio.create_task(node.blocks.run())
        assert await node.blocks.take(block, PEER)
        assert judged == [10]
        assert chain.tip.id == block.id
        await until(lambda: chain.anchor.height == 1, "the anchor")
        running.cancel()


async def test_an_anchor_is_set_when_its_block_comes() -> None:
    """The certificate that names it was here before, or was on disk when the node was started."""
    async with parts() as node:
        running = asyncio.create_task(node.blocks.run())
        chain = node.core.chain
        block = trained(chain.tip, slot=10)
        signed = Signed()
        signed.go_on(anchor=block.id, anchor_height=2)
        await follow(node, signed)
        assert chain.anchor.height == 0
        assert await node.blocks.take(block, None)
        await until(lambda: chain.anchor.id == block.id, "the anchor")
        running.cancel()


async def test_an_anchor_that_was_not_set_is_set_after_a_restart(tmp_path: Path) -> None:
    """As a node may be killed between the two."""
    async with parts(tmp_path) as node:
        signed = Signed()
        signed.go_on(anchor=node.core.chain.tip.id, anchor_height=1)
        await follow(node, signed)
        assert node.core.chain.anchor.height == 0
    async with parts(tmp_path) as node:
        running = asyncio.create_task(node.blocks.run())
        await until(lambda: node.core.chain.anchor.height == 1, "the anchor")
        running.cancel()


async def test_a_cheats_block_is_refused_until_it_is_final() -> None:
    """Whoever sends it is charged; the committee's word counts more than this node's training."""
    async with parts() as node:
        signed = Signed()
        signed.go_on(12)
        node.net.answers = signed.answers()
        judged = _judged(node, InvalidBlock(RE_EXECUTION, "entries differ."))
        block = trained(node.core.chain.tip, slot=10)
        for _ in range(2):
            with pytest.raises(PeerFault, match="a block: re-execution: entries differ"):
                await node.blocks.take(block, PEER)
        assert judged == [10]
        assert await node.blocks.take(block, PEER, is_final=True)


async def test_a_block_whose_slots_are_not_to_be_had_waits() -> None:
    """And is held against nobody; it is taken when it comes again and they are."""
    async with parts() as node:
        _judged(node)
        block = trained(node.core.chain.tip, slot=10)
        assert not await node.blocks.take(block, PEER)
        signed = Signed()
        signed.go_on(12)
        node.net.answers = signed.answers()
        assert await node.blocks.take(block, PEER)
        assert not await node.blocks.take(block, PEER)
        assert node.net.charged == []
        assert node.core.chain.tip.id == block.id
        assert now_ms() > block.header.time_ms


async def test_an_anchor_that_contradicts_the_last_one_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Said once; one above the anchor that is not here yet is none."""
    async with parts() as node:
        await node.blocks.settle_anchor(node.core.chain.tip.id, 1)
        await node.blocks.settle_anchor(b"y" * 32, 2)
        for _ in range(2):
            await node.blocks.settle_anchor(b"x" * 32, 1)
        [error] = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
        assert (b"x" * 32).hex() in error
        assert "has signed two histories" in error
