"""Nodes: what they have, whether they are there, and who may decide about them."""

from __future__ import annotations

import pytest

from pocqueue.hosts.errors import NodeKeyError, UnknownNode
from pocqueue.hosts.node_keys import NodeKey
from pocqueue.hosts.records import Attempt, Beat, Gpu, Node
from pocqueue.hosts.store import HostStore
from pocqueue.hosts.store.nodes import LOAD_STEP_MS
from tests.hosts.parts import facts, gpus, joined, new_wallet, running, sleep
from tests.support.waiting import Clock


def test_a_node_is_what_it_says_it_is(store: HostStore) -> None:
    """With its GPUs in their order, whatever letters are in it."""
    node = joined(store, hostname="<b>rig\0</b>", gpus=gpus(3), isolation="container")
    assert node.hostname == "<b>rig\ufffd</b>"
    assert [gpu.name for gpu in node.gpus] == ["NVIDIA GeForce RTX 4090"] * 3
    assert store.nodes.get(node.id) == node
    assert store.nodes.of_wallet(node.wallet) == [node]
    with pytest.raises(UnknownNode, match=r"^Node not found$"):
        store.nodes.get("x")


def test_a_node_that_comes_back_keeps_what_its_self_test_found(store: HostStore) -> None:
    """A GPU that is out stays out until a self-test takes it back; one that is gone is gone."""
    have = gpus(2)
    node = joined(store, gpus=have)
    rows = [{"row": "sandbox", "state": "failed"}]
    store.nodes.set_self_test(node.id, rows, {have[0].uuid: "12 rows are remapped"})
    more = (*have, *gpus(1))
    store.nodes.update(node.id, facts(gpus=more, hostname="renamed"), address="192.0.2.9")
    found = store.nodes.get(node.id)
    assert [gpu.healthy for gpu in found.gpus] == [False, True, True]
    assert found.gpus[0].reason == "12 rows are remapped"
    assert (found.hostname, found.address) == ("renamed", "192.0.2.9")
    told = store.nodes.self_test(node.id)
    assert told is not None
    assert told.rows == rows
    store.nodes.set_self_test(node.id, [], {})
    assert all(gpu.healthy for gpu in store.nodes.get(node.id).gpus)
    store.nodes.update(node.id, facts(gpus=have[1:]), address="")
    assert [gpu.uuid for gpu in store.nodes.get(node.id).gpus] == [have[1].uuid]


def test_a_newer_connection_replaces_the_older_one(store: HostStore) -> None:
    """Whoever has the older one is told, and what is said of it later changes nothing."""
    node = joined(store, connect=False)
    assert store.nodes.connected(node.id, "one", "a") is None
    assert store.nodes.connected(node.id, "one", "a") is None
    assert store.nodes.connected(node.id, "two", "b") == ("one", "a")
    store.nodes.disconnected(node.id, "a")
    assert [one.id for one in store.nodes.connected_to("two")] == [node.id]
    store.nodes.disconnected(node.id, "b")
    assert store.nodes.connected_to() == []
    assert store.nodes.connected(node.id, "one", "c") is None


def test_status_in_one_word(store: HostStore, clock: Clock) -> None:
    """By connection, silence, work, and what was decided."""

    def status(node_id: str, *, busy: bool = False) -> str:
        return store.nodes.get(node_id).status(store.now_ms(), store.offline_ms, busy=busy)

    new, old = joined(store), joined(store, protocol=1)
    assert (status(new.id), status(new.id, busy=True)) == ("online", "busy")
    clock.now_s += 31
    assert (status(new.id), status(new.id, busy=True)) == ("offline", "offline")
    assert (status(old.id), status(old.id, busy=True)) == ("offline", "busy")
    store.nodes.heard([Beat(new.id, f"socket of {new.id}", store.now_ms())])
    assert status(new.id) == "online"
    store.nodes.heard([Beat(old.id, "another socket", store.now_ms())])
    assert status(old.id) == "offline"
    store.nodes.set_state(new.id, "draining", actor="admin")
    assert status(new.id) == "draining"
    store.nodes.disconnected(new.id, f"socket of {new.id}")
    assert status(new.id) == "offline"
    store.nodes.set_state(new.id, "revoked", actor="admin")
    assert status(new.id) == "revoked"


def test_heartbeats_renew_the_leases_that_they_name(store: HostStore, clock: Clock) -> None:
    """On the node that has them; never beyond time-out and grace."""
    node, other = joined(store), joined(store)
    job = store.jobs.submit(sleep(30, only_node=node.id, timeout_s=60))
    running(store, job.id)

    def until_s() -> float:
        [turn] = store.jobs.attempts(job.id)
        return turn.lease_until_ms / 1000 - clock.now_s

    clock.now_s += 20
    store.nodes.heard([Beat(other.id, f"socket of {other.id}", store.now_ms(), (job.id,))])
    assert until_s() == pytest.approx(40)
    store.nodes.heard([Beat(node.id, f"socket of {node.id}", store.now_ms(), (job.id, "x"))])
    assert until_s() == pytest.approx(60)
    clock.now_s += 50
    store.nodes.heard([Beat(node.id, f"socket of {node.id}", store.now_ms(), (job.id,))])
    assert until_s() == pytest.approx(20)
    assert store.nodes.busy() == {node.id}
    assert store.nodes.busy([other.id]) == set()
    store.nodes.heard([])


def test_a_gateway_that_begins_anew_gives_its_nodes_time(store: HostStore, clock: Clock) -> None:
    """Its connections are gone; jobs that run are not given away before their nodes can be back."""
    node, job = joined(store), store.jobs.submit(sleep(30))
    running(store, job.id)
    clock.now_s += 300
    store.nodes.relay_started("here")
    assert store.nodes.get(node.id).relay is None
    assert store.leases.sweep() == []
    clock.now_s += 61
    assert [turn.node_id for turn in store.leases.sweep()] == [node.id]


