"""Overview: what an owner's page shows of all that a wallet has, in few and bounded statements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import String, and_, func, not_, select, true, tuple_, type_coerce, union

from pocqueue.hosts.records import Node
from pocqueue.hosts.store.database import Database
from pocqueue.hosts.store.ledger import Entry
from pocqueue.hosts.store.rows import nodes_where
from pocqueue.hosts.tables import attempt, job, ledger, node, node_gpu, self_test

#: Nodes of a wallet that are looked at, the newest ones.
MAX_NODES: Final = 2000
#: Of a row of a self-test that failed, as `tables.Json` writes it; in a text of a row its quotes are escaped.
_FAILED: Final = '%"state":"fail"%'

#: What became of a row of the ledger: `due` is paid out next time, `held` once the owner says that the node is his.
Fate = Literal["held", "due", "paid", "forfeited"]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a node stands."""

    node: Node  #: without its GPUs
    is_busy: bool  #: has an open attempt
    is_unfit: bool  #: one of its GPUs is out, or a row of its self-test failed


@dataclass(frozen=True, slots=True)
class Work:
    """What a node is at."""

    job_id: str
    kind: str
    gpu_uuids: tuple[str, ...]  #: that the job holds


@dataclass(frozen=True, slots=True)
class Earning:
    """A row of the ledger, and what it is for."""

    entry: Entry
    hostname: str
    fate: Fate | None  #: None: it is no pay, but takes some out
    job_id: str | None = None
    job_kind: str | None = None
    seconds: int | None = None  #: from the message to the result


