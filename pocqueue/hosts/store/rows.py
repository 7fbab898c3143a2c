"""Rows of the tables as values, and values of one row, within a transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.sql.elements import ColumnElement

from pocqueue.hosts.errors import UnknownJob, UnknownNode
from pocqueue.hosts.leases import JobState, Outcome
from pocqueue.hosts.records import Attempt, Gpu, Job, Node
from pocqueue.hosts.reputation import Reputation
from pocqueue.hosts.tables import attempt, job, node, node_gpu

# Made once, as each node that comes back asks for them.
_GPUS = select(node_gpu.c.node_id, *(node_gpu.c[name] for name in Gpu.__slots__)).order_by(
    node_gpu.c.position
)
_GPUS_OF = _GPUS.where(node_gpu.c.node_id.in_(bindparam("b_ids", expanding=True)))
_GPUS_OF_ONE = _GPUS.where(node_gpu.c.node_id == bindparam("b_id"))


def as_job(row: Mapping[Any, Any]) -> Job:
    """Make a job of a row of its table."""
    values = {name: row[name] for name in Job.__slots__}
    return Job(**values | {"state": JobState(row["state"])})


def as_attempt(row: Mapping[Any, Any]) -> Attempt:
    """Make an attempt of a row of its table."""
    values = {name: row[name] for name in Attempt.__slots__}
    outcome = None if row["outcome"] is None else Outcome(row["outcome"])
    return Attempt(**values | {"outcome": outcome, "gpu_uuids": tuple(row["gpu_uuids"])})


def one_job(connection: Connection, job_id: str, *, lock: bool = False) -> Job:
    """Return a job within a transaction.

    Args:
        lock: hold it until the transaction ends.

    Raises:
        UnknownJob: there is none.
    """
    query = select(job).where(job.c.id == job_id)
    row = (
        connection.execute(query.with_for_update(key_share=True) if lock else query)
        .mappings()
        .first()
    )
    if row is None:
        raise UnknownJob
    return as_job(row)


def one_attempt(connection: Connection, job_id: str, n: int) -> Attempt | None:
    """Return an attempt; None: there is none."""
    query = select(attempt).where(attempt.c.job_id == job_id, attempt.c.n == n)
    row = connection.execute(query).mappings().first()
    return None if row is None else as_attempt(row)


def as_reputation(row: Any) -> Reputation:
    """Make a reputation of a row of its table."""
    return Reputation(*(getattr(row, name) for name in Reputation.__slots__))


def gpus_of(connection: Connection, node_ids: Sequence[str] | None) -> dict[str, list[Gpu]]:
    """Return the GPUs of nodes, by node; None: of all."""
    query, about = (_GPUS, {}) if node_ids is None else (_GPUS_OF, {"b_ids": node_ids})
    found: dict[str, list[Gpu]] = defaultdict(list)
    for node_id, *values in connection.execute(query, about):
        found[node_id].append(Gpu(*values))
    return found


def gpus_of_one(connection: Connection, node_id: str) -> tuple[Gpu, ...]:
    """Return the GPUs of a node."""
    rows = connection.execute(_GPUS_OF_ONE, {"b_id": node_id})
    return tuple(Gpu(*values) for _, *values in rows)


def nodes_where(
    connection: Connection,
    where: ColumnElement[bool],
    *,
    by_id: bool = False,
    limit: int | None = None,
) -> list[Node]:
    """Return nodes, by id or newest first."""
    order = [node.c.id] if by_id else [node.c.first_ms.desc(), node.c.id]
    query = select(node).where(where).order_by(*order).limit(limit)
    rows = connection.execute(query).mappings().all()
    # An IN of thousands is slower than all of them, and more than a statement may have.
    gpus = gpus_of(connection, [row["id"] for row in rows] if len(rows) <= 500 else None)
    return [
        Node(**(dict(row) | {"kinds": tuple(row["kinds"])}), gpus=tuple(gpus.get(row["id"], ())))
        for row in rows
    ]


def one_node(connection: Connection, node_id: str) -> Node:
    """Return a node, within a transaction.

    Raises:
        UnknownNode: there is none.
    """
    found = nodes_where(connection, node.c.id == node_id)
    if not found:
        raise UnknownNode
    return found[0]
