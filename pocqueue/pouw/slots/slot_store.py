"""The slots of a node on disk. A slot is one transaction: it is there with its maps and weights, or not at all.

A committee of one writes a slot before it tells anybody of it. So it cannot contradict itself after a restart: there is
one record for a slot.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pocqueue.pouw.errors import NodeDataError, SlotError
from pocqueue.pouw.node_file import NodeFile
from pocqueue.pouw.slots.history import KEPT_LAPS, Advance, Checkpoint, Lane, SlotHistory
from pocqueue.pouw.slots.own_words import OwnWords
from pocqueue.pouw.slots.task import LAP, TaskSpec
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.hashes import ZERO
from pocqueue.pouw.wire.requests import IterationWithMap, Slot
from pocqueue.pouw.wire.slots import Certificate, Iteration, SignedCertificate, SlotRecord
from pocqueue.web.sqlite_file import FileRole

#: Name of the file in a node's folder.
SLOTS_NAME: Final = "slots.sqlite3"
#: Weights of every so many slots are kept as long as their maps.
KEPT_EVERY: Final = 8 * LAP
#: Maps are kept for so many slots before that of the anchor.
KEPT_MAPS: Final = 1000

_ROLE = FileRole(
    name="slots file",
    owner="node",
    if_shared="two would write two histories",
    setting="POCQUEUE_POUW_DIR",
    if_lost="its slots are then fetched from other nodes again; a committee that has one member has lost its memory",
    error=NodeDataError,
)
_LAST = 2**63 - 1
#: Records among which the newest one is: those of a catching up may have been written after it.
_LOOKED_AT = 64
# Slots whose maps are all there, in a row: one row a message, or one with nulls for an empty slot.
_ROWS = """
SELECT record.slot, record.record, message.iteration, map.map FROM record
LEFT JOIN message USING (task, slot) LEFT JOIN map USING (task, slot, place)
WHERE record.task = ? AND record.slot BETWEEN ? AND ? ORDER BY record.slot, message.place
"""


class Gap(NamedTuple):
    """Slots of a task that are not here, between others."""

    first: int
    end: int  #: the first one that is here again
    previous: bytes  #: id of the certificate of the last one


class SlotStore(NodeFile):
    """Certified slots of a network's tasks in a file, made if it is not there; a context manager.

    Every method raises NodeDataError if the file is in trouble. May be used from any thread.

    Args:
        folder: for the file; None: a folder of its own that goes when it is closed.
        network: the network's id.

    Raises:
        NodeDataError: another process has the file open, it is another network's, of a newer version,
            damaged, or cannot be written.
    """

    _mend = (
        "Put a copy of it in its place; a node that is no supervisor may also move it away, and has its slots "
        "from others again."
    )

    def __init__(self, folder: Path | None, network: bytes) -> None:
        self._network = network
        scripts = [
            Path(__file__).with_name(name) for name in ("slots.sql", "said.sql", "noise.sql")
        ]
        super().__init__(folder, SLOTS_NAME, _ROLE, scripts, network)
        #: What this node has said itself.
        self.own = OwnWords(self)

    def write(self, advance: Advance, *, durable: bool = True) -> None:
        """Keep a slot. The same one may be written again.

        Args:
            advance: the slot.
            durable: it is on disk on return, as a committee of one needs it, which tells others of it then. False: others
                have it too, as `SqliteFile.transaction`.

        Raises:
            NodeDataError: another record of this slot is there: nothing is written.
        """
        certificate, record = advance.certificate, advance.slot.record
        at = (certificate.task, certificate.slot)
        with self.transaction(durable=durable) as db:
            found = db.execute(
                "SELECT record FROM record WHERE task = ? AND slot = ?", at
            ).fetchone()
            if found is not None:
                if self.decoded(found[0], SlotRecord).signed.certificate.id == certificate.id:
                    return
                raise self._error(
                    f"has another record of slot {certificate.slot} of task {certificate.task.hex()}: the "
                    "committee has signed two. Keep both for its other members, and stop this node."
                )
            db.execute("INSERT INTO record VALUES (?, ?, ?)", (*at, encode(record)))
            for place, message in enumerate(advance.slot.messages):
                it = message.iteration
                row = (*at, place, it.miner, it.parts, encode(it))
                db.execute("INSERT INTO message VALUES (?, ?, ?, ?, ?, ?)", row)
                db.execute("INSERT INTO map VALUES (?, ?, ?, ?)", (*at, place, message.map))
            if checkpoint := advance.checkpoint:
                _keep(db, checkpoint)

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep weights that came from another node, so that a history can begin there."""
        with self.transaction() as db:
            _keep(db, checkpoint)

    def history(self, task: TaskSpec, upto: int | None = None) -> SlotHistory:
        """Return a task's history as far as it is here; it begins anew if nothing is.

        Args:
            task: its spec.
            upto: the newest slot that it shall have, with the whole of its lap; None: all of them.

        Raises:
            SlotError: ``history``: slot `upto` or the maps of its lap are not here.
            NodeDataError: what is here does not belong together.
        """
        newest = _LAST if upto is None else upto
        start = self.checkpoint(task.id, newest - newest % LAP)
        try:
            history = SlotHistory(task, self._network, start)
            while history.next_slot <= newest:
                slots = self.slots(task.id, history.next_slot, LAP, last=newest)
                for slot in slots:
                    history.add(history.check(slot.record, slot.messages))
                if not slots:
                    break
        except SlotError as exc:
            raise self.damaged(str(exc)) from exc
        if upto is not None and history.next_slot <= upto:
            raise SlotError("history", f"slot {upto} of task {task.id.hex()} is not here.")
        if upto is None:
            history.num_empty = self._num_empty(history)
        return history

    def checkpoint(self, task: bytes, slot: int) -> Checkpoint | None:
        """Return the newest weights at or before a slot; None: there are only those of slot 0."""
        query = "SELECT signed, theta FROM theta WHERE task = ? AND slot <= ? ORDER BY slot DESC LIMIT 1"
        with self.transaction() as db:
            row = db.execute(query, (task, slot)).fetchone()
        return None if row is None else Checkpoint(self.decoded(row[0], SignedCertificate), row[1])

    def checkpoint_bytes(self, task: bytes, slot: int) -> int:
        """Return how many bytes the newest weights at or before a slot have, without reading them; 0: as `checkpoint`."""
        query = "SELECT length(theta) FROM theta WHERE task = ? AND slot <= ? ORDER BY slot DESC LIMIT 1"
        with self.transaction() as db:
            row = db.execute(query, (task, slot)).fetchone()
        return 0 if row is None else int(row[0])

    def slots(
        self,
        task: bytes,
        first: int,
        limit: int,
        max_bytes: int = _LAST,
        last: int = _LAST,
        *,
        is_bare: bool = False,
    ) -> list[Slot]:
        """Return certified slots in a row from `first` on, as far as they and their maps are here.

        Args:
            task: its id.
            first, last: of the slots.
            limit: number of slots, at most.
            max_bytes: of them together, at most; but one is always allowed.
            is_bare: without their maps, so these need not be here.
        """
        found: list[Slot] = []
        size = 0
        with self.transaction() as db:
            rows = db.execute(_ROWS, (task, first, min(first + limit - 1, last)))
            for number, group in itertools.groupby(rows, key=lambda row: row[0]):
                parts = [row[1:] for row in group]
                record = self.decoded(parts[0][0], SlotRecord)
                messages = [
                    (part[1], b"" if is_bare else part[2])
                    for part in parts
                    if part[1 if is_bare else 2] is not None
                ]
                size += sum(map(len, (parts[0][0], *itertools.chain(*messages))))
                is_gap = number != first + len(found) or len(messages) != len(record.ids)
                if is_gap or (found and size > max_bytes):
                    break
                slot = [
                    IterationWithMap(self.decoded(it, Iteration), map_) for it, map_ in messages
                ]
                found.append(Slot(record, tuple(slot)))
        return found

    def newest(self) -> SignedCertificate | None:
        """Return the newest certificate, of whichever task, of those that were written last."""
        records = self.last(_LOOKED_AT)
        return records[0].signed if records else None

    def counts(self, task: bytes, slots: range) -> list[int]:
        """Return how many messages certified slots in a row have, of those of them that are here."""
        query = "SELECT record FROM record WHERE task = ? AND slot BETWEEN ? AND ?"
        with self.transaction() as db:
            rows = db.execute(query, (task, slots[0], slots[-1])).fetchall()
        return [self.decoded(record, SlotRecord).signed.certificate.count for (record,) in rows]

    def before(self, task: bytes, slot: int) -> SignedCertificate | None:
        """Return the certificate of the turn before a certified slot's, of whichever task; None: it was the first turn.

        Raises:
            SlotError: ``missing``: one of the two is not here.
        """
        query = "SELECT rowid, record FROM record WHERE task = ? AND slot = ?"
        # Records are written in the order of turns, but for those of a catching up.
        near = "SELECT record FROM record WHERE rowid BETWEEN ? AND ? ORDER BY rowid DESC"
        with self.transaction() as db:
            row = db.execute(query, (task, slot)).fetchone()
            if row is None:
                raise SlotError("missing", f"slot {slot} of task {task.hex()} is not here.")
            parent = self.decoded(row[1], SlotRecord).signed.certificate.parent
            if parent == ZERO:
                return None
            before = db.execute(query, (task, slot - 1)).fetchall()
            others = db.execute(near, (row[0] - _LOOKED_AT, row[0] + _LOOKED_AT))
            for record in (*(one for _, one in before), *(one for (one,) in others)):
                signed = self.decoded(record, SlotRecord).signed
                if signed.certificate.id == parent:
                    return signed
        raise SlotError("missing", f"the certificate before slot {slot} of task {task.hex()}.")

    def last(self, limit: int) -> list[SlotRecord]:
        """Return the newest slots of all tasks, of those that were written last; newest first, `limit` at most."""
        query = "SELECT record FROM record ORDER BY rowid DESC LIMIT ?"
        with self.transaction() as db:
            rows = db.execute(query, (limit,)).fetchall()
        records = [self.decoded(record, SlotRecord) for (record,) in rows]
        return sorted(records, key=lambda one: one.signed.certificate.turn, reverse=True)

    def tasks(self) -> dict[bytes, Certificate]:
        """Return the tasks that maps or weights are here of, each with its newest certificate."""
        query = """SELECT record FROM record JOIN (SELECT task, max(slot) AS slot FROM record WHERE task IN
            (SELECT task FROM map UNION SELECT task FROM theta) GROUP BY task) USING (task, slot)"""
        with self.transaction() as db:
            rows = db.execute(query).fetchall()
        found = [self.decoded(record, SlotRecord).signed.certificate for (record,) in rows]
        return {certificate.task: certificate for certificate in found}

    def num_slots(self, task: bytes) -> int:
        """Return the slot of a task that comes after the newest one here."""
        query = "SELECT max(slot) + 1 FROM record WHERE task = ?"
        with self.transaction() as db:
            [found] = db.execute(query, (task,)).fetchone()
        return found or 0

    def gap(self, task: bytes) -> Gap | None:
        """Return the last slots of a task that are missing before some that are here; None: all before them are here."""
        above = """SELECT slot, record FROM record AS one WHERE task = ? AND slot > 0 AND NOT EXISTS
            (SELECT 1 FROM record WHERE task = one.task AND slot = one.slot - 1) ORDER BY slot DESC LIMIT 1"""
        below = "SELECT coalesce(max(slot) + 1, 0) FROM record WHERE task = ? AND slot < ?"
        with self.transaction() as db:
            row = db.execute(above, (task,)).fetchone()
            if row is None:
                return None
            [first] = db.execute(below, (task, row[0])).fetchone()
        previous = self.decoded(row[1], SlotRecord).signed.certificate.previous
        return Gap(first, row[0], previous)

    def write_bare(self, slots: Sequence[Slot]) -> None:
        """Keep slots in a row without their maps, which end where a gap does. They are behind all that is here: what was
        written last is the newest.
        """
        with self.transaction() as db:
            [lowest] = db.execute("SELECT min(rowid) FROM record").fetchone()
            for number, slot in enumerate(reversed(slots), 1):
                certificate = slot.record.signed.certificate
                at = (certificate.task, certificate.slot)
                row = (lowest - number, *at, encode(slot.record))
                db.execute(
                    "INSERT INTO record (rowid, task, slot, record) VALUES (?, ?, ?, ?)", row
                )
                for place, message in enumerate(slot.messages):
                    it = message.iteration
                    worked = (*at, place, it.miner, it.parts, encode(it))
                    db.execute("INSERT INTO message VALUES (?, ?, ?, ?, ?, ?)", worked)

    def parts(self, task: bytes) -> list[tuple[int, bytes, int]]:
        """Return slot, miner and parts of all certified messages of a task that are here."""
        query = "SELECT slot, miner, parts FROM message WHERE task = ? ORDER BY slot, place"
        with self.transaction() as db:
            return list(db.execute(query, (task,)))

    def entries(self, task: bytes, before: int) -> list[int]:
        """Return how many entries the maps of a task's certified messages before a slot have."""
        query = "SELECT iteration FROM message WHERE task = ? AND slot < ?"
        with self.transaction() as db:
            rows = db.execute(query, (task, before)).fetchall()
        return [self.decoded(iteration, Iteration).entries for (iteration,) in rows]

    def prune(self, task: bytes, before: int, *, has_pay: bool = True) -> None:
        """Forget a task's maps and weights of slots before this one: the anchor's less KEPT_MAPS, at most.

        Args:
            task: its id.
            before: the slot that stays.
            has_pay: its messages say who is to be paid, and stay, with their records. Those of a filler go as well,
                but for its newest record, which says how far it came.
        """
        with self.transaction() as db:
            db.execute("DELETE FROM map WHERE task = ? AND slot < ?", (task, before))
            db.execute("DELETE FROM theta WHERE task = ? AND slot < ?", (task, before))
            db.execute("DELETE FROM noise WHERE task = ? AND slot < ?", (task, before))
            if not has_pay:
                db.execute("DELETE FROM message WHERE task = ? AND slot < ?", (task, before))
                newest = "SELECT max(slot) FROM record WHERE task = ?"
                query = f"DELETE FROM record WHERE task = ? AND slot < min(?, ({newest}))"  # noqa: S608
                db.execute(query, (task, before, task))

    def forget(self, epoch: int) -> list[bytes]:
        """Forget all slots from the first one of an epoch on: another committee has it by now.

        What lanes of this node have sent for the first such slot stays: it does not name that committee.

        Returns:
            The tasks that had such slots.
        """
        forgotten = []
        query = "SELECT record FROM record WHERE task = ? ORDER BY slot DESC"
        with self.transaction() as db:
            for (task,) in db.execute("SELECT DISTINCT task FROM record").fetchall():
                slots = []
                for (record,) in db.execute(query, (task,)):
                    certificate = self.decoded(record, SlotRecord).signed.certificate
                    if certificate.epoch < epoch:
                        break
                    slots.append(certificate.slot)
                if slots:
                    self._forget_from(db, task, slots[-1])
                    forgotten.append(task)
        return forgotten

    def write_noise(self, task: bytes, slot: int, lane: Lane, noise: bytes) -> None:
        """Keep what the noise of a private task's message follows from, as long as its map; what was shown first stays.

        It is on disk before what this node says next of the turn (`OwnWords.write_said`): what is written is written in order.
        """
        with self.transaction(durable=False) as db:
            row = (task, slot, *lane, noise)
            db.execute("INSERT OR IGNORE INTO noise VALUES (?, ?, ?, ?, ?)", row)

    def noise(self, task: bytes, slot: int, lane: Lane) -> bytes | None:
        """Return what the noise of a message follows from; None: this node was not shown it."""
        query = "SELECT noise FROM noise WHERE task = ? AND slot = ? AND miner = ? AND lane = ?"
        with self.transaction() as db:
            row = db.execute(query, (task, slot, *lane)).fetchone()
        return None if row is None else bytes(row[0])

    def _num_empty(self, history: SlotHistory) -> int:
        """Return how many slots just before the open one had no message."""
        query = "SELECT max(slot) FROM message WHERE task = ? AND slot < ?"
        with self.transaction() as db:
            [last] = db.execute(query, (history.task.id, history.next_slot)).fetchone()
        # The messages of a filler that is over are forgotten.
        return history.next_slot - 1 - last if last is not None else history.next_slot

    def _forget_from(self, db: sqlite3.Connection, task: bytes, first: int) -> None:
        db.execute("DELETE FROM record WHERE task = ? AND slot >= ?", (task, first))
        db.execute("DELETE FROM message WHERE task = ? AND slot >= ?", (task, first))
        db.execute("DELETE FROM map WHERE task = ? AND slot >= ?", (task, first))
        db.execute("DELETE FROM theta WHERE task = ? AND slot > ?", (task, first))
        self.own.forget_after(db, task, first)


def _keep(db: sqlite3.Connection, checkpoint: Checkpoint) -> None:
    assert checkpoint.signed is not None
    task, slot = checkpoint.signed.certificate.task, checkpoint.slot
    row = (task, slot, encode(checkpoint.signed), checkpoint.theta)
    db.execute("INSERT OR REPLACE INTO theta VALUES (?, ?, ?, ?)", row)
    db.execute(
        "DELETE FROM theta WHERE task = ? AND slot < ? AND slot % ? != 0",
        (task, slot - KEPT_LAPS * LAP, KEPT_EVERY),
    )
