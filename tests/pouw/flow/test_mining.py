"""What a node does with the blocks that it mines itself."""

from __future__ import annotations

from pocqueue.pouw.errors import InvalidBlock, NodeDataError
from pocqueue.pouw.flow.core import now_ms
from pocqueue.pouw.flow.matching import Matching
from pocqueue.pouw.flow.mining import Mining
from pocqueue.pouw.wire.blocks import Block
from tests.pouw.blocks import GENESIS, paid, trained
from tests.pouw.flow.parts import Parts, parts


def _mining(node: Parts) -> Mining:
    matching = Matching(node.core, node.slots, node.store)
    return Mining(node.core, node.slots, node.blocks, node.store, matching, node.noises)


async def test_a_block_beside_the_tip_is_not_announced() -> None:
    """The slot right after its own block was won too, with what was committed to before."""
    async with parts() as node:
        tip, mining = node.core.chain.tip, _mining(node)
        first, second = trained(tip, slot=10), trained(tip, slot=11)
        await mining._found(first)
        await mining._found(second)
        assert node.core.chain.tip.id == first.id
        assert second.id not in node.core.chain
        assert node.core.counts.blocks_mined == 1


async def test_transactions_that_its_own_node_refuses_are_dropped() -> None:
    """They would be in its next block as well."""
    async with parts() as node:
        core, transaction = node.core, paid(2, "somebody")
        core.mempool.add(transaction, core.chain.tip.state, now_ms())
        block = trained(core.chain.tip, [transaction], slot=10)

        def check(_block: Block, _now_ms: int, *, is_final: bool) -> None:
            raise InvalidBlock("transactions", "one is bad.")

        core.chain.check = check  # type: ignore[assignment, method-assign]
        await _mining(node)._found(block)
        assert transaction.id not in core.mempool


async def test_a_block_that_cannot_be_written_ends_nothing() -> None:
    """The log says so; others may have it by then."""
    async with parts() as node:
        block = trained(node.core.chain.tip, slot=10)

        def add(_block: Block, _now_ms: int, *, is_final: bool) -> None:
            raise NodeDataError("the disk is full")

        node.core.chain.add = add  # type: ignore[assignment, method-assign]
        await _mining(node)._found(block)


async def test_a_lane_goes_on_when_its_task_comes_back() -> None:
    """Made anew it would sit a lap out; of tasks that were not trained for long none is kept."""
    async with parts() as node:
        mining = _mining(node)
        fillers = [await node.slots.history(GENESIS.filler_task(number)) for number in range(6)]
        first = await mining._lane(fillers[0])
        for other in fillers[1:4]:
            await mining._lane(other)
        assert await mining._lane(fillers[0]) is first
        for other in fillers[4:]:
            await mining._lane(other)
        assert await mining._lane(fillers[0]) is first
        assert list(mining._lanes) == [fillers[at].task.id for at in (3, 4, 5, 0)]
