"""Nodes: how they come in, what they have, whether they are there."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    case,
    delete,
    insert,
    select,
    true,
    update,
)

from pocqueue.hosts.errors import TokenRefused, UnknownNode
from pocqueue.hosts.leases import LEASE_MS
from pocqueue.hosts.node_keys import check_public_key
from pocqueue.hosts.records import Beat, Gpu, HostFacts, Node, NodeState, SelfTest
from pocqueue.hosts.store.bans import ban_node, end_leases
from pocqueue.hosts.store.database import Database
from pocqueue.hosts.store.log import note
from pocqueue.hosts.store.owners import digest, use_token
from pocqueue.hosts.store.rows import gpus_of, nodes_where, one_node
from pocqueue.hosts.tables import attempt, gpu_load, node, node_gpu, self_test, token

#: One point of a GPU's load: the mean of so long.
LOAD_STEP_MS: Final = 900_000
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes, their GPUs and their connections."""

    _db: Database
    _now_ms: Callable[[], int]
    _offline_ms: int  #: silence after which a node is offline

    # Coming in

    def register(
        self, token_text: str, facts: HostFacts, *, address: str, key: str | None = None
    ) -> Node:
        """Let a machine in with its token, which is used up by it; two at a time: one of them.

        A token that was used lets in again whoever has the key of the node that it let in: the answer may
        have been lost.

        Args:
            token_text: as the machine sent it.
            facts: what it says of itself.
            address: network address that it comes from.
            key: its public key, whose secret it has shown to have; None: today's agents.

        Raises:
            TokenRefused: "Invalid token", "Token already used", "Token expired".
            NodeKeyError: the key is none.
        """
        if key is not None:
            check_public_key(key)
        node_id, now_ms = str(uuid.uuid4()), self._now_ms()
        with self._db.write() as connection:
            try:
                owner, proven = use_token(connection, token_text, node_id, now_ms)
            except TokenRefused:
                known = select(token.c.node_id).where(token.c.hash == digest(token_text))
                with_key = and_(node.c.id == known.scalar_subquery(), node.c.key == key)
                again = connection.execute(select(node.c.id).where(with_key)).scalar()
                if key is None or again is None:
                    raise
                return self._updated(connection, again, facts, address, now_ms)
            row = {
                "id": node_id,
                "wallet": owner,
                "proven": proven,
                "state": "active",
                "key": key,
                "address": address,
                "first_ms": now_ms,
                "last_ms": now_ms,
            }
            connection.execute(insert(node).values(**row, **_row(facts)))
            _set_gpus(connection, node_id, facts.gpus)
            return one_node(connection, node_id)

    def update(self, node_id: str, facts: HostFacts, *, address: str) -> Node:
        """Note what a known node says of itself when it comes back; GPUs keep what their self-test found.

        Raises:
            UnknownNode: there is none, or it was revoked or banned.
        """
        with self._db.write() as connection:
            return self._updated(connection, node_id, facts, address, self._now_ms())

    def of_token(self, token_text: str) -> Node:
        """Return the node that a token has let in: for agents that have nothing but their token.

        Raises:
            UnknownNode: there is none, or it was revoked or banned.
        """
        with self._db.read() as connection:
            known = select(token.c.node_id).where(token.c.hash == digest(token_text))
            node_id = connection.execute(known).scalar()
            found = one_node(connection, node_id or "")
        if found.state in {"revoked", "banned"}:
            raise UnknownNode
        return found

    def set_key(self, node_id: str, key: str) -> None:
        """Give a node another key, whose secret it has shown to have.

        Raises:
            NodeKeyError: the key is none.
            UnknownNode: there is no such node.
        """
        check_public_key(key)
        with self._db.write() as connection:
            changed = connection.execute(
                update(node).where(node.c.id == node_id, node.c.state != "banned").values(key=key)
            )
            if changed.rowcount == 0:
                raise UnknownNode
            note(connection, self._now_ms(), node_id, "node.key", node_id)

    # Being there

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
            gone = connection.execute(
                update(node)
                .where(node.c.id == node_id, node.c.socket == socket)
                .values(relay=None, socket=None, last_ms=now_ms)
                .returning(node.c.key)
            ).first()
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
        """Note that nodes were heard, and renew the leases of the jobs that they named.

        For many at a time: a gateway calls it every few seconds. A lease is renewed on the node that has
        it, and never beyond the job's time-out and grace.
        """
        if not beats:
            return
        until_ms = self._now_ms() + LEASE_MS
        seen = [{"b_id": one.node_id, "b_socket": one.socket, "b_ms": one.at_ms} for one in beats]
        jobs = [
            {"b_id": one.node_id, "b_job": job_id, "b_until": until_ms}
            for one in beats
            for job_id in one.job_ids
        ]
        # Two transactions: none holds nodes and attempts of many at a time.
        with self._db.write() as connection:
            connection.execute(_HEARD, sorted(seen, key=itemgetter("b_id")))
        if jobs:
            with self._db.write() as connection:
                connection.execute(_RENEW, sorted(jobs, key=itemgetter("b_job")))

    # Looking

    def get(self, node_id: str) -> Node:
        """Return a node.

        Raises:
            UnknownNode: there is none.
        """
        with self._db.read() as connection:
            return one_node(connection, node_id)

    def of_wallet(self, address: str, *, limit: int = 1000) -> list[Node]:
        """Return the nodes of a wallet that were not revoked, newest first."""
        mine = and_(node.c.wallet == address, node.c.state != "revoked")
        with self._db.read() as connection:
            return nodes_where(connection, mine, limit=limit)

    def listed(self, *, after: str | None = None, limit: int = 100) -> list[Node]:
        """Return nodes by id; `after` is that of the last one of the page before."""
        behind = true() if after is None else node.c.id > after
        with self._db.read() as connection:
            return nodes_where(connection, behind, by_id=True, limit=limit)

    def connected_to(self, relay: str | None = None) -> list[Node]:
        """Return the nodes that have a connection, to one gateway or (None) to any."""
        there = node.c.relay.is_not(None) if relay is None else node.c.relay == relay
        with self._db.read() as connection:
            return nodes_where(connection, there)

    def busy(self, node_ids: Iterable[str] | None = None) -> set[str]:
        """Return which nodes have an open attempt, of these or (None) of all."""
        which = true() if node_ids is None else attempt.c.node_id.in_(list(node_ids))
        open_ones = select(attempt.c.node_id).where(attempt.c.ended_ms.is_(None), which)
        with self._db.read() as connection:
            return set(connection.execute(open_ones).scalars())

    # What it has

    def set_self_test(self, node_id: str, rows: list[Any], unhealthy: Mapping[str, str]) -> None:
        """Keep a node's self-test in place of the one before.

        Args:
            rows: as the agent sent them; shown as they are.
            unhealthy: GPUs that get no job, by uuid, with the reason; all others of the node are healthy.

        Raises:
            UnknownNode: there is no such node.
        """
        now_ms = self._now_ms()
        with self._db.write() as connection:
            uuids = [gpu.uuid for gpu in one_node(connection, node_id).gpus]
            new = self._db.insert(self_test).values(node_id=node_id, at_ms=now_ms, rows=rows)
            connection.execute(
                new.on_conflict_do_update(
                    index_elements=["node_id"], set_={"at_ms": now_ms, "rows": rows}
                )
            )
            for gpu in uuids:
                connection.execute(
                    update(node_gpu)
                    .where(node_gpu.c.node_id == node_id, node_gpu.c.uuid == gpu)
                    .values(healthy=gpu not in unhealthy, reason=unhealthy.get(gpu))
                )

    def self_test(self, node_id: str) -> SelfTest | None:
        """Return the newest self-test of a node; None: there is none."""
        query = select(self_test.c.at_ms, self_test.c.rows).where(self_test.c.node_id == node_id)
        with self._db.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else SelfTest(*row)

    def add_loads(self, loads: Mapping[tuple[str, str], float]) -> None:
        """Add a sample of the load of GPUs, in percent, by (node id, uuid), to the quarter of an hour that it is."""
        from_ms = self._now_ms() // LOAD_STEP_MS * LOAD_STEP_MS
        new = self._db.insert(gpu_load)
        old, sent = gpu_load.c, new.excluded
        mean = (old.percent * old.samples + sent.percent) / (old.samples + 1)
        query = new.on_conflict_do_update(
            index_elements=["node_id", "uuid", "from_ms"],
            set_={"percent": mean, "samples": old.samples + 1},
        )
        rows = [
            {"node_id": of, "uuid": gpu, "from_ms": from_ms, "percent": percent, "samples": 1}
            for (of, gpu), percent in loads.items()
        ]
        if rows:
            with self._db.write() as connection:
                connection.execute(query, rows)

    def loads(self, node_ids: Sequence[str]) -> dict[tuple[str, str], list[tuple[int, float]]]:
        """Return the last day's load of nodes' GPUs, by (node id, uuid): start of the quarter and percent."""
        found: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
        since = gpu_load.c.from_ms > self._now_ms() - _DAY_MS
        query = select(gpu_load).where(gpu_load.c.node_id.in_(node_ids), since)
        with self._db.read() as connection:
            for row in connection.execute(query.order_by(gpu_load.c.from_ms)):
                found[row.node_id, row.uuid].append((row.from_ms, row.percent))
        return dict(found)

    # What its owner or an admin decides

    def set_state(
        self, node_id: str, state: NodeState, *, actor: str, wallet: str | None = None
    ) -> Node:
        """Drain a node, take it back, revoke or ban it; return it as it is then.

        A node that is revoked or banned loses its jobs at once; one that is banned loses what it was not
        paid yet, too, and stays banned.

        Args:
            actor: a wallet, ``admin`` or ``server``.
            wallet: whose node it has to be; None: anybody's.

        Raises:
            UnknownNode: there is none, it is not that wallet's, or it is banned or revoked for good.
        """
        now_ms = self._now_ms()
        final = ["banned"] if state == "banned" else ["banned", "revoked"]
        mine = true() if wallet is None else node.c.wallet == wallet
        with self._db.write() as connection:
            is_there = connection.execute(
                select(node.c.state)
                .where(node.c.id == node_id, mine)
                .with_for_update(key_share=True)
            ).scalar()
            if is_there is None or (is_there in final and is_there != state):
                raise UnknownNode
            if is_there == state:
                return one_node(connection, node_id)
            if state == "banned":
                ban_node(self._db, connection, node_id, now_ms)
            else:
                connection.execute(update(node).where(node.c.id == node_id).values(state=state))
                if state == "revoked":
                    end_leases(connection, node_id, now_ms)
            note(connection, now_ms, actor, f"node.{state}", node_id)
            return one_node(connection, node_id)

    def adopt(self, node_id: str, *, wallet: str) -> Node:
        """Let the owner of a proven wallet say that a node is his: its pay is held no more.

        Raises:
            UnknownNode: it is not of this wallet.
        """
        with self._db.write() as connection:
            changed = connection.execute(
                update(node)
                .where(node.c.id == node_id, node.c.wallet == wallet)
                .values(proven=True)
            )
            if changed.rowcount == 0:
                raise UnknownNode
            note(connection, self._now_ms(), wallet, "node.adopt", node_id)
            return one_node(connection, node_id)

    def forget(self) -> None:
        """Delete load that is older than a day."""
        with self._db.write() as connection:
            old = gpu_load.c.from_ms < self._now_ms() - _DAY_MS
            connection.execute(delete(gpu_load).where(old))

    def _updated(
        self, connection: Connection, node_id: str, facts: HostFacts, address: str, now_ms: int
    ) -> Node:
        known = and_(node.c.id == node_id, node.c.state.not_in(["revoked", "banned"]))
        changed = connection.execute(
            update(node).where(known).values(address=address, last_ms=now_ms, **_row(facts))
        )
        if changed.rowcount == 0:
            raise UnknownNode
        _set_gpus(connection, node_id, facts.gpus)
        return one_node(connection, node_id)


