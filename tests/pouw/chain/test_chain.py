"""The chain of a node: blocks come in, the tip moves to the best one, nothing below an anchor changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.chain import Chain
from pocqueue.pouw.chain.mempool import Mempool
from pocqueue.pouw.chain.store import ChainStore
from pocqueue.pouw.errors import ChainError, InvalidBlock, UnknownParent
from pocqueue.pouw.wire.blocks import Block
from pocqueue.pouw.wire.transactions import Transaction
from tests.pouw.blocks import GENESIS, START_MS, founded, founding_block, paid, trained
from tests.pouw.support import account, coins

_replace = msgspec.structs.replace
_slots = count(10)


@pytest.fixture
def chain() -> Iterator[Chain]:
    """With block 1."""
    with ChainStore(None, GENESIS) as store:
        yield founded(store)


def _add(chain: Chain, block: Block) -> Any:
    return chain.add(block, block.header.time_ms)


def _branch(
    chain: Chain, start: bytes, length: int, transactions: tuple[Transaction, ...] = ()
) -> list[Block]:
    """Return blocks on top of one, made on a chain of their own; the first has the transactions."""
    with ChainStore(None, GENESIS) as store:
        aside = Chain(GENESIS, store)
        below = [chain.block(header.id) for header in chain.ancestors(start)]
        for block in reversed(below[:-1]):
            assert block is not None
            _add(aside, block)
        blocks = []
        for index in range(length):
            chosen = transactions if index == 0 else ()
            blocks.append(trained(aside.tip, chosen, slot=next(_slots)))
            _add(aside, blocks[-1])
        return blocks


def _contents(chain: Chain) -> tuple[Any, ...]:
    """Return all that two chains agree on if they are the same."""
    tip, anchor = chain.tip, chain.anchor
    return tip.id, tip.weight - anchor.weight, tip.times, tip.state.scan(b""), anchor.id


def test_a_block_moves_the_tip(chain: Chain) -> None:
    """Once; its state is the one after it."""
    block = trained(chain.tip, [paid(2, "other")])
    change = _add(chain, block)
    assert change.tip_changed
    assert (change.disconnected, change.connected) == ((), (block,))
    assert (chain.tip.id, chain.tip.height) == (block.id, 2)
    assert chain.tip.state.account(account("other")).balance == PAI
    assert chain.tip.state.digest == block.header.state
    assert not _add(chain, block).tip_changed
    assert block.id in chain
    assert chain.block(block.id) == chain.block_at(2) == block
    assert chain.block_at(1) == founding_block()
    assert chain.block_at(0) is None
    assert chain.block_at(3) is None
    assert [header.height for header in chain.ancestors(block.id)] == [2, 1, 0]


def test_a_block_without_its_parent_waits(chain: Chain) -> None:
    """It is not remembered as wrong: once the parent is here it is good."""
    parent, child = _branch(chain, chain.tip.id, 2)
    with pytest.raises(UnknownParent) as caught:
        _add(chain, child)
    assert caught.value.parent == parent.id
    _add(chain, parent)
    _add(chain, child)
    assert chain.tip.id == child.id


def test_a_wrong_block_is_remembered(chain: Chain) -> None:
    """With its reason; also one that was found wrong elsewhere, by training."""
    wrong = trained(chain.tip, header={"state": bytes(32)})
    assert chain.invalid(wrong) is None
    for _ in range(2):
        with pytest.raises(InvalidBlock, match=r"^state: ") as caught:
            chain.check(wrong, wrong.header.time_ms)
        remembered = chain.invalid(wrong)
        assert remembered is not None
        assert (remembered.rule, str(remembered)) == ("state", str(caught.value))
    lazy, reason = trained(chain.tip), InvalidBlock("re-execution", "it did not train.")
    chain.refuse(lazy, reason)
    with pytest.raises(InvalidBlock, match="did not train"):
        _add(chain, lazy)
    assert chain.tip.height == 1


def test_what_is_final_is_not_judged_by_ones_own_training(chain: Chain) -> None:
    """Other processors round otherwise: who found a block wrong follows when the committee has signed for it."""
    block, other = trained(chain.tip), trained(chain.tip, header={"state": bytes(32)})
    chain.refuse(block, InvalidBlock("re-execution", "3 of 300 entries differ."))
    with pytest.raises(InvalidBlock, match=r"^re-execution: "):
        _add(chain, block)
    now_ms = block.header.time_ms
    assert chain.check(block, now_ms, is_final=True).digest == block.header.state
    assert chain.add(block, now_ms, is_final=True).connected == (block,)
    # Any other rule is the same for all nodes, and no committee can sign it away.
    for is_final in (False, True):
        with pytest.raises(InvalidBlock, match=r"^state: "):
            chain.check(other, now_ms, is_final=is_final)


def test_nobody_can_have_a_good_block_refused(chain: Chain) -> None:
    """What is not in the id, such as a signature, may be changed by whoever passes it on."""
    good = trained(chain.tip, [paid(2, "other")])
    forged = _replace(good, transactions=(_replace(good.transactions[0], signature=bytes(64)),))
    assert forged.id == good.id
    with pytest.raises(InvalidBlock, match=r"^transactions: signature"):
        _add(chain, forged)
    assert _add(chain, good).connected == (good,)


def test_a_block_from_the_future_is_good_later(chain: Chain) -> None:
    """Clocks differ: it is refused now and not remembered."""
    block = trained(chain.tip)
    with pytest.raises(InvalidBlock, match=r"^time: "):
        chain.add(block, START_MS - 10_000)
    assert _add(chain, block).tip_changed


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_reorganisation_spends_once(chain: Chain, depth: int) -> None:
    """The same coins on two sides: balances are as if the losing side had never been."""
    here = _branch(chain, chain.tip.id, depth, (paid(2, "one", 700 * PAI), paid(3, "two")))
    there = _branch(chain, chain.tip.id, depth + 1, (paid(2, "other", 900 * PAI),))
    mempool = Mempool(GENESIS)
    for block in here:
        _add(chain, block)
    for block in there[:-1]:  # as heavy as the other side, but of later slots
        assert not _add(chain, block).tip_changed
    change = _add(chain, there[-1])
    assert change.disconnected == tuple(reversed(here))
    assert change.connected == tuple(there)
    with ChainStore(None, GENESIS) as store:
        never = founded(store)
        for block in there:
            _add(never, block)
        assert _contents(chain) == _contents(never)
    state = chain.tip.state
    balances = [state.account(account(name)).balance for name in ("one", "two", "other")]
    assert balances == [0, 0, 900 * PAI]
    assert coins(state) == state.supply.issued
    # What was undone is offered again; the other spending of the same coins is in the chain.
    mempool.readd([tx for block in here for tx in block.transactions], state, START_MS)
    assert [tx.sequence for tx in mempool] == [3]


def test_of_equals_the_earlier_slot_wins(chain: Chain) -> None:
    """Then the smaller id; whichever came first."""
    early, late = trained(chain.tip, slot=8), trained(chain.tip, slot=9)
    others = [trained(chain.tip, [paid(2, name)], slot=8) for name in ("one", "two")]
    best = min([early, *others], key=lambda block: block.id)
    for block in (late, early, *others):
        _add(chain, block)
    assert chain.tip.id == best.id
    with ChainStore(None, GENESIS) as store:
        other_way = founded(store)
        for block in (*others, early, late):
            _add(other_way, block)
        assert other_way.tip.id == best.id


def test_nothing_goes_below_an_anchor(chain: Chain) -> None:
    """A longer side that parts below it is refused and not kept."""
    start = chain.tip.id
    here, there = _branch(chain, start, 2), _branch(chain, start, 4)
    for block in (*here, there[0]):
        _add(chain, block)
    assert not chain.set_anchor(here[0].id).tip_changed
    assert there[0].id not in chain
    assert chain.block(there[0].id) is None
    with pytest.raises(InvalidBlock, match=r"^anchor: .* contradicts the anchor"):
        _add(chain, there[0])
    with pytest.raises(UnknownParent):
        _add(chain, there[3])
    with pytest.raises(ChainError, match=r"cannot become the anchor.*height 2"):
        chain.set_anchor(there[0].id)
    assert (chain.tip.id, chain.anchor.id) == (here[1].id, here[0].id)


def test_an_anchor_may_be_on_another_side(chain: Chain) -> None:
    """Then the tip goes there, however heavy the other side is; older anchors change nothing."""
    start = chain.tip.id
    here, there = _branch(chain, start, 3, (paid(2, "one"),)), _branch(chain, start, 2)
    for block in (*there, *here):
        _add(chain, block)
    assert chain.tip.id == here[2].id
    change = chain.set_anchor(there[0].id)
    assert change.disconnected == tuple(reversed(here))
    assert change.connected == tuple(there)
    assert (chain.tip.id, chain.anchor.id) == (there[1].id, there[0].id)
    assert chain.tip.state.account(account("one")).balance == 0
    for final in (there[0].id, start, GENESIS.header_id):
        assert not chain.set_anchor(final).tip_changed
    assert chain.anchor.id == there[0].id
    with pytest.raises(ChainError, match="not here"):
        chain.set_anchor(b"x" * 32)


def test_an_anchor_that_is_not_here_yet_is_set_later(chain: Chain) -> None:
    """A certificate may come before the block that it names: nothing has changed, and the next try is a good one."""
    here, there = _branch(chain, chain.tip.id, 2), _branch(chain, chain.tip.id, 2)
    _add(chain, here[0])
    before = _contents(chain)
    with pytest.raises(ChainError, match="not here"):
        chain.set_anchor(here[1].id)
    assert _contents(chain) == before
    for block in (here[1], *there):
        _add(chain, block)
    chain.set_anchor(here[1].id)
    assert chain.anchor.id == chain.tip.id == here[1].id
    for block in there:  # of the other side, however often
        for _ in range(2):
            with pytest.raises(ChainError, match="contradicts the anchor"):
                chain.set_anchor(block.id)
    assert chain.anchor.id == here[1].id


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """Restarted at any point: the same tip, anchor and state, and both sides of a fork."""
    with ChainStore(tmp_path, GENESIS) as store:
        chain = founded(store)
        trunk = _branch(chain, chain.tip.id, 5, (paid(2, "other"),))
        side = _branch(chain, chain.tip.id, 3)
    events: list[Any] = [*trunk[:2], *side[:1], trunk[0].id, *trunk[2:], trunk[2].id, trunk[4].id]
    for event in events:
        with ChainStore(tmp_path, GENESIS) as store:
            chain = Chain(GENESIS, store)
            if isinstance(event, Block):
                _add(chain, event)
            else:
                chain.set_anchor(event)
            before = _contents(chain)
        with ChainStore(tmp_path, GENESIS) as store:
            assert _contents(Chain(GENESIS, store)) == before
    assert before[0] == trunk[4].id


def test_a_state_is_read_while_anchors_move(chain: Chain) -> None:
    """By another thread, as the node's event loop does: it is the same all the time."""
    blocks = _branch(chain, chain.tip.id, 25, (paid(2, "other"),))
    for block in blocks:
        _add(chain, block)
    state = chain.tip.state
    expected, done, seen = state.scan(b""), threading.Event(), list[bool]()

    def read() -> None:
        while not done.is_set():
            seen.append(state.scan(b"") == expected and state.get(expected[0][0]) is not None)

    reader = threading.Thread(target=read)
    reader.start()
    for block in blocks:
        chain.set_anchor(block.id)
    done.set()
    reader.join()
    assert seen
    assert all(seen)


