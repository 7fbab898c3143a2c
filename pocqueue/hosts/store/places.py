"""Places: which node gets a job that waits. What is decided about stands in `hosts.placement`.

A job is given in one transaction, which holds the job and the node: each has it to himself or passes on.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, and_, func, insert, not_, or_, select, true, update

from pocqueue.hosts.leases import LEASE_MS, LOST, JobState, Outcome
from pocqueue.hosts.placement import Candidate, Crowd, Need, Place, place
from pocqueue.hosts.records import POLLS, Attempt, Gpu, Job
from pocqueue.hosts.reputation import KNOWN_STREAK, Reputation
from pocqueue.hosts.store.database import Database
from pocqueue.hosts.store.rows import as_job, as_reputation, one_attempt
from pocqueue.hosts.tables import attempt, job, node, node_gpu, reputation, wallet

#: Nodes that are looked at for a job before all of them are: some, and more where none of these will do.
SAMPLES: Final = (50, 500)
#: Columns of a node that its choice depends on.
_OF_NODE: Final = ("id", "wallet", "address", "protocol", "kinds", "proven")
_GONE: Final = "The node that it was for has left for good."


@dataclass(frozen=True, slots=True)
class Places:
    """Gives jobs to nodes."""

    _db: Database
    _now_ms: Callable[[], int]
    offline_ms: int  #: silence after which a node gets no job

    def place(self, job_id: str) -> Attempt | str | None:
        """Give a queued job to a node.

        Returns:
            The attempt, to be delivered by its `relay`; or in one sentence why the job waits; None: it does
            not wait any more, or another process is placing it now.
        """
        with self._db.write() as connection:
            waiting = select(job).where(job.c.id == job_id, job.c.state == JobState.QUEUED)
            row = (
                connection.execute(waiting.with_for_update(skip_locked=True, key_share=True))
                .mappings()
                .first()
            )
            if row is None:
                return None
            found = as_job(row)
            choice = self._choose(connection, found)
            if isinstance(choice, str):
                if found.reason != choice:
                    connection.execute(update(job).where(job.c.id == job_id).values(reason=choice))
                return choice
            return self._lease(connection, found, *choice)

    def place_waiting(self, *, limit: int = 1000) -> Iterator[Attempt]:
        """Give the jobs that wait to nodes, as far as there are any; give out each attempt as it is made.

        Where a job finds no node, others that ask for the same are not looked at again; those for one node that
        takes no jobs now are not looked at.

        Args:
            limit: jobs that are looked at; the first ones by priority, then by age.
        """
        columns = (
            job.c.id,
            job.c.attempts,
            job.c.kind,
            job.c.gpus,
            job.c.vram_mib,
            job.c.only_node,
        )
        there = select(node.c.id).where(*self._takes_jobs())
        queue = select(*columns, job.c.spec).where(
            job.c.state == JobState.QUEUED,
            or_(job.c.only_node.is_(None), job.c.only_node.in_(there)),
        )
        order = job.c.priority.desc(), job.c.created_ms
        with self._db.read() as connection:
            rows = connection.execute(queue.order_by(*order).limit(limit)).all()
        in_vain = set()
        for row in rows:
            asks = (row.kind, row.gpus, row.vram_mib, row.only_node, row.spec.get("text") is None)
            # One that was tried has a history of its own.
            if row.attempts == 0 and asks in in_vain:
                continue
            found = self.place(row.id)
            if isinstance(found, Attempt):
                yield found
            elif isinstance(found, str) and row.attempts == 0:
                in_vain.add(asks)

    def end_stranded(self) -> int:
        """End the jobs that wait for a node that can never be back; return how many.

        That is one that was revoked or banned, or has no key and has lost its connection. One that polls has none
        to lose.
        """
        gone = select(node.c.id).where(
            or_(
                node.c.state.in_(["revoked", "banned"]),
                and_(node.c.key.is_(None), node.c.relay.is_(None), node.c.protocol != POLLS),
            )
        )
        stranded = and_(job.c.state == JobState.QUEUED, job.c.only_node.in_(gone))
        with self._db.read() as connection:
            if connection.execute(select(job.c.id).where(stranded).limit(1)).first() is None:
                return 0
        values = {"state": JobState.FAILED, "reason": _GONE, "ended_ms": self._now_ms()}
        with self._db.write() as connection:
            # Of two gateways that sweep, neither waits for rows of the other.
            self._db.one_at_a_time(connection)
            return connection.execute(update(job).where(stranded).values(values)).rowcount

    def _choose(self, connection: Connection, found: Job) -> tuple[Place, str] | str:
        """Choose a node for a job and hold its row; return where, and the node's gateway, or why there is none.

        Of many nodes some are looked at, by chance, and all of them only where none of these will do.
        """
        need = Need(
            found.id,
            found.kind,
            found.gpus,
            found.vram_mib,
            found.only_node,
            found.spec.get("text") is not None,
        )
        choice: Place | str = ""
        for limit in (*SAMPLES, None):
            nodes = self._candidates(connection, found, limit)
            is_all = limit is None or len(nodes) < limit
            crowd = self._crowd(connection, found.kind, next(iter(nodes.values()), None))
            while isinstance(choice := place(need, list(nodes.values()), crowd), Place):
                if (relay := self._held(connection, choice.node_id)) is None:
                    del nodes[choice.node_id]
                    continue
                # Others may have given it jobs since it was read.
                was = nodes[choice.node_id]
                now = _loaded(connection, {was.node_id: was})[was.node_id]
                if now == was:
                    return choice, relay
                nodes[was.node_id] = now
            if is_all:
                break
        assert isinstance(choice, str)
        return choice

    def _takes_jobs(self) -> tuple[Any, ...]:
        now_ms = self._now_ms()
        return (*_takes_jobs(now_ms), node.c.last_ms >= now_ms - self.offline_ms)

    def _crowd(self, connection: Connection, kind: str, one: Candidate | None) -> Crowd:
        """Return the open work of all nodes, by owner and by whether they are known for a kind of job.

        Args:
            one: any of them, to see whether there are others beside its owner; None: there is none.
        """
        is_known = func.coalesce(reputation.c.streak, 0) >= KNOWN_STREAK
        same = and_(reputation.c.node_id == node.c.id, reputation.c.kind == kind)
        rows = connection.execute(
            select(node.c.wallet, node.c.address, is_known, func.count())
            .join(attempt, attempt.c.node_id == node.c.id)
            .outerjoin(reputation, same)
            .where(attempt.c.ended_ms.is_(None))
            .group_by(node.c.wallet, node.c.address, is_known)
        ).all()

        def has_others(column: Any, than: str) -> bool:
            # Nearly always the first row that is looked at; to count them takes all rows.
            other = select(column).where(*self._takes_jobs(), column != than).limit(1)
            return connection.execute(other).first() is not None

        return Crowd(
            [(*row,) for row in rows],
            has_wallets=one is not None and has_others(node.c.wallet, one.wallet),
            has_addresses=one is not None and has_others(node.c.address, one.address),
        )

    def _candidates(
        self, connection: Connection, found: Job, limit: int | None
    ) -> dict[str, Candidate]:
        """Return nodes that take jobs now, by id, with what their choice depends on.

        Args:
            limit: so many at most, by chance; None: all of them.
        """
        now_ms = self._now_ms()
        which = true() if found.only_node is None else node.c.id == found.only_node
        before: dict[str, set[str]] = defaultdict(set)
        failers = set()
        tried = (
            select(attempt.c.node_id, attempt.c.outcome, node.c.wallet)
            .join(node, node.c.id == attempt.c.node_id)
            .where(attempt.c.job_id == found.id)
        )
        for node_id, outcome, owner in connection.execute(tried):
            before[node_id].add(outcome)
            if outcome == Outcome.FAILED:
                failers.add(owner)
        there = (
            select(*(node.c[name] for name in _OF_NODE))
            .join(wallet, wallet.c.address == node.c.wallet)
            .where(which, *self._takes_jobs(), wallet.c.banned_ms.is_(None))
            .order_by(node.c.id)
        )
        # Ids are chance themselves: who comes behind a new one, and from the first one on, is as good as drawn, and
        # their index gives them out without a look at all others.
        start = str(uuid.uuid4())
        parts = [node.c.id >= start, node.c.id < start]
        if failers:
            # Somebody else's first, so that a crowd of the same owner does not hide them.
            theirs = node.c.wallet.in_(failers)
            parts = [and_(part, whose) for whose in (not_(theirs), theirs) for part in parts]
        rows: list[Any] = []
        for part in parts:
            left = None if limit is None else limit - len(rows)
            if left != 0:
                rows += connection.execute(there.where(part).limit(left))

        def mine(column: Any) -> Any:
            # An IN of thousands is slower than all of them, and more than a statement may have.
            return column.in_([row.id for row in rows]) if len(rows) <= SAMPLES[-1] else true()

        gpus: dict[str, list[Gpu]] = defaultdict(list)
        columns = [node_gpu.c[name] for name in Gpu.__slots__]
        healthy = select(node_gpu.c.node_id, *columns).where(
            node_gpu.c.healthy, mine(node_gpu.c.node_id)
        )
        for node_id, *values in connection.execute(healthy):
            gpus[node_id].append(Gpu(*values))
        of_kind = select(reputation).where(
            reputation.c.kind == found.kind, mine(reputation.c.node_id)
        )
        known = {row.node_id: as_reputation(row).at(now_ms) for row in connection.execute(of_kind)}
        nothing = Reputation()
        return _loaded(
            connection,
            {
                row.id: Candidate(
                    row.id,
                    row.wallet,
                    row.address,
                    row.protocol,
                    tuple(row.kinds),
                    tuple(gpus[row.id]),
                    proven=row.proven,
                    score=known.get(row.id, nothing).score,
                    is_known=known.get(row.id, nothing).is_known,
                    lost_it=bool(before[row.id] & {*LOST, Outcome.FAILED}),
                    is_failers=row.wallet in failers,
                    refused_it=Outcome.REFUSED in before[row.id],
                )
                for row in rows
            },
        )

    def _held(self, connection: Connection, node_id: str) -> str | None:
        """Hold a node's row until the transaction ends; return its gateway, None if it takes no jobs any more."""
        row = select(node.c.relay).where(node.c.id == node_id, *_takes_jobs(self._now_ms()))
        relay: str | None = connection.execute(
            row.with_for_update(skip_locked=True, key_share=True)
        ).scalar()
        return relay

    def _lease(self, connection: Connection, found: Job, choice: Place, relay: str) -> Attempt:
        now_ms = self._now_ms()
        n = found.attempts + 1
        row = {
            "job_id": found.id,
            "n": n,
            "node_id": choice.node_id,
            "relay": relay,
            "gpu_uuids": list(choice.gpu_uuids),
            "leased_ms": now_ms,
            "lease_until_ms": now_ms + LEASE_MS,
            "micro": 0,
        }
        connection.execute(insert(attempt).values(row))
        values = {"state": JobState.LEASED, "attempts": n, "reason": None}
        connection.execute(update(job).where(job.c.id == found.id).values(values))
        turn = one_attempt(connection, found.id, n)
        assert turn is not None
        return turn


def _takes_jobs(now_ms: int) -> tuple[Any, ...]:
    return (
        node.c.relay.is_not(None),
        node.c.state == "active",
        func.coalesce(node.c.paused_until_ms, 0) <= now_ms,
    )


def _loaded(connection: Connection, nodes: Mapping[str, Candidate]) -> dict[str, Candidate]:
    """Return candidates with the jobs that they have now."""
    only = attempt.c.node_id.in_(list(nodes)) if len(nodes) <= SAMPLES[-1] else true()
    query = select(attempt.c.node_id, attempt.c.gpu_uuids).where(attempt.c.ended_ms.is_(None), only)
    taken: dict[str, list[list[str]]] = defaultdict(list)
    for node_id, uuids in connection.execute(query):
        taken[node_id].append(uuids)
    return {
        node_id: replace(
            one,
            num_open=len(taken[node_id]),
            taken=frozenset(gpu for uuids in taken[node_id] for gpu in uuids),
        )
        for node_id, one in nodes.items()
    }