_HEARD = (
    update(node)
    .where(node.c.id == bindparam("b_id"), node.c.socket == bindparam("b_socket"))
    .values(last_ms=bindparam("b_ms"))
)
_RENEW = (
    update(attempt)
    .where(
        attempt.c.node_id == bindparam("b_id"),
        attempt.c.job_id == bindparam("b_job"),
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


def _row(facts: HostFacts) -> dict[str, Any]:
    return {
        "hostname": facts.hostname,
        "os": facts.os,
        "protocol": facts.protocol,
        "agent_version": facts.agent_version,
        "isolation": facts.isolation,
        "kinds": list(facts.kinds),
    }


def _set_gpus(connection: Connection, node_id: str, gpus: Sequence[Gpu]) -> None:
    """Write the GPUs that a node has now; those that it had before keep what their self-test found."""
    before = {gpu.uuid: gpu for gpu in gpus_of(connection, [node_id])[node_id]}
    rows = []
    for position, gpu in enumerate(gpus):
        if (old := before.get(gpu.uuid)) is not None:
            gpu = replace(gpu, healthy=old.healthy, reason=old.reason)
        values = {name: getattr(gpu, name) for name in Gpu.__slots__}
        rows.append({"node_id": node_id, "position": position, **values})
    connection.execute(delete(node_gpu).where(node_gpu.c.node_id == node_id))
    if rows:
        connection.execute(insert(node_gpu), rows)