def test_an_agent_of_today_cannot_come_back(store: HostStore) -> None:
    """It has no key: its job is given to another as soon as its socket ends."""
    joined(store, protocol=1)
    [node] = store.nodes.connected_to()
    job = store.jobs.submit(sleep())
    turn = running(store, job.id)
    assert turn.lease_until_ms == store.now_ms() + 90_000
    store.nodes.disconnected(node.id, f"socket of {node.id}")
    assert [lost.job_id for lost in store.leases.sweep()] == [job.id]


@pytest.mark.parametrize("state", ["revoked", "banned"])
def test_who_is_out_stays_out(store: HostStore, state: str) -> None:
    """It loses its jobs at once; only a ban goes further than a revocation."""
    node, job = joined(store), store.jobs.submit(sleep())
    running(store, job.id)
    store.nodes.set_state(node.id, state, actor="admin")  # type: ignore[arg-type]
    assert store.nodes.set_state(node.id, state, actor="admin").state == state  # type: ignore[arg-type]
    assert [turn.job_id for turn in store.leases.sweep()] == [job.id]
    assert isinstance(store.places.place(job.id), str)
    with pytest.raises(UnknownNode):
        store.nodes.set_state(node.id, "active", actor="admin")
    with pytest.raises(UnknownNode):
        store.nodes.update(node.id, facts(), address="")
    if state == "revoked":
        assert store.nodes.set_state(node.id, "banned", actor="admin").state == "banned"


def test_a_banned_node_loses_what_it_was_not_paid(store: HostStore) -> None:
    """Its wallet's other nodes keep theirs; what was paid out is gone."""
    wallet = new_wallet()
    cheat, honest = joined(store, wallet=wallet), joined(store, wallet=wallet)
    store.ledger.correct(cheat.id, 70_000, "one")
    store.ledger.pay_out()
    store.ledger.correct(cheat.id, 50_000, "two")
    store.ledger.correct(honest.id, 20_000, "three")
    store.nodes.set_state(cheat.id, "banned", actor="admin")
    assert store.ledger.earned_by_node(wallet) == {cheat.id: 70_000, honest.id: 20_000}
    balance = store.ledger.balance(wallet)
    assert (balance.earned, balance.paid, balance.payable) == (90_000, 70_000, 20_000)


def test_owners_decide_about_their_own_nodes(store: HostStore) -> None:
    """Of another's they cannot even learn that they are there."""
    node = joined(store)
    with pytest.raises(UnknownNode, match=r"^Node not found$"):
        store.nodes.set_state(node.id, "revoked", actor="w", wallet=new_wallet())
    drained = store.nodes.set_state(node.id, "draining", actor=node.wallet, wallet=node.wallet)
    assert drained.state == "draining"
    job_id = store.jobs.submit(sleep()).id
    assert isinstance(store.places.place(job_id), str)
    store.nodes.set_state(node.id, "active", actor=node.wallet, wallet=node.wallet)
    assert isinstance(store.places.place(job_id), Attempt)


def test_a_key_can_be_replaced_by_a_good_one(store: HostStore) -> None:
    """One of small order is refused, as anybody could sign for it."""
    node, key = joined(store), NodeKey.generate()
    store.nodes.set_key(node.id, key.public_hex)
    assert store.nodes.get(node.id).key == key.public_hex
    for bad in ("01" + 62 * "0", "0" * 64, "x", key.public_hex.upper()):
        with pytest.raises(NodeKeyError):
            store.nodes.set_key(node.id, bad)
    with pytest.raises(UnknownNode):
        store.nodes.set_key("x", key.public_hex)


def test_an_agent_that_has_only_its_token(store: HostStore) -> None:
    """Is known by it, until its node is revoked."""
    token = store.owners.issue_token(new_wallet(), proven=True).token
    with pytest.raises(UnknownNode):
        store.nodes.of_token(token)
    node = store.nodes.register(token, facts(protocol=1), address="")
    assert store.nodes.of_token(token) == node
    store.nodes.set_state(node.id, "revoked", actor="admin")
    with pytest.raises(UnknownNode):
        store.nodes.of_token(token)


def test_the_load_of_a_day(store: HostStore, clock: Clock) -> None:
    """The mean of each quarter of an hour; what is older is gone."""
    node = joined(store)
    key = (node.id, node.gpus[0].uuid)
    start = store.now_ms() // LOAD_STEP_MS * LOAD_STEP_MS
    clock.now_s = start / 1000
    for percent in (20.0, 40.0, 90.0):
        store.nodes.add_loads({key: percent})
    clock.now_s += LOAD_STEP_MS / 1000
    store.nodes.add_loads({key: 5.0})
    store.nodes.add_loads({})
    found = store.nodes.loads([node.id])
    assert found == {key: [(start, pytest.approx(50.0)), (start + LOAD_STEP_MS, 5.0)]}
    clock.now_s += 86_400 - 60
    store.nodes.forget()
    assert store.nodes.loads([node.id]) == {key: [(start + LOAD_STEP_MS, 5.0)]}


def test_pages_of_nodes(store: HostStore) -> None:
    """Each of two hundred nodes is on one page."""
    nodes: list[Node] = []
    made = {joined(store, gpus=(), connect=False).id for _ in range(25)}
    while page := store.nodes.listed(after=nodes[-1].id if nodes else None, limit=10):
        nodes += page
    assert [node.id for node in nodes] == sorted(made)


def test_many_gpus(store: HostStore) -> None:
    """As many as the wire lets through are kept."""
    many = tuple(Gpu(f"index-{n}") for n in range(512))
    assert len(joined(store, gpus=many).gpus) == 512
