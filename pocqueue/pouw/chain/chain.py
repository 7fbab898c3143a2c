"""The chain of a node: every valid block above the anchor, on disk and in memory, and the tip among them.

Not for two threads at a time, but for `tip` and `anchor`: those may be read from any thread.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from pocqueue.pouw.chain.examination import Check, Examination
from pocqueue.pouw.chain.fork import MEDIAN_BLOCKS, Position, Tree, turn
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.state import State, state_digest
from pocqueue.pouw.chain.store import ChainStore, Diff, Stored
from pocqueue.pouw.chain.table import SortedTable
from pocqueue.pouw.chain.validate import checks, validate
from pocqueue.pouw.chain.view import ChainView
from pocqueue.pouw.errors import ChainError, InvalidBlock, UnknownParent
from pocqueue.pouw.wire.blocks import Block, Header
from pocqueue.pouw.wire.codec import encode

#: Refused blocks that are remembered, at most.
_MAX_REFUSED: Final = 4096
#: The rule of which each node judges by its own processor: what a committee has made final overrides it.
RE_EXECUTION: Final = "re-execution"
#: Rules that a block may keep later.
_PASSING: Final = ("parent", "time")


@dataclass(frozen=True)
class Change:
    """What a new block or anchor did to the chain that ends in the tip."""

    disconnected: tuple[Block, ...] = ()  #: highest first
    connected: tuple[Block, ...] = ()  #: lowest first

    @property
    def tip_changed(self) -> bool:
        """The tip is another one than before."""
        return bool(self.disconnected or self.connected)


class Chain(ChainView):
    """The blocks of a network as this node has them.

    Every method raises NodeDataError if the store is in trouble; the chain is then as it was before.

    Args:
        genesis: the network.
        store: of this network. Whoever opened it closes it.
    """

    def __init__(self, genesis: Genesis, store: ChainStore) -> None:
        self._table = SortedTable(store.state())
        self._refused: OrderedDict[bytes, tuple[str, str]] = OrderedDict()
        header, times = _header_and_times(store, store.anchor())
        state = State(self._table, header.state)
        super().__init__(genesis, store, Tree(Position(header, state, None, 0, times)))
        for block, diff in store.above(header.height):
            parent = self._tree.get(block.header.parent)
            if parent is None or state_digest(parent.state.digest, diff) != block.header.state:
                raise store.damaged(f"block {block.id.hex()} does not follow on what is there.")
            after = State(parent.state, block.header.state, diff)
            self._tree.add(parent.then(block, after))

    def check(self, block: Block, now_ms: int, *, is_final: bool = False) -> State:
        """Check everything but the training itself (rule `RE_EXECUTION`).

        Args:
            block: decoded, so canonical.
            now_ms: the clock, in ms since 1970.
            is_final: a committee has signed that it is. Then it does not matter that this node's own training came
                to another result: the others go on from it, and other processors round otherwise.

        Returns:
            The state after it.

        Raises:
            UnknownParent: its parent is not here yet.
            InvalidBlock: the first rule that it breaks.
        """
        refused = self.invalid(block)
        if refused is not None and not (is_final and refused.rule == RE_EXECUTION):
            raise refused
        try:
            after = validate(self._examination(block, now_ms))
        except InvalidBlock as exc:
            if exc.rule not in _PASSING:
                self.refuse(block, exc)
            raise
        lie = self._refused.get(block.header.message)
        if lie is not None and not is_final:
            raise InvalidBlock(*lie)
        return after

    def add(self, block: Block, now_ms: int, *, is_final: bool = False) -> Change:
        """Check a block as `check` does and take it in; it is on disk on return.

        That its training was repeated, where that is due, is the caller's to see to. A block that is here
        already changes nothing.

        Raises:
            UnknownParent, InvalidBlock: as `check`.
        """
        if block.id in self:
            return Change()
        after = self.check(block, now_ms, is_final=is_final)
        parent = self._tree.get(block.header.parent)
        assert parent is not None
        self._store.add(Stored(block, dict(after.diff)))
        old = self.tip
        self._tree.add(parent.then(block, after))
        return self._change(old, self.tip)

    def set_anchor(self, block: bytes) -> Change:
        """Make a block final, as a certificate says; those that contradict it are gone for good.

        One that is final already changes nothing.

        Raises:
            ChainError: this block is not here, or contradicts the anchor.
        """
        if self._is_final(block):
            return Change()
        anchor = self._tree.get(block)
        if anchor is None:
            raise ChainError(
                f"Block {block.hex()} cannot become the anchor: it is not here, or was dropped as it contradicts the "
                f"anchor {self.anchor.id.hex()} at height {self.anchor.height}."
            )
        gone = self._tree.not_with(anchor)
        diff: Diff = {}
        undo: dict[int, Diff] = {}
        for position in reversed([*anchor.down()][:-1]):
            assert position.parent is not None
            before = position.parent.state
            undo[position.height] = {key: before.get(key) for key in position.state.diff}
            diff.update(position.state.diff)
        change = self._change(self.tip, self._tree.best_above(anchor))
        self._store.move_anchor(anchor.id, diff, [position.id for position in gone], undo)
        # States are read while this goes on: each layer between has its keys in front of the table until the end.
        self._table.change(diff)
        anchor.state.rebase(self._table)
        self._tree.move_anchor(anchor)
        return change

    def refuse(self, block: Block, reason: InvalidBlock) -> None:
        """Remember that these bytes are no valid block.

        By all of its bytes, not by its id: signatures and paths are not in the id, and with wrong ones anybody
        could have a good block refused. What training says is of the winner's message: it can be signed and drawn for
        in many ways, and is false in all of them.
        """
        # In words: an error that was raised holds on to all that was at work then.
        words = str(reason).removeprefix(f"{reason.rule}: ")
        is_lie = reason.rule == RE_EXECUTION
        for key in (_bytes_id(block), *([block.header.message] if is_lie else [])):
            self._refused[key] = reason.rule, words
        while len(self._refused) > _MAX_REFUSED:
            self._refused.popitem(last=False)

    def invalid(self, block: Block) -> InvalidBlock | None:
        """Return why a block was refused; None: it was not, or that is forgotten."""
        refused = self._refused.get(_bytes_id(block))
        return None if refused is None else InvalidBlock(*refused)

    def checks(self, block: Block, now_ms: int) -> Iterator[Check]:
        """Yield what comes of each rule for a block, final or not, up to the first that is broken.

        Raises:
            UnknownParent: its parent is not here.
        """
        return checks(self._examination(block, now_ms, of_old=True))

    def _change(self, old: Position, new: Position) -> Change:
        left, entered = turn(old, new)
        return Change(
            tuple(self._store.read(position.id) for position in left),
            tuple(self._store.read(position.id) for position in entered),
        )

    def _examination(self, block: Block, now_ms: int, *, of_old: bool = False) -> Examination:
        """Put together what a block is judged by; `of_old`: also one that is below the anchor."""
        header = block.header
        parent = self._tree.get(header.parent)
        if parent is not None:
            state, times = parent.state, parent.times
            return Examination(self._genesis, block, parent.header, state, times, now_ms)
        is_final = self._is_final(header.parent)
        if of_old and is_final:
            old, old_times = _header_and_times(self._store, header.parent)
            return Examination(
                self._genesis, block, old, self.state_at(header.parent), old_times, now_ms
            )
        if is_final or header.height <= self.anchor.height:
            raise InvalidBlock(
                "anchor",
                f"block {header.id.hex()} at height {header.height} contradicts the anchor {self.anchor.id.hex()} at "
                f"height {self.anchor.height}, which is final.",
            )
        raise UnknownParent(header.parent)


def _header_and_times(store: ChainStore, block: bytes) -> tuple[Header, tuple[int, ...]]:
    """Return a block's header, and what `Position.times` is for it."""
    headers = [*islice(store.ancestors(block), MEDIAN_BLOCKS)]
    return headers[0], tuple(header.time_ms for header in reversed(headers))


def _bytes_id(block: Block) -> bytes:
    return hashlib.sha256(encode(block)).digest()
