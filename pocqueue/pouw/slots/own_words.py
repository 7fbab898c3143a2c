"""What a node says itself, on disk before anybody hears it: the newest message of each of its lanes, and its words as a
member of a committee in turns that are not over. So it cannot contradict itself after a restart.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from pocqueue.pouw.node_file import NodeFile
from pocqueue.pouw.slots.history import Lane
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.requests import IterationWithMap
from pocqueue.pouw.wire.votes import Proposal, Said, Vote


class OwnWords:
    """A part of a node's slots file; see `SlotStore`.

    Args:
        file: that file.
    """

    def __init__(self, file: NodeFile) -> None:
        self._file = file
        #: The newest turn that this node has said something in, as far as it is kept; -1: none.
        self.newest_turn = self._newest_turn()

    def write_sent(self, sent: IterationWithMap) -> None:
        """Keep what a lane of this node sends instead of what it sent before; it is on disk on return."""
        it = sent.iteration
        row = (it.task, it.miner, it.lane, encode(sent))
        with self._file.transaction() as db:
            db.execute("INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?)", row)

    def sent(self, task: bytes, lane: Lane) -> IterationWithMap | None:
        """Return what a lane of this node sent last for a task."""
        query = "SELECT sent FROM sent WHERE task = ? AND miner = ? AND lane = ?"
        with self._file.transaction() as db:
            row = db.execute(query, (task, *lane)).fetchone()
        return None if row is None else self._file.decoded(row[0], IterationWithMap)

    def forget_after(self, db: sqlite3.Connection, task: bytes, slot: int) -> None:
        """Forget what lanes have sent for slots of a task after this one, in a transaction that is open."""
        query = "SELECT miner, lane, sent FROM sent WHERE task = ?"
        for miner, lane, sent in db.execute(query, (task,)).fetchall():
            if self._file.decoded(sent, IterationWithMap).iteration.slot > slot:
                at = (task, miner, lane)
                db.execute("DELETE FROM sent WHERE task = ? AND miner = ? AND lane = ?", at)

    def write_said(self, turn: int, said: Sequence[Said]) -> None:
        """Keep what this node says in a turn of its committee, after what it has said; it is on disk on return.

        Args:
            turn: `Certificate.turn`.
            said: all that `Agreement.drain` gave, in that order.
        """
        with self._file.transaction() as db:
            query = "SELECT coalesce(max(number) + 1, 0) FROM said WHERE turn = ?"
            [first] = db.execute(query, (turn,)).fetchone()
            rows = [
                (turn, number, isinstance(one, Vote), encode(one))
                for number, one in enumerate(said, first)
            ]
            db.executemany("INSERT INTO said VALUES (?, ?, ?, ?)", rows)
        self.newest_turn = max(turn, self.newest_turn)

    def said(self, turn: int) -> list[Said]:
        """Return what this node has said in a turn, in that order."""
        query = "SELECT is_vote, said FROM said WHERE turn = ? ORDER BY number"
        with self._file.transaction() as db:
            rows = db.execute(query, (turn,)).fetchall()
        return [
            self._file.decoded(said, Vote) if is_vote else self._file.decoded(said, Proposal)
            for is_vote, said in rows
        ]

    def forget_said(self, before_turn: int) -> None:
        """Forget what was said in turns before this one: they are decided, and their slots are here."""
        with self._file.transaction(durable=False) as db:
            db.execute("DELETE FROM said WHERE turn < ?", (before_turn,))

    def _newest_turn(self) -> int:
        with self._file.transaction() as db:
            [found] = db.execute("SELECT coalesce(max(turn), -1) FROM said").fetchone()
        return int(found)
