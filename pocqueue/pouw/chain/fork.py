"""Fork choice: the anchor, all blocks that are built on it, and which of them is the tip.

The tip is the block with the most work behind it; of equals the one of the earlier slot, then the one with the
smaller id. So it depends on which blocks there are and not on their order of arrival, and two winners of one slot
settle without a further block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pocqueue.pouw.chain.difficulty import FOUNDING_WEIGHT, weight as weight_of
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.wire.blocks import Block, Founding, Header

#: How many blocks the median of times is of.
MEDIAN_BLOCKS = 11


@dataclass(eq=False, slots=True)
class Position:
    """A block that the chain can go on from, with the state after it."""

    header: Header
    state: State
    parent: Position | None  #: None: it is the anchor
    weight: int  #: draws that all blocks above a former anchor were expected to take
    times: tuple[int, ...]  #: `time_ms` of the last 11 blocks up to this one

    @property
    def id(self) -> bytes:
        """Return the block's id."""
        return self.header.id

    @property
    def height(self) -> int:
        """Return the block's height."""
        return self.header.height

    def then(self, block: Block, state: State) -> Position:
        """Return the position after a block that is built on this one."""
        times = (*self.times, block.header.time_ms)[-MEDIAN_BLOCKS:]
        return Position(block.header, state, self, self.weight + weight(block), times)

    def down(self) -> Iterator[Position]:
        """Yield this position and those below it, down to the anchor."""
        at: Position | None = self
        while at is not None:
            yield at
            at = at.parent


def weight(block: Block) -> int:
    """Return the draws that a block was expected to take; a founding block counts as one."""
    if isinstance(block.proof, Founding):
        return FOUNDING_WEIGHT
    return weight_of(block.header.target)


class Tree:
    """The anchor and all valid blocks above it.

    Attributes:
        anchor: the newest final block.
        tip: the best block.
    """

    def __init__(self, anchor: Position) -> None:
        self.anchor = self.tip = anchor
        self._positions = {anchor.id: anchor}

    def get(self, block: bytes) -> Position | None:
        """Return the position after a block; None: it is not here."""
        return self._positions.get(block)

    def add(self, position: Position) -> None:
        """Take a block in; the tip moves if this one is better."""
        self._positions[position.id] = position
        self.tip = max(self.tip, position, key=_rank)

    def best_above(self, anchor: Position) -> Position:
        """Return what the tip is if this is the anchor."""
        return max(self._above(anchor), key=_rank)

    def not_with(self, anchor: Position) -> list[Position]:
        """Return all that is lost if this is the anchor: neither above nor below it."""
        kept = {*self._above(anchor), *anchor.down()}
        return [position for position in self._positions.values() if position not in kept]

    def move_anchor(self, anchor: Position) -> None:
        """Forget all that is not this position or above it."""
        self.tip = self.best_above(anchor)
        self._positions = {position.id: position for position in self._above(anchor)}
        self.anchor = anchor
        anchor.parent = None

    def _above(self, anchor: Position) -> list[Position]:
        """Return a position and all that are built on it."""
        found = {anchor: None}
        for position in self._positions.values():  # each after its parent, as they came
            if position.parent in found:
                found[position] = None
        return list(found)


def turn(old: Position, new: Position) -> tuple[list[Position], list[Position]]:
    """Return the way from one tip to another.

    Returns:
        The blocks that are left, highest first, and those that are entered, lowest first.
    """
    behind = set(old.down())
    entered = []
    for fork in new.down():
        if fork in behind:
            break
        entered.append(fork)
    left = []
    for position in old.down():
        if position is fork:
            break
        left.append(position)
    return left, entered[::-1]


def _rank(position: Position) -> tuple[int, int, int]:
    return position.weight, -position.header.slot, -int.from_bytes(position.id)
