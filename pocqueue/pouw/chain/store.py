"""The chain on disk: blocks with what each changes, and the state after the anchor.

A block is one transaction and so is an anchor, so that a process which is killed leaves the one before or
the one after. Which block is the tip is written nowhere: fork choice says it again, from the same blocks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from typing_extensions import override

from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.errors import ChainError, NodeDataError
from pocqueue.pouw.node_file import NodeFile
from pocqueue.pouw.wire.blocks import Block, Header
from pocqueue.pouw.wire.codec import encode
from pocqueue.web.sqlite_file import FileRole

#: Name of the file in a node's folder.
CHAIN_NAME: Final = "chain.sqlite3"
#: What a block changes in the state of its parent; None: the key is gone.
Diff = dict[bytes, bytes | None]

_ROLE = FileRole(
    name="chain",
    owner="node",
    if_shared="two would write two histories",
    setting="POCQUEUE_POUW_DIR",
    if_lost="its blocks are then fetched from other nodes again",
    error=NodeDataError,
)


class Stored(NamedTuple):
    """A block as it is kept."""

    block: Block
    diff: Diff


class ChainStore(NodeFile):
    """The blocks of one network in a file, made if it is not there; a context manager.

    Every method raises NodeDataError if the file is in trouble. May be used from any thread.

    Args:
        folder: for the file; None: a folder of its own that goes when it is closed.
        genesis: the network.

    Raises:
        NodeDataError: another process has the file open, it is another network's, of a newer version,
            damaged, or cannot be written.
    """

    _mend = f"With the node stopped, move the file and its -wal file away ({_ROLE.if_lost})."

    def __init__(self, folder: Path | None, genesis: Genesis) -> None:
        self._genesis = genesis
        scripts = [Path(__file__).with_name("chain.sql")]
        super().__init__(folder, CHAIN_NAME, _ROLE, scripts, genesis.network)

    def add(self, stored: Stored) -> None:
        """Keep a block; it is on disk on return. One that is there already stays as it is."""
        header = stored.block.header
        row = (header.id, header.height, header.parent, encode(header), encode(stored.block))
        with self.transaction() as db:
            db.execute(
                "INSERT INTO block VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (*row, encode(sorted(stored.diff.items()))),
            )

    def move_anchor(
        self, anchor: bytes, changed: Diff, dropped: Iterable[bytes], undo: Mapping[int, Diff]
    ) -> None:
        """Make a block the anchor.

        Args:
            anchor: its id.
            changed: the difference between the states after the old anchor and after this one.
            dropped: ids of the blocks that do not go with it, which are deleted.
            undo: for the height of each block between, the difference between the states after it and before it.
        """
        with self.transaction() as db:
            db.executemany("DELETE FROM block WHERE id = ?", [(block,) for block in dropped])
            db.executemany(
                "DELETE FROM state WHERE key = ?",
                [(key,) for key, value in changed.items() if value is None],
            )
            db.executemany(
                "INSERT OR REPLACE INTO state VALUES (?, ?)",
                [(key, value) for key, value in changed.items() if value is not None],
            )
            db.executemany(
                "INSERT INTO undo VALUES (?, ?)",
                [(height, encode(sorted(diff.items()))) for height, diff in undo.items()],
            )
            db.execute("UPDATE meta SET value = ? WHERE name = 'anchor'", (anchor,))

    def anchor(self) -> bytes:
        """Return the anchor's id."""
        with self.transaction() as db:
            [anchor] = db.execute("SELECT value FROM meta WHERE name = 'anchor'").fetchone()
            return bytes(anchor)

    def state(self) -> dict[bytes, bytes]:
        """Return the state after the anchor."""
        with self.transaction() as db:
            return dict(db.execute("SELECT key, value FROM state"))

    def header(self, block: bytes) -> Header | None:
        """Return a block's header, block 0's as well; None: there is no such block."""
        if block == self._genesis.header_id:
            return self._genesis.header
        with self.transaction() as db:
            row = db.execute("SELECT header FROM block WHERE id = ?", (block,)).fetchone()
        return None if row is None else self.decoded(row[0], Header)

    def block(self, block: bytes) -> Block | None:
        """Return a block; None: there is no such block, or it is block 0."""
        data = self.block_bytes(block)
        return None if data is None else self.decoded(data, Block)

    def block_bytes(self, block: bytes) -> bytes | None:
        """Return a block as it was encoded; None: there is no such block, or it is block 0."""
        with self.transaction() as db:
            row = db.execute("SELECT block FROM block WHERE id = ?", (block,)).fetchone()
        return None if row is None else row[0]

    def read(self, block: bytes) -> Block:
        """Return a block that is here."""
        found = self.block(block)
        if found is None:
            raise self.damaged(f"block {block.hex()} is missing.")
        return found

    def ids_at(self, height: int) -> list[bytes]:
        """Return the ids of the blocks of a height; one at most where the anchor is as high or higher."""
        with self.transaction() as db:
            rows = db.execute("SELECT id FROM block WHERE height = ?", (height,))
            return [bytes(block) for (block,) in rows]

    def above(self, height: int) -> list[Stored]:
        """Return the blocks that are higher than this, each after its parent."""
        with self.transaction() as db:
            rows = db.execute(
                "SELECT block, diff FROM block WHERE height > ? ORDER BY height, id", (height,)
            ).fetchall()
        return [Stored(self.decoded(block, Block), self._diff(diff)) for block, diff in rows]

    def ancestors(self, block: bytes) -> Iterator[Header]:
        """Yield a block's header and those of the blocks below it, down to block 0.

        Raises:
            ChainError: it is not here.
        """
        while True:
            header = self.header(block)
            if header is None:
                raise ChainError(f"Block {block.hex()} is not here.")
            yield header
            if header.height == 0:
                return
            block = header.parent

    def undone(self, height: int) -> Diff:
        """Return the difference between the states after the anchor and after the block of a height below it."""
        found: Diff = {}
        with self.transaction() as db:
            rows = db.execute(
                "SELECT diff FROM undo WHERE height > ? ORDER BY height DESC", (height,)
            )
            for (diff,) in rows:
                found.update(self._diff(diff))
        return found

    @override
    def _first_rows(self, db: sqlite3.Connection) -> None:
        db.executemany("INSERT INTO state VALUES (?, ?)", self._genesis.state.diff.items())
        db.execute("INSERT INTO meta VALUES ('anchor', ?)", (self._genesis.header_id,))

    def _diff(self, data: bytes) -> Diff:
        return dict(self.decoded(data, tuple[tuple[bytes, bytes | None], ...]))
