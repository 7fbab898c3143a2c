"""Nodes: how they come in, what they say they are, and what is decided about them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, insert, select, true, update

from pocqueue.hosts.errors import NodeDrained, TokenRefused, UnknownNode
from pocqueue.hosts.leases import LEASE_MS
from pocqueue.hosts.node_keys import check_public_key
from pocqueue.hosts.records import Gpu, HostFacts, Node, NodeState
from pocqueue.hosts.store.bans import ban_node, end_leases
from pocqueue.hosts.store.database import Database
from pocqueue.hosts.store.log import note
from pocqueue.hosts.store.owners import digest, use_token
from pocqueue.hosts.store.presence import RENEW
from pocqueue.hosts.store.rows import gpus_of_one, nodes_where, one_node
from pocqueue.hosts.tables import node, node_gpu, token

#: States of nodes that never come back.
_OUT = ["revoked", "banned"]


@dataclass(frozen=True, slots=True)
class Resumed:
    """A node that is back, on another connection."""

    node: Node  #: as it is now
    #: Gateway and id of the connection that it had, which is to be closed; None: there was none.
    before: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes and their GPUs."""

    _db: Database
    _now_ms: Callable[[], int]
    _offline_ms: int  #: silence after which a node is offline

    # Coming in

    def register(
        self,
        token_text: str,
        facts: HostFacts,
        *,
        address: str,
        key: str | None = None,
        relay: str | None = None,
        socket: str | None = None,
    ) -> Node:
        """Let a machine in with its token, which is used up by it; two at a time: one of them.

        A token that was used lets in again whoever has the key of the node that it let in: the answer may
        have been lost. Nothing is changed by that; `resume` is next.

        Args:
            token_text: as the machine sent it.
            facts: what it says of itself.
            address: network address that it comes from.
            key: its public key, whose secret it has shown to have; None: today's agents.
            relay: the gateway that has the connection on which it came, which is a new node's from now on; one that
                was let in before has that which it has, until `resume`. None: it has none.
            socket: an id of that connection that no other has.

        Raises:
            TokenRefused: "Invalid token", "Token already used", "Token expired".
            NodeKeyError: the key is none.
            UnknownNode: the node that it let in was revoked or banned.
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
                # What it says of itself is written by `resume`: it may be refused, as another connection has the node.
                found = one_node(connection, again)
                if found.state in _OUT:
                    raise UnknownNode from None
                return found
            row = {
                "id": node_id,
                "wallet": owner,
                "proven": proven,
                "state": "active",
                "key": key,
                "address": address,
                "first_ms": now_ms,
                "last_ms": now_ms,
                "relay": relay,
                "socket": socket,
            }
            connection.execute(insert(node).values(**row, **_row(facts)))
            _set_gpus(connection, node_id, facts.gpus)
            return one_node(connection, node_id)

    def key(self, node_id: str) -> str:
        """Return a node's key.

        Raises:
            UnknownNode: there is none, or it has no key.
        """
        with self._db.read() as connection:
            found = connection.execute(_KEY, {"b_id": node_id}).scalar()
        if found is None:
            raise UnknownNode
        return str(found)

    def resume(
        self,
        node_id: str,
        facts: HostFacts,
        *,
        address: str,
        key: str,
        relay: str,
        socket: str,
        job_ids: Iterable[str] = (),
    ) -> Resumed | None:
        """Note that a known node is back on a connection, which takes the place of the one that it had.

        Args:
            facts: what it says of itself now, as in `update`.
            key: that it has shown to have.
            relay: the gateway that has the connection.
            socket: an id of the connection that no other has.
            job_ids: that it has; their leases are renewed, as the end of its last connection has cut them.

        Returns:
            None: another gateway has the node, and has heard it lately; nothing has changed.

        Raises:
            UnknownNode: there is none with this key, or it was revoked or banned.
        """
        now_ms = self._now_ms()
        with self._db.write() as connection:
            row = connection.execute(_HELD, {"b_id": node_id}).mappings().first()
            # Also its key may have changed since it was checked.
            if row is None or row["state"] in _OUT or row["key"] != key:
                raise UnknownNode
            before = None if row["relay"] is None else (str(row["relay"]), str(row["socket"]))
            if (
                before is not None
                and before[0] != relay
                and now_ms - row["last_ms"] <= self._offline_ms
            ):
                return None
            values = _row(facts) | {
                "address": address,
                "last_ms": now_ms,
                "relay": relay,
                "socket": socket,
            }
            connection.execute(
                _BACK, {f"b_{name}": value for name, value in values.items()} | {"b_id": node_id}
            )
            until_ms = now_ms + LEASE_MS
            jobs = [{"b_id": node_id, "b_job": one, "b_until": until_ms} for one in sorted(job_ids)]
            if jobs:
                connection.execute(RENEW, jobs)
            gpus = _set_gpus(connection, node_id, facts.gpus)
            is_same = before is not None and before[1] == socket
            values["kinds"] = facts.kinds
            return Resumed(Node(**{**row, **values}, gpus=gpus), None if is_same else before)

    def update(self, node_id: str, facts: HostFacts, *, address: str, key: str | None) -> Node:
        """Note what a known node says of itself now; GPUs keep what their self-test found.

        Args:
            key: that it has shown to have; None: it has none.

        Raises:
            UnknownNode: there is none with this key, or it was revoked or banned.
        """
        # Also its key may have changed since it was checked.
        known = and_(
            node.c.id == node_id, node.c.state.not_in(_OUT), node.c.key.is_not_distinct_from(key)
        )
        with self._db.write() as connection:
            # When it was heard is not written: it may be refused, as another connection has it.
            new = update(node).where(known).values(address=address, **_row(facts))
            if connection.execute(new).rowcount == 0:
                raise UnknownNode
            _set_gpus(connection, node_id, facts.gpus)
            return one_node(connection, node_id)

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

    def set_key(self, node_id: str, key: str, *, old: str) -> None:
        """Give a node another key, whose secret it has shown to have. May be repeated.

        Args:
            old: the key that it has.

        Raises:
            NodeKeyError: the new key is none.
            UnknownNode: there is no such node with that old key, or it was revoked or banned.
        """
        check_public_key(key)
        known = and_(node.c.id == node_id, node.c.state.not_in(["revoked", "banned"]))
        with self._db.write() as connection:
            changed = connection.execute(
                update(node).where(known, node.c.key == old).values(key=key)
            )
            if changed.rowcount:
                note(connection, self._now_ms(), node_id, "node.key", node_id)
                return
            again = select(node.c.id).where(known, node.c.key == key)
            if connection.execute(again).first() is None:
                raise UnknownNode

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

    # What its owner or an admin decides

    def set_state(
        self, node_id: str, state: NodeState, *, actor: str, wallet: str | None = None
    ) -> Node:
        """Drain a node, take it back, revoke or ban it; return it as it is then.

        A node that is revoked or banned loses its jobs at once; one that is banned loses what it was not
        paid yet, too, and stays banned. An admin's drain takes the place of an owner's, and ends when an admin
        says so.

        Args:
            actor: a wallet, ``admin`` or ``server``.
            wallet: whose node it has to be; None: anybody's.

        Raises:
            UnknownNode: there is none, it is not that wallet's, or it is banned or revoked for good.
            NodeDrained: an admin has drained it, and its owner wants it back.
        """
        now_ms = self._now_ms()
        final = ["banned"] if state == "banned" else ["banned", "revoked"]
        mine = true() if wallet is None else node.c.wallet == wallet
        with self._db.write() as connection:
            row = connection.execute(
                select(node.c.state, node.c.drained_by)
                .where(node.c.id == node_id, mine)
                .with_for_update(key_share=True)
            ).first()
            if row is None or (row.state in final and row.state != state):
                raise UnknownNode
            is_admins = row.drained_by not in {None, wallet}
            if wallet is not None and state == "active" and is_admins:
                raise NodeDrained
            takes_over = state == "draining" and wallet is None and row.drained_by != actor
            if row.state == state and not takes_over:
                return one_node(connection, node_id)
            if state == "banned":
                ban_node(self._db, connection, node_id, now_ms)
            else:
                values = {"state": state, "drained_by": actor if state == "draining" else None}
                connection.execute(update(node).where(node.c.id == node_id).values(values))
                if state == "revoked":
                    end_leases(connection, node_id, now_ms)
            note(connection, now_ms, actor, f"node.{state}", node_id)
            return one_node(connection, node_id)

    def adopt(self, node_id: str, *, actor: str, wallet: str | None = None) -> Node:
        """Say that a node is its wallet's own: it gets paid jobs, and what it has earned is held no more.

        It may have been revoked since. May be repeated.

        Args:
            actor: a wallet that has signed in, or ``admin``.
            wallet: whose node it has to be; None: anybody's.

        Raises:
            UnknownNode: there is none, it is not that wallet's, or it is banned, which has taken its pay.
        """
        mine = true() if wallet is None else node.c.wallet == wallet
        with self._db.write() as connection:
            known = and_(node.c.id == node_id, mine, node.c.state != "banned")
            new = update(node).where(known, node.c.proven.is_(False)).values(proven=True)
            if connection.execute(new).rowcount:
                note(connection, self._now_ms(), actor, "node.adopt", node_id)
            elif connection.execute(select(node.c.id).where(known)).first() is None:
                raise UnknownNode
            return one_node(connection, node_id)


# Made once: thousands come back together, and to put a statement together takes longer than to execute it.
_MINE = node.c.id == bindparam("b_id")
_KEY = select(node.c.key).where(_MINE)
_HELD = select(node).where(_MINE).with_for_update(key_share=True)
_BACK = (
    update(node)
    .where(_MINE)
    .values(
        {
            name: bindparam(f"b_{name}")
            for name in (
                *("hostname", "os", "protocol", "agent_version", "isolation", "kinds"),
                *("address", "last_ms", "relay", "socket"),
            )
        }
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


def _set_gpus(connection: Connection, node_id: str, gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Write the GPUs that a node has now, and return them; those that it had before keep what we found out."""
    before = {gpu.uuid: gpu for gpu in gpus_of_one(connection, node_id)}
    now = []
    for gpu in gpus:
        old = before.get(gpu.uuid, replace(gpu, route=None, tier="new"))
        now.append(
            replace(gpu, healthy=old.healthy, reason=old.reason, route=old.route, tier=old.tier)
        )
    if now == list(before.values()):
        return tuple(now)  # as of nearly all that come back
    rows = [
        {"node_id": node_id, "position": position}
        | {name: getattr(gpu, name) for name in Gpu.__slots__}
        for position, gpu in enumerate(now)
    ]
    connection.execute(delete(node_gpu).where(node_gpu.c.node_id == node_id))
    if rows:
        connection.execute(insert(node_gpu), rows)
    return tuple(now)