@dataclass(frozen=True, slots=True)
class Overview:
    """Reads for the page; changes nothing."""

    _db: Database

    def standings(self, address: str) -> list[Standing]:
        """Return how the nodes of a wallet stand, newest first, without those that were revoked."""
        mine = and_(node.c.wallet == address, node.c.state != "revoked")
        query = select(node).where(mine).order_by(node.c.first_ms.desc(), node.c.id)
        busy = (
            select(attempt.c.node_id)
            .join(node, node.c.id == attempt.c.node_id)
            .where(attempt.c.ended_ms.is_(None), mine)
        )
        out = (
            select(node_gpu.c.node_id)
            .join(node, node.c.id == node_gpu.c.node_id)
            .where(not_(node_gpu.c.healthy), mine)
        )
        failed = (
            select(self_test.c.node_id)
            .join(node, node.c.id == self_test.c.node_id)
            .where(type_coerce(self_test.c.rows, String).like(_FAILED), mine)
        )
        with self._db.read() as connection:
            rows = connection.execute(query.limit(MAX_NODES)).mappings().all()
            at_work = set(connection.execute(busy).scalars())
            unfit = set(connection.execute(union(out, failed)).scalars())
        return [
            Standing(
                Node(**(dict(row) | {"kinds": tuple(row["kinds"])})),
                row["id"] in at_work,
                row["id"] in unfit,
            )
            for row in rows
        ]

    def nodes(self, node_ids: Sequence[str]) -> dict[str, Node]:
        """Return nodes with their GPUs, by id."""
        with self._db.read() as connection:
            return {one.id: one for one in nodes_where(connection, node.c.id.in_(node_ids))}

    def self_tests(self, node_ids: Sequence[str]) -> dict[str, list[Any]]:
        """Return the rows of the newest self-test of nodes, by id; without those that have none."""
        query = select(self_test.c.node_id, self_test.c.rows)
        with self._db.read() as connection:
            rows = connection.execute(query.where(self_test.c.node_id.in_(node_ids)))
            return {node_id: found for node_id, found in rows}

    def work(self, node_ids: Sequence[str]) -> dict[str, list[Work]]:
        """Return what nodes are at, by id, the oldest first."""
        found: dict[str, list[Work]] = defaultdict(list)
        query = (
            select(attempt.c.node_id, attempt.c.job_id, job.c.kind, attempt.c.gpu_uuids)
            .join(job, job.c.id == attempt.c.job_id)
            .where(attempt.c.ended_ms.is_(None), attempt.c.node_id.in_(node_ids))
            .order_by(attempt.c.leased_ms, attempt.c.job_id)
        )
        with self._db.read() as connection:
            for node_id, job_id, kind, gpus in connection.execute(query):
                found[node_id].append(Work(job_id, kind, tuple(gpus)))
        return dict(found)

    def earnings(
        self, address: str, *, before: int | None = None, limit: int = 50
    ) -> list[Earning]:
        """Return the rows of a wallet's ledger with what they are for, newest first.

        Args:
            before: only rows with a lower id: for the next page, that of the last row.
        """
        older = true() if before is None else ledger.c.id < before
        query = (
            select(ledger, node.c.hostname, node.c.proven)
            .join(node, node.c.id == ledger.c.node_id)
            .where(ledger.c.wallet == address, older)
            .order_by(ledger.c.id.desc())
            .limit(limit)
        )
        with self._db.read() as connection:
            rows = connection.execute(query).mappings().all()
            facts = self._facts(connection, [row["ref"] for row in rows if row["kind"] == "job"])
            taken = self._taken(connection, {row["node_id"] for row in rows})
        return [_earning(row, facts.get(row["ref"]), taken) for row in rows]

    def ledger_mark(self, address: str) -> tuple[int, int]:
        """Return number and newest id of a wallet's rows in the ledger: while they stay, so do its sums."""
        query = select(func.count(), func.max(ledger.c.id)).where(ledger.c.wallet == address)
        with self._db.read() as connection:
            num, newest = connection.execute(query).one()
        return num, newest or 0

    def _taken(self, connection: Any, node_ids: Collection[str]) -> dict[tuple[str, str], int]:
        """Return the newest payout and the newest forfeit of nodes, by node and kind.

        Not a part of the other statement: it would be worked out for each row of a wallet.
        """
        kinds = ["payout", "forfeit"]
        query = (
            select(ledger.c.node_id, ledger.c.kind, func.max(ledger.c.id))
            .where(ledger.c.node_id.in_(list(node_ids)), ledger.c.kind.in_(kinds))
            .group_by(ledger.c.node_id, ledger.c.kind)
        )
        return {(node_id, kind): newest for node_id, kind, newest in connection.execute(query)}

    def _facts(self, connection: Any, refs: Sequence[str]) -> dict[str, Any]:
        """Return the attempts that rows are for, by `ref`."""
        wanted = {ref: _attempt_of(ref) for ref in refs}
        query = (
            select(attempt.c.job_id, attempt.c.n, attempt.c.sent_ms, attempt.c.ended_ms, job.c.kind)
            .join(job, job.c.id == attempt.c.job_id)
            .where(tuple_(attempt.c.job_id, attempt.c.n).in_(list(wanted.values())))
        )
        found = {(row.job_id, row.n): row for row in connection.execute(query)} if wanted else {}
        return {ref: found[key] for ref, key in wanted.items() if key in found}


def _attempt_of(ref: str) -> tuple[str, int]:
    """Return job and number of the attempt that a row is for.

    >>> _attempt_of("attempt:JOB:2")
    ('JOB', 2)
    """
    _, job_id, n = ref.split(":")
    return job_id, int(n)


def _earning(row: Any, turn: Any, taken: Mapping[tuple[str, str], int]) -> Earning:
    entry = Entry(**{name: row[name] for name in Entry.__slots__})
    fate: Fate | None = "due" if row["proven"] else "held"
    if entry.kind in {"payout", "forfeit"}:
        fate = None
    # A payout, and a forfeit, takes out all that its node has by then: what has a lower number is in it.
    elif entry.id < taken.get((entry.node_id, "payout"), 0):
        fate = "paid"
    elif entry.id < taken.get((entry.node_id, "forfeit"), 0):
        fate = "forfeited"
    if turn is None:
        return Earning(entry, row["hostname"], fate)
    seconds = None
    if turn.sent_ms is not None and turn.ended_ms is not None:
        seconds = (turn.ended_ms - turn.sent_ms) // 1000
    return Earning(entry, row["hostname"], fate, turn.job_id, turn.kind, seconds)
