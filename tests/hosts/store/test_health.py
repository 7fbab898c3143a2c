"""Health: what a self-test found stays with the GPU; the load of a day."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import update

from pocqueue.hosts.store import HostStore
from pocqueue.hosts.store.health import LOAD_STEP_MS
from pocqueue.hosts.tables import node_gpu
from tests.hosts.parts import facts, gpus, joined
from tests.support.waiting import Clock


def test_a_node_that_comes_back_keeps_what_its_self_test_found(store: HostStore) -> None:
    """A GPU that is out stays out until a self-test takes it back; one that is gone is gone."""
    have = gpus(2)
    node = joined(store, gpus=have)
    rows = [{"row": "sandbox", "state": "failed"}]
    store.health.set_self_test(node.id, rows, {have[0].uuid: "12 rows are remapped"})
    more = (*have, *gpus(1))
    store.nodes.update(
        node.id, facts(gpus=more, hostname="renamed"), address="192.0.2.9", key=node.key
    )
    found = store.nodes.get(node.id)
    assert [gpu.healthy for gpu in found.gpus] == [False, True, True]
    assert found.gpus[0].reason == "12 rows are remapped"
    assert (found.hostname, found.address) == ("renamed", "192.0.2.9")
    told = store.health.self_test(node.id)
    assert told is not None
    assert told.rows == rows
    store.health.set_self_test(node.id, [], {})
    assert all(gpu.healthy for gpu in store.nodes.get(node.id).gpus)
    store.nodes.update(node.id, facts(gpus=have[1:]), address="", key=node.key)
    assert [gpu.uuid for gpu in store.nodes.get(node.id).gpus] == [have[1].uuid]


def test_what_a_gpu_is_in_the_pool_of_rounds_stays_with_it(store: HostStore) -> None:
    """There is room for it, which no machine fills with what it says; a node that comes back keeps it."""
    node = joined(store, gpus=gpus(2))
    assert {(gpu.route, gpu.tier) for gpu in node.gpus} == {(None, "new")}
    kept = node.gpus[0]
    with store.database.write() as connection:
        mine = node_gpu.c.uuid == kept.uuid
        connection.execute(update(node_gpu).where(mine).values(route="relay.here", tier="proven"))
    claimed = replace(kept, route="relay.other", tier="own")
    new = replace(gpus(1)[0], route="relay.other", tier="own")
    found = store.nodes.update(node.id, facts(gpus=(claimed, new)), address="", key=node.key)
    assert [(gpu.route, gpu.tier) for gpu in found.gpus] == [
        ("relay.here", "proven"),
        (None, "new"),
    ]


def test_the_load_of_a_day(store: HostStore, clock: Clock) -> None:
    """The mean of each quarter of an hour; what is older is gone."""
    node = joined(store)
    key = (node.id, node.gpus[0].uuid)
    start = store.now_ms() // LOAD_STEP_MS * LOAD_STEP_MS
    clock.now_s = start / 1000
    for percent in (20.0, 40.0, 90.0):
        store.health.add_loads({key: percent})
    clock.now_s += LOAD_STEP_MS / 1000
    store.health.add_loads({key: 5.0})
    store.health.add_loads({})
    found = store.health.loads([node.id])
    assert found == {key: [(start, pytest.approx(50.0)), (start + LOAD_STEP_MS, 5.0)]}
    clock.now_s += 86_400 - 60
    store.health.forget()
    assert store.health.loads([node.id]) == {key: [(start + LOAD_STEP_MS, 5.0)]}