def test_states_of_the_past_can_be_had(chain: Chain) -> None:
    """Made again from the blocks; each has the digest of its header, and each block can be checked again."""
    blocks = _branch(chain, chain.tip.id, 4, (paid(2, "other"),))
    states = []
    for block in blocks:
        _add(chain, block)
        states.append(chain.tip.state.scan(b""))
    chain.set_anchor(blocks[2].id)
    for block, state in zip(blocks, states, strict=True):
        assert chain.state_at(block.id).scan(b"") == state
        assert chain.state_at(block.id).digest == block.header.state
        found = [*chain.checks(block, block.header.time_ms)]
        assert all(check.is_kept for check in found), found
    assert chain.state_at(GENESIS.header_id).digest == GENESIS.state.digest
    assert all(check.is_kept for check in chain.checks(founding_block(), START_MS))
    with pytest.raises(ChainError, match="not here"):
        chain.state_at(b"x" * 32)


def test_a_look_at_a_block_does_not_go_through_the_chain(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only through what came between it and the anchor, however long the chain is."""
    blocks = _branch(chain, chain.tip.id, 20, (paid(2, "other"),))
    for block in blocks:
        _add(chain, block)
    for block in (blocks[3], blocks[17]):
        chain.set_anchor(block.id)
    read = list[bytes]()
    decoded = ChainStore._diff

    def counted(store: ChainStore, data: bytes) -> dict[bytes, bytes | None]:
        read.append(data)
        return decoded(store, data)

    monkeypatch.setattr(ChainStore, "_diff", counted)
    assert all(check.is_kept for check in chain.checks(blocks[16], blocks[16].header.time_ms))
    assert len(read) == 2
    assert chain.state_at(blocks[0].id).account(account("other")).balance == PAI
    assert chain.state_at(founding_block().id).account(account("other")).balance == 0


def test_another_node_gets_what_it_lacks(chain: Chain) -> None:
    """From where the two part, whichever side it is on; bounded by number and bytes."""
    start = chain.tip.id
    here, there = _branch(chain, start, 6), _branch(chain, start, 2)
    for block in here:
        _add(chain, block)
    chain.set_anchor(here[1].id)
    with ChainStore(None, GENESIS) as store:
        other = founded(store)
        for block in there:
            _add(other, block)
        assert chain.blocks_after(other.locator(), 64) == here
        assert chain.blocks_after(other.locator(), 2) == here[:2]
        for block in here:
            _add(other, block)
        assert other.tip.id == chain.tip.id
        assert chain.blocks_after(other.locator(), 64) == []
    assert chain.blocks_after((), 64) == [founding_block(), *here]
    assert chain.blocks_after((b"x" * 32, here[3].id, start), 64) == here[4:]
    assert chain.blocks_after((start,), 64, max_bytes=1) == here[:1]
    assert chain.blocks_after((start,), 64, max_bytes=2 * here[0].size) == here[:2]


def test_a_locator_is_short(chain: Chain) -> None:
    """The last ten blocks, then ever fewer, then block 0."""
    blocks = _branch(chain, chain.tip.id, 29)
    for block in blocks:
        _add(chain, block)
    chain.set_anchor(blocks[18].id)
    heights = [next(chain.ancestors(block)).height for block in chain.locator()]
    assert heights == [*range(30, 20, -1), 19, 15, 7, 0]
    assert all(above > below for above, below in pairwise(heights))
