"""Jobs that wait get their nodes in order, and many of them cost little where there is none."""

from __future__ import annotations

import pytest

from pocqueue.hosts.leases import JobState
from pocqueue.hosts.records import Attempt, Report
from pocqueue.hosts.store import HostStore, places
from pocqueue.hosts.store.places import Places
from tests.hosts.parts import gpus, joined, new_wallet, running, sleep
from tests.support.waiting import Clock


def test_higher_priority_goes_first(store: HostStore, clock: Clock) -> None:
    """Then the older one; what was placed is not placed again."""
    joined(store, gpus=gpus(3))
    ids = []
    for priority in (0, 5, 0, 5):
        clock.now_s += 1
        ids.append(store.jobs.submit(sleep(priority=priority)).id)
    placed = list(store.places.place_waiting())
    assert [turn.job_id for turn in placed] == [ids[1], ids[3], ids[0]]
    assert list(store.places.place_waiting()) == []
    assert store.jobs.get(ids[2]).reason == "All nodes that could do it are busy."


def test_jobs_that_ask_for_the_same_wait_together(
    store: HostStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a hundred that need what nobody has is looked at; one that asks for less is placed all the same."""
    joined(store)
    for _ in range(100):
        store.jobs.submit(sleep(gpus=8, priority=5))
    small = store.jobs.submit(sleep(gpus=1))
    looked = []
    place = Places.place

    def counted(self: Places, job_id: str) -> Attempt | str | None:
        looked.append(job_id)
        return place(self, job_id)

    monkeypatch.setattr(Places, "place", counted)
    assert [turn.job_id for turn in store.places.place_waiting()] == [small.id]
    assert len(looked) == 2


@pytest.mark.parametrize("how", ["left", "revoked", "banned"])
def test_jobs_for_a_node_that_is_gone_end(store: HostStore, how: str) -> None:
    """One without a key that has left, or one that is out; a thousand of them keep nobody waiting until then."""
    node = joined(store, protocol=1 if how == "left" else 2)
    absent = joined(store)
    store.presence.disconnected(absent.id, f"socket of {absent.id}")
    lost = store.jobs.submit(sleep(kind="test", only_node=node.id))
    assert isinstance(store.places.place(lost.id), Attempt)
    waits = [store.jobs.submit(sleep(only_node=one.id)) for one in (node, absent)]
    if how == "left":
        store.presence.disconnected(node.id, f"socket of {node.id}")
    else:
        store.nodes.set_state(node.id, "revoked" if how == "revoked" else "banned", actor="admin")
    joined(store)
    job = store.jobs.submit(sleep())
    assert [turn.job_id for turn in store.places.place_waiting(limit=1)] == [job.id]
    assert [done.attempt.job_id for done in store.leases.sweep()] == [lost.id]
    assert store.places.end_stranded() == 2
    assert store.places.end_stranded() == 0
    for one in (lost, waits[0]):
        ended = store.jobs.get(one.id)
        assert (ended.state, ended.ended_ms) == (JobState.FAILED, store.now_ms())
        assert ended.reason == "The node that it was for has left for good."
    # One with a key may be back.
    assert store.jobs.get(waits[1].id).state is JobState.QUEUED
    store.presence.connected(absent.id, "here", "again")
    assert [turn.job_id for turn in store.places.place_waiting(limit=1)] == [waits[1].id]


def test_of_many_nodes_the_one_that_can_is_found(
    store: HostStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though not all of them are looked at first, nor those first that come first."""
    monkeypatch.setattr(places, "SAMPLES", (4, 8))
    wallet = new_wallet()
    for _ in range(20):
        joined(store, wallet=wallet, gpus=())
    able = joined(store, wallet=wallet)
    turn = store.places.place(store.jobs.submit(sleep(gpus=1)).id)
    assert isinstance(turn, Attempt)
    assert turn.node_id == able.id
    assert store.places.place(store.jobs.submit(sleep(gpus=2)).id) == (
        "No connected node has 2 healthy GPUs."
    )
    # Wherever it begins to look, it comes to all of them.
    ids = [store.jobs.submit(sleep()).id for _ in range(20)]
    turns = [store.places.place(job_id) for job_id in ids]
    assert {turn.node_id for turn in turns if isinstance(turn, Attempt)} == {
        node.id for node in store.nodes.of_wallet(wallet) if node.id != able.id
    }


def test_a_crowd_of_one_owner_hides_nobody_else(
    store: HostStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one of its nodes has called failed goes to somebody else's, who may be the only one."""
    monkeypatch.setattr(places, "SAMPLES", (4,))
    wallet, job = new_wallet(), store.jobs.submit(sleep())
    crowd = {joined(store, wallet=wallet).id for _ in range(20)}
    turn = running(store, job.id)
    assert turn.node_id in crowd
    other = joined(store)
    store.leases.finish(job.id, turn.node_id, Report("failed", n=turn.n))
    again = store.places.place(job.id)
    assert isinstance(again, Attempt)
    assert again.node_id == other.id
