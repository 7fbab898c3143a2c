"""What is in a chain, by id and by height: the blocks up to the anchor, and those on the way to the tip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pocqueue.pouw.chain.fork import Position, Tree
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.chain.store import ChainStore
from pocqueue.pouw.wire.blocks import Block, Header


class ChainView:
    """A chain as it is read. `tip`, `anchor` and `knows` from any thread, the rest in the chain's own.

    Args:
        genesis: the network.
        store: has all blocks.
        tree: has the anchor and those above it.
    """

    def __init__(self, genesis: Genesis, store: ChainStore, tree: Tree) -> None:
        self._genesis = genesis
        self._store = store
        self._tree = tree

    @property
    def tip(self) -> Position:
        """The best block, with the state after it."""
        return self._tree.tip

    @property
    def anchor(self) -> Position:
        """The newest final block, with the state after it."""
        return self._tree.anchor

    def knows(self, block: bytes) -> bool:
        """Say without the store whether a block is here above the anchor; from any thread."""
        return self._tree.get(block) is not None

    def __contains__(self, block: bytes) -> bool:
        return self._tree.get(block) is not None or self._is_final(block)

    def block(self, block: bytes) -> Block | None:
        """Return a block, on whichever branch; None: it is not here, or is block 0."""
        return self._store.block(block)

    def bytes_of(self, block: bytes) -> bytes | None:
        """Return a block as it goes over the wire; None as in `block`."""
        return self._store.block_bytes(block)

    def id_at(self, height: int) -> bytes | None:
        """Return the id of the block of a height on the way to the tip; None: there is none."""
        if height > self.anchor.height:
            return next((at.id for at in self.tip.down() if at.height == height), None)
        if height == 0:
            return self._genesis.header_id
        return next(iter(self._store.ids_at(height)), None)

    def block_at(self, height: int) -> Block | None:
        """Return the block of a height on the way to the tip; None: there is none, or it is block 0."""
        found = self.id_at(height)
        return None if found is None else self.block(found)

    def ancestors(self, block: bytes) -> Iterator[Header]:
        """Yield a block's header and those of the blocks below it, down to block 0.

        Raises:
            ChainError: it is not here.
        """
        return self._store.ancestors(block)

    def state_at(self, block: bytes) -> State:
        """Return the state after a block.

        One below the anchor is made from the blocks between: the older it is, the longer that takes. It is good until
        the anchor moves.

        Raises:
            ChainError: it is not here.
        """
        position = self._tree.get(block)
        if position is not None:
            return position.state
        header = next(self.ancestors(block))
        return State(self.anchor.state, header.state, self._store.undone(header.height))

    def locator(self) -> tuple[bytes, ...]:
        """Return ids of blocks below the tip by which another node finds where the chains part.

        The last ten, then ever fewer, then block 0: 64 at most.
        """
        heights, step, at = [], 1, self.tip.height
        while at > 0:
            heights.append(at)
            step = step if len(heights) < 10 else step * 2
            at -= step
        ids = self._ids_at(heights)
        return (*ids, self._genesis.header_id)

    def blocks_after(
        self, locator: Sequence[bytes], limit: int, max_bytes: int = 1_000_000
    ) -> list[Block]:
        """Return the blocks of this chain behind the first of these ids that is on it, lowest first.

        Args:
            locator: as from `locator`, another node's. None of them is here: from block 1 on.
            limit: number of blocks, at most.
            max_bytes: their bytes together, at most; but one block is always allowed.
        """
        common = next((h for h in map(self._height_on_chain, locator) if h is not None), 0)
        last = min(self.tip.height, common + limit)
        found: list[Block] = []
        size = 0
        for block_id in self._ids_at(range(common + 1, last + 1)):
            block = self._store.read(block_id)
            size += block.size
            if found and size > max_bytes:
                break
            found.append(block)
        return found

    def _is_final(self, block: bytes) -> bool:
        """It is the anchor or below it: of the others, those that the store has are in the tree."""
        if self._tree.get(block) is not None:
            return block == self.anchor.id
        return self._store.header(block) is not None

    def _ids_at(self, heights: Iterable[int]) -> list[bytes]:
        """Return the ids of the blocks of some heights on the way to the tip, all of which there are."""
        above = {position.height: position.id for position in self.tip.down()}
        ids = (above.get(height) or self.id_at(height) for height in heights)
        return [found for found in ids if found is not None]

    def _height_on_chain(self, block: bytes) -> int | None:
        """Return the height of a block if it is on the way to the tip."""
        position = self._tree.get(block)
        if position is not None:
            return position.height if self.id_at(position.height) == block else None
        header = self._store.header(block)  # of the others, those that it has are final
        return None if header is None else header.height
