"""Health: what a node's self-test found, and how busy its GPUs were."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete, select, update

from pocqueue.hosts.records import SelfTest
from pocqueue.hosts.store.database import Database
from pocqueue.hosts.store.rows import gpus_of_one, one_node
from pocqueue.hosts.tables import gpu_load, node_gpu, self_test

#: One point of a GPU's load: the mean of so long.
LOAD_STEP_MS: Final = 900_000
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Health:
    """The self-tests of nodes, and the load of their GPUs."""

    _db: Database
    _now_ms: Callable[[], int]

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
            gpus = gpus_of_one(connection, node_id) or one_node(connection, node_id).gpus
            row = {"node_id": node_id, "at_ms": now_ms, "rows": rows}
            connection.execute(self._db.upsert(self_test), row)
            for gpu in gpus:
                found = {"healthy": gpu.uuid not in unhealthy, "reason": unhealthy.get(gpu.uuid)}
                if (gpu.healthy, gpu.reason) != (*found.values(),):
                    connection.execute(
                        update(node_gpu)
                        .where(node_gpu.c.node_id == node_id, node_gpu.c.uuid == gpu.uuid)
                        .values(found)
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

    def forget(self) -> None:
        """Delete load that is older than a day."""
        with self._db.write() as connection:
            old = gpu_load.c.from_ms < self._now_ms() - _DAY_MS
            connection.execute(delete(gpu_load).where(old))
