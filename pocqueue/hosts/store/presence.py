"""Presence: which nodes are there, on which gateway's socket, and at what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import get_args

from sqlalchemy import and_, bindparam, case, func, not_, select, true, update

from pocqueue.hosts.leases import LEASE_MS, POLL_LEASE_MS
from pocqueue.hosts.records import Beat, NodeStatus
from pocqueue.hosts.store.bans import end_leases
from pocqueue.hosts.store.database import Database
from pocqueue.hosts.tables import attempt, node


@dataclass(frozen=True, slots=True)
class Presence:
    """The nodes' connections."""

    _db: Database
    _now_ms: Callable[[], int]
    _offline_ms: int  #: silence after which a node is offline

    def connected(self, node_id: str, relay: str, socket: str) -> tuple[str, str] | None:
        """Note a node's connection, which takes the place of the one that it had.

        Args:
            relay: the gateway that has it.
            socket: an id of the connection that no other has.

        Returns:
            Gateway and id of the connection that it replaces, which is to be closed; None: there was none.
        """
        with self._db.write() as connection:
            row = select(node.c.relay, node.c.socket).where(node.c.id == node_id)
            before = connection.execute(row.with_for_update(key_share=True)).first()
            values = {"relay": relay, "socket": socket, "last_ms": self._now_ms()}
            connection.execute(update(node).where(node.c.id == node_id).values(values))
        if before is None or before.relay is None or before.socket == socket:
            return None
        return before.relay, before.socket

    def disconnected(self, node_id: str, socket: str) -> None:
        """Note that a connection has ended; one that was replaced changes nothing.

        Agents of protocol 1 cannot come back as the same node: their leases end with it. Others have as long as
        any silent node to be back, which resumes them.
        """
        now_ms = self._now_ms()
        with self._db.write() as connection:
            about = {"b_id": node_id, "b_socket": socket, "b_ms": now_ms}
            gone = connection.execute(_GONE, about).first()
            if gone is not None:
                until_ms = now_ms if gone.key is None else now_ms + self._offline_ms
                end_leases(connection, node_id, until_ms)

    def relay_started(self, relay: str) -> None:
        """Note that a gateway begins anew: its connections are gone, and its nodes get a lease's time to be back."""
        until_ms = self._now_ms() + LEASE_MS
        mine = and_(attempt.c.relay == relay, attempt.c.ended_ms.is_(None))
        with self._db.write() as connection:
            connection.execute(
                update(node).where(node.c.relay == relay).values(relay=None, socket=None)
            )
            connection.execute(
                update(attempt)
                .where(mine, attempt.c.lease_until_ms < until_ms)
                .values(lease_until_ms=until_ms)
            )

    def heard(self, beats: Sequence[Beat]) -> None:
        """Note that nodes were heard, and renew the leases of the jobs that they named, or were sent if they poll.

        For many at a time: a gateway calls it every few seconds. A lease is renewed on the node that has
        it, and never beyond the job's time-out and grace.
        """
        if not beats:
            return
        now_ms = self._now_ms()
        until_ms, poll_until_ms = now_ms + LEASE_MS, now_ms + POLL_LEASE_MS
        seen = [{"b_id": one.node_id, "b_socket": one.socket, "b_ms": one.at_ms} for one in beats]
        jobs = [
            {"b_id": one.node_id, "b_job": job_id, "b_until": until_ms}
            for one in beats
            for job_id in one.job_ids
        ]
        polling = [{"b_id": one.node_id, "b_until": poll_until_ms} for one in beats if one.polls]
        # Transactions of their own: none holds nodes and attempts of many at a time.
        with self._db.write() as connection:
            connection.execute(_HEARD, sorted(seen, key=itemgetter("b_id")))
        if jobs:
            with self._db.write() as connection:
                connection.execute(RENEW, sorted(jobs, key=itemgetter("b_job")))
        if polling:
            with self._db.write() as connection:
                connection.execute(_RENEW_ALL, sorted(polling, key=itemgetter("b_id")))

    def out_on(self, relay: str) -> set[str]:
        """Return the nodes that a gateway has and that were revoked or banned meanwhile."""
        with self._db.read() as connection:
            return set(connection.execute(_OUT_ON, {"b_relay": relay}).scalars())

    def busy(self, node_ids: Iterable[str] | None = None) -> set[str]:
        """Return which nodes have an open attempt, of these or (None) of all."""
        which = true() if node_ids is None else attempt.c.node_id.in_(list(node_ids))
        open_ones = select(attempt.c.node_id).where(attempt.c.ended_ms.is_(None), which)
        with self._db.read() as connection:
            return set(connection.execute(open_ones).scalars())

    def counts(self) -> dict[str, int]:
        """Count the nodes by status (`Node.status`), with 0 for those that there are none of."""
        now_ms = self._now_ms()
        at_work = select(attempt.c.node_id).where(attempt.c.ended_ms.is_(None))
        busy = node.c.id.in_(at_work)
        silent = node.c.last_ms < now_ms - self._offline_ms
        status = case(
            (node.c.state.in_(["banned", "revoked"]), node.c.state),
            (node.c.relay.is_(None), "offline"),
            (and_(silent, not_(and_(busy, node.c.protocol == 1))), "offline"),
            (node.c.state == "draining", "draining"),
            (node.c.paused_until_ms > now_ms, "paused"),
            (busy, "busy"),
            else_="online",
        )
        each = select(status.label("status")).subquery()
        query = select(each.c.status, func.count()).group_by(each.c.status)
        with self._db.read() as connection:
            found = {name: num for name, num in connection.execute(query)}
        return dict.fromkeys(get_args(NodeStatus), 0) | found


_HEARD = (
    update(node)
    .where(node.c.id == bindparam("b_id"), node.c.socket == bindparam("b_socket"))
    .values(last_ms=bindparam("b_ms"))
)
_GONE = (
    update(node)
    .where(node.c.id == bindparam("b_id"), node.c.socket == bindparam("b_socket"))
    .values(relay=None, socket=None, last_ms=bindparam("b_ms"))
    .returning(node.c.key)
)
_OUT_ON = select(node.c.id).where(
    node.c.relay == bindparam("b_relay"), node.c.state.in_(["revoked", "banned"])
)
_RENEW_ALL = (
    update(attempt)
    .where(
        attempt.c.node_id == bindparam("b_id"),
        attempt.c.sent_ms.is_not(None),
        attempt.c.ended_ms.is_(None),
        attempt.c.lease_until_ms < bindparam("b_until"),
    )
    .values(
        lease_until_ms=case(
            (attempt.c.hard_until_ms < bindparam("b_until"), attempt.c.hard_until_ms),
            else_=bindparam("b_until"),
        )
    )
)
#: The lease of a job `b_job` that a node `b_id` has named, until `b_until`, in milliseconds.
RENEW = _RENEW_ALL.where(attempt.c.job_id == bindparam("b_job"))
