"""What ends a node's work, within a transaction of whoever decides it."""

from __future__ import annotations

from sqlalchemy import Connection, and_, bindparam, select, update

from pocqueue.hosts.store.database import Database
from pocqueue.hosts.store.ledger import forfeit
from pocqueue.hosts.tables import attempt, node


def end_leases(connection: Connection, node_id: str, until_ms: int) -> None:
    """Let the leases of a node run out by then, if not before: the next sweep gives its jobs to others."""
    connection.execute(_END_LEASES, {"b_id": node_id, "b_until": until_ms})


def ban_node(db: Database, connection: Connection, node_id: str, now_ms: int) -> None:
    """Ban a node for good: it loses its jobs, and what it was not paid yet."""
    new = and_(node.c.id == node_id, node.c.state != "banned")
    if connection.execute(update(node).where(new).values(state="banned")).rowcount:
        end_leases(connection, node_id, now_ms)
        owner = connection.execute(select(node.c.wallet).where(node.c.id == node_id)).scalar_one()
        forfeit(db, connection, now_ms, owner, node_id)


_END_LEASES = (
    update(attempt)
    .where(
        attempt.c.node_id == bindparam("b_id"),
        attempt.c.ended_ms.is_(None),
        attempt.c.lease_until_ms > bindparam("b_until"),
    )
    .values(lease_until_ms=bindparam("b_until"))
)
