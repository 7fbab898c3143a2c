"""Presence: who is there, on whose socket, and whose leases are renewed by that."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from sqlalchemy import update

from pocqueue.hosts.leases import JobState, Outcome, Verdict
from pocqueue.hosts.records import POLLS, Attempt, Beat, NodeState, Report
from pocqueue.hosts.store import HostStore
from pocqueue.hosts.tables import node as node_table
from tests.hosts.parts import joined, running, sleep
from tests.support.waiting import Clock


def test_a_newer_connection_replaces_the_older_one(store: HostStore) -> None:
    """Whoever has the older one is told, and what is said of it later changes nothing."""
    node = joined(store, connect=False)
    assert store.presence.connected(node.id, "one", "a") is None
    assert store.presence.connected(node.id, "one", "a") is None
    assert store.presence.connected(node.id, "two", "b") == ("one", "a")
    store.presence.disconnected(node.id, "a")
    assert store.nodes.get(node.id).relay == "two"
    store.presence.disconnected(node.id, "b")
    assert store.nodes.get(node.id).relay is None
    assert store.presence.connected(node.id, "one", "c") is None


def test_status_in_one_word(store: HostStore, clock: Clock) -> None:
    """By connection, silence, work, and what was decided."""

    def status(node_id: str, *, busy: bool = False) -> str:
        return store.nodes.get(node_id).status(store.now_ms(), store.offline_ms, busy=busy)

    new, old = joined(store), joined(store, protocol=1)
    assert (status(new.id), status(new.id, busy=True)) == ("online", "busy")
    clock.now_s += 31
    assert (status(new.id), status(new.id, busy=True)) == ("offline", "offline")
    assert (status(old.id), status(old.id, busy=True)) == ("offline", "busy")
    store.presence.heard([Beat(new.id, f"socket of {new.id}", store.now_ms())])
    assert status(new.id) == "online"
    store.presence.heard([Beat(old.id, "another socket", store.now_ms())])
    assert status(old.id) == "offline"
    store.nodes.set_state(new.id, "draining", actor="admin")
    assert status(new.id) == "draining"
    store.presence.disconnected(new.id, f"socket of {new.id}")
    assert status(new.id) == "offline"
    store.nodes.set_state(new.id, "revoked", actor="admin")
    assert status(new.id) == "revoked"


def test_nodes_are_counted_by_status(store: HostStore, clock: Clock) -> None:
    """As each of them says it of itself; 0 where there is none."""
    assert set(store.presence.counts().values()) == {0}
    nodes = [joined(store, protocol=1 + n % 2) for n in range(16)]
    for number, node in enumerate(nodes):
        if number & 2:
            running(store, store.jobs.submit(sleep(only_node=node.id)).id)
        state: NodeState = "draining" if number & 8 else "active"
        store.nodes.set_state(node.id, state, actor="admin")
    clock.now_s += 31
    store.presence.heard(
        [Beat(one.id, f"socket of {one.id}", store.now_ms()) for one in nodes[::3]]
    )
    store.presence.disconnected(nodes[3].id, f"socket of {nodes[3].id}")
    for node, final in ((nodes[4], "banned"), (nodes[5], "revoked")):
        store.nodes.set_state(node.id, final, actor="admin")  # type: ignore[arg-type]
    with store.database.write() as connection:
        for node, until_s in ((nodes[0], 1), (nodes[1], 0), (nodes[2], 1), (nodes[6], -1)):
            mine = node_table.c.id == node.id
            values = {"paused_until_ms": store.now_ms() + 1000 * until_s}
            connection.execute(update(node_table).where(mine).values(values))
    busy = store.presence.busy()
    said = Counter(
        store.nodes.get(one.id).status(store.now_ms(), store.offline_ms, busy=one.id in busy)
        for one in nodes
    )
    assert {name: num for name, num in store.presence.counts().items() if num} == dict(said)
    assert {"banned", "revoked", "offline"} <= set(said)


def test_heartbeats_renew_the_leases_that_they_name(store: HostStore, clock: Clock) -> None:
    """On the node that has them; never beyond time-out and grace."""
    node, other = joined(store), joined(store)
    job = store.jobs.submit(sleep(30, only_node=node.id, timeout_s=60))
    running(store, job.id)

    def until_s() -> float:
        [turn] = store.jobs.attempts(job.id)
        return turn.lease_until_ms / 1000 - clock.now_s

    clock.now_s += 20
    store.presence.heard([Beat(other.id, f"socket of {other.id}", store.now_ms(), (job.id,))])
    assert until_s() == pytest.approx(40)
    store.presence.heard([Beat(node.id, f"socket of {node.id}", store.now_ms(), (job.id, "x"))])
    assert until_s() == pytest.approx(60)
    clock.now_s += 50
    store.presence.heard([Beat(node.id, f"socket of {node.id}", store.now_ms(), (job.id,))])
    assert until_s() == pytest.approx(20)
    assert store.presence.busy() == {node.id}
    assert store.presence.busy([other.id]) == set()
    store.presence.heard([])


def test_a_machine_that_polls_keeps_its_job_while_it_asks(store: HostStore, clock: Clock) -> None:
    """For five minutes from each time, never beyond time-out and grace; a day's job of one that is gone is not gone for a day."""
    node, other = joined(store, protocol=POLLS), joined(store)
    job = store.jobs.submit(sleep(only_node=node.id, timeout_s=600))
    turn = store.places.place(job.id)
    assert isinstance(turn, Attempt)
    beats = [
        Beat(one.id, f"socket of {one.id}", store.now_ms(), polls=one is node)
        for one in (node, other)
    ]
    store.presence.heard(beats)
    [turn] = store.jobs.attempts(job.id)
    assert turn.lease_until_ms - store.now_ms() <= 60_000  # it has not fetched it yet
    assert store.leases.sent(job.id, 1)[1].lease_until_ms == store.now_ms() + 300_000
    for later_s, left_s in ((200, 300), (200, 230), (0, 230)):
        clock.now_s += later_s
        store.presence.heard(beats)
        [turn] = store.jobs.attempts(job.id)
        assert turn.lease_until_ms - store.now_ms() == 1000 * left_s
    long = store.jobs.submit(sleep(timeout_s=86_400))
    store.leases.finish(job.id, node.id, Report("completed"))
    store.presence.heard([Beat(node.id, f"socket of {node.id}", store.now_ms(), polls=True)])
    store.nodes.set_state(other.id, "draining", actor="admin")
    turn = store.places.place(long.id)
    assert isinstance(turn, Attempt)
    assert turn.node_id == node.id
    store.leases.sent(long.id, 1)
    clock.now_s += 301
    now = store.nodes.get(node.id)
    assert now.status(store.now_ms(), store.offline_ms, busy=True) == "offline"
    assert store.presence.counts()["busy"] == 0
    assert [done.attempt.outcome for done in store.leases.sweep()] == [Outcome.NODE_LOST]
    assert store.jobs.get(long.id).state is JobState.QUEUED
    # It goes elsewhere, and what the machine brings when it is back is not paid.
    store.nodes.set_state(other.id, "active", actor="admin")
    store.presence.heard([replace(beats[1], at_ms=store.now_ms())])
    assert running(store, long.id).node_id == other.id
    before = store.ledger.balance(node.wallet)
    late = store.leases.finish(long.id, node.id, Report("completed", n=1))
    assert (late.verdict, late.attempt.micro) == (Verdict.LATE, 0)
    assert store.ledger.balance(node.wallet) == before


def test_a_gateway_that_begins_anew_gives_its_nodes_time(store: HostStore, clock: Clock) -> None:
    """Its connections are gone; jobs that run are not given away before their nodes can be back."""
    node, job = joined(store), store.jobs.submit(sleep(30))
    running(store, job.id)
    clock.now_s += 300
    store.presence.relay_started("here")
    assert store.nodes.get(node.id).relay is None
    assert store.leases.sweep() == []
    clock.now_s += 61
    assert [done.attempt.node_id for done in store.leases.sweep()] == [node.id]


def test_an_agent_of_today_cannot_come_back(store: HostStore) -> None:
    """It has no key: its job is given to another as soon as its socket ends."""
    node = joined(store, protocol=1)
    job = store.jobs.submit(sleep())
    turn = running(store, job.id)
    assert turn.lease_until_ms == store.now_ms() + 90_000
    store.presence.disconnected(node.id, f"socket of {node.id}")
    assert [done.attempt.job_id for done in store.leases.sweep()] == [job.id]
