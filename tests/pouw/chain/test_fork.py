"""Fork choice: one tip for the same blocks, whatever the order in which they come."""

from __future__ import annotations

import random

import msgspec
from hypothesis import given, settings, strategies as st

from pocqueue.pouw.chain.fork import Position, Tree, turn, weight
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.store import ChainStore
from pocqueue.pouw.wire.blocks import Block, Founding
from tests.pouw.blocks import GENESIS, founded, trained

_GENESIS = Genesis.dev()
_STATE = _GENESIS.state
_ANCHOR = Block(_GENESIS.header, (), Founding(bytes(64)))


def _root() -> Position:
    return Position(_ANCHOR.header, _STATE, None, 0, (_ANCHOR.header.time_ms,))


def _on(parent: Block, slot: int, number: int) -> Block:
    """Return a block that weighs 1, of a slot; rules are not looked at here."""
    header = msgspec.structs.replace(
        parent.header,
        height=parent.header.height + 1,
        parent=parent.id,
        slot=slot,
        time_ms=parent.header.time_ms + 1,
        nonce=number.to_bytes(8, "little"),
    )
    return Block(header, (), Founding(bytes(64)))


def _grown(blocks: list[Block]) -> Tree:
    tree = Tree(_root())
    for block in blocks:
        parent = tree.get(block.header.parent)
        assert parent is not None
        tree.add(parent.then(block, _STATE))
    return tree


def _shuffled(blocks: list[Block], rng: random.Random) -> list[Block]:
    """Return them in another order, each after its parent."""
    left, here, order = list(blocks), {_ANCHOR.id}, list[Block]()
    while left:
        block = rng.choice([block for block in left if block.header.parent in here])
        left.remove(block)
        here.add(block.id)
        order.append(block)
    return order


_TREES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=12)


@given(_TREES, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_tip_does_not_depend_on_the_order(
    shape: list[tuple[int, int]], rng: random.Random
) -> None:
    """Most work, then the earlier slot, then the smaller id."""
    blocks = [_ANCHOR]
    for number, (parent, slot) in enumerate(shape):
        blocks.append(_on(blocks[parent % len(blocks)], slot, number))
    tree, other = _grown(blocks[1:]), _grown(_shuffled(blocks[1:], rng))
    assert tree.tip.id == other.tip.id
    best = max(block.header.height for block in blocks)
    ranked = sorted((b.header.slot, b.id) for b in blocks if b.header.height == best)
    assert tree.tip.id == ranked[0][1]


@given(_TREES, st.integers(0, 30))
@settings(max_examples=60)
def test_only_what_goes_with_the_anchor_stays(shape: list[tuple[int, int]], chosen: int) -> None:
    """The anchor is the root of all that is left, and the tip is one of these."""
    blocks = [_ANCHOR]
    for number, (parent, slot) in enumerate(shape):
        blocks.append(_on(blocks[parent % len(blocks)], slot, number))
    tree = _grown(blocks[1:])
    anchor = tree.get(blocks[chosen % len(blocks)].id)
    assert anchor is not None
    gone, best = {position.id for position in tree.not_with(anchor)}, tree.best_above(anchor)
    below = {position.id for position in anchor.down()} - {anchor.id}
    tree.move_anchor(anchor)
    assert tree.anchor is anchor
    assert tree.tip is best
    assert [*best.down()][-1] is anchor
    for block in blocks:
        position = tree.get(block.id)
        assert (position is None) == (block.id in gone | below)
        assert position is None or [*position.down()][-1] is anchor


def test_a_turn_goes_down_to_the_fork_and_up_again() -> None:
    """What is left, highest first; what is entered, lowest first; nothing if the tip stays."""
    a1 = _on(_ANCHOR, 0, 1)
    a2, b2 = _on(a1, 0, 2), _on(a1, 0, 3)
    a3, b3 = _on(a2, 0, 4), _on(b2, 0, 5)
    tree = _grown([a1, a2, b2, a3, b3])
    old, new = tree.get(a3.id), tree.get(b3.id)
    assert old is not None
    assert new is not None
    left, entered = turn(old, new)
    assert [position.id for position in left] == [a3.id, a2.id]
    assert [position.id for position in entered] == [b2.id, b3.id]
    assert turn(old, old) == ([], [])


def test_the_median_is_of_the_last_eleven_times() -> None:
    """Of fewer, where there are fewer."""
    blocks = [_ANCHOR]
    for number in range(15):
        blocks.append(_on(blocks[-1], 0, number))
    tip = _grown(blocks[1:]).tip
    assert list(tip.times) == [block.header.time_ms for block in blocks[-11:]]
    assert [*tip.down()][12].times == tuple(block.header.time_ms for block in blocks[:4])


def test_work_is_what_a_target_takes() -> None:
    """2^256 / (target + 1) draws for a trained block; a founding block counts as one."""
    assert weight(_on(_ANCHOR, 0, 1)) == 1
    with ChainStore(None, GENESIS) as store:
        block = trained(founded(store).tip)
    for target, draws in ((2**255, 1), (2**250 - 1, 64), (2**240, 65_535)):
        header = msgspec.structs.replace(block.header, target=target.to_bytes(32))
        assert weight(msgspec.structs.replace(block, header=header)) == draws
