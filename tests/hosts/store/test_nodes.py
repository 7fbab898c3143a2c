"""Nodes: what they are, and who may decide about them."""

from __future__ import annotations

import pytest

from pocqueue.hosts.errors import NodeDrained, NodeKeyError, TokenRefused, UnknownNode
from pocqueue.hosts.leases import LEASE_MS
from pocqueue.hosts.records import Attempt, Gpu, Node
from pocqueue.hosts.store import HostStore
from pocqueue.hosts.store.nodes import Resumed
from tests.hosts.parts import facts, gpus, joined, new_wallet, running, sleep
from tests.support.node_key import NodeKey
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


@pytest.mark.parametrize("state", ["revoked", "banned"])
def test_who_is_out_stays_out(store: HostStore, state: str) -> None:
    """It loses its jobs at once; only a ban goes further than a revocation."""
    node, job = joined(store), store.jobs.submit(sleep())
    running(store, job.id)
    store.nodes.set_state(node.id, state, actor="admin")  # type: ignore[arg-type]
    assert store.nodes.set_state(node.id, state, actor="admin").state == state  # type: ignore[arg-type]
    assert [done.attempt.job_id for done in store.leases.sweep()] == [job.id]
    assert isinstance(store.places.place(job.id), str)
    with pytest.raises(UnknownNode):
        store.nodes.set_state(node.id, "active", actor="admin")
    with pytest.raises(UnknownNode):
        store.nodes.update(node.id, facts(), address="", key=node.key)
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


def test_an_admins_drain_is_not_its_owners_to_undo(store: HostStore) -> None:
    """Whether the owner had drained it before or does so again; his own drain anybody of the two undoes."""
    node = joined(store)
    owner = {"actor": node.wallet, "wallet": node.wallet}
    for first in (None, "draining"):
        if first is not None:
            store.nodes.set_state(node.id, "draining", **owner)
        drained = store.nodes.set_state(node.id, "draining", actor="admin")
        assert drained.drained_by == "admin"
        again = store.nodes.set_state(node.id, "draining", **owner)
        assert again.drained_by == "admin"
        with pytest.raises(NodeDrained, match="operator of this server has drained this node"):
            store.nodes.set_state(node.id, "active", **owner)
        assert store.nodes.get(node.id).state == "draining"
        back = store.nodes.set_state(node.id, "active", actor="admin")
        assert (back.state, back.drained_by) == ("active", None)
    store.nodes.set_state(node.id, "draining", **owner)
    assert store.nodes.get(node.id).drained_by == node.wallet
    assert store.nodes.set_state(node.id, "active", actor="admin").state == "active"
    store.nodes.set_state(node.id, "draining", actor="admin")
    revoked = store.nodes.set_state(node.id, "revoked", **owner)
    assert revoked.state == "revoked"


def test_a_key_can_be_replaced_by_a_good_one(store: HostStore) -> None:
    """One of small order is refused, as anybody could sign for it."""
    node, key = joined(store), NodeKey.generate().public_hex
    old = node.key or ""
    for _ in range(2):  # its answer may have been lost
        store.nodes.set_key(node.id, key, old=old)
        assert store.nodes.get(node.id).key == key
    # Who has shown the old one just before is not the node any more.
    for shown in (old, None):
        with pytest.raises(UnknownNode):
            store.nodes.update(node.id, facts(), address="", key=shown)
    assert store.nodes.update(node.id, facts(), address="", key=key).key == key
    for bad in ("01" + 62 * "0", "0" * 64, "x", key.upper()):
        with pytest.raises(NodeKeyError):
            store.nodes.set_key(node.id, bad, old=key)
    other = NodeKey.generate().public_hex
    for node_id, known in (("x", key), (node.id, old), (joined(store, protocol=1).id, old)):
        with pytest.raises(UnknownNode):
            store.nodes.set_key(node_id, other, old=known)
    store.nodes.set_state(node.id, "revoked", actor="admin")
    with pytest.raises(UnknownNode):
        store.nodes.set_key(node.id, other, old=key)


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


def test_a_node_that_is_back_takes_the_place_of_its_older_connection(
    store: HostStore, clock: Clock
) -> None:
    """With what its machine is now, by its key; asked again, as the answer was lost, nothing is replaced."""
    node = joined(store, connect=False)
    assert node.key is not None

    def back(relay: str, socket: str, hostname: str = "new", key: str = node.key) -> Resumed | None:
        return store.nodes.resume(
            node.id,
            facts(hostname=hostname, gpus=node.gpus),
            address="192.0.2.9",
            key=key,
            relay=relay,
            socket=socket,
        )

    first = back("one", "a")
    assert first is not None
    assert first.before is None
    assert first.node == store.nodes.get(node.id)
    assert (first.node.hostname, first.node.address, first.node.gpus) == (
        *("new", "192.0.2.9"),
        node.gpus,
    )
    assert (first.node.relay, first.node.socket) == ("one", "a")
    again, second = back("one", "a"), back("one", "b")
    assert again is not None
    assert again.before is None
    assert second is not None
    assert second.before == ("one", "a")

    # Another gateway leaves it to the one that has heard it lately, and takes it from one that has not.
    clock.now_s += store.offline_ms / 1000
    before = store.nodes.get(node.id)
    assert back("two", "c", hostname="elsewhere") is None
    assert store.nodes.get(node.id) == before
    clock.now_s += 1
    third = back("two", "c")
    assert third is not None
    assert third.before == ("one", "b")

    with pytest.raises(UnknownNode):
        back("two", "d", key=NodeKey.generate().public_hex)
    assert store.nodes.key(node.id) == node.key
    store.nodes.set_state(node.id, "banned", actor="admin")
    with pytest.raises(UnknownNode):
        back("two", "d")
    assert store.nodes.get(node.id).socket == "c"


def test_a_node_that_is_back_keeps_the_jobs_that_it_names(store: HostStore, clock: Clock) -> None:
    """From that moment on, for a lease's time, as if it had never been away; others run out as they would have."""
    node, other = joined(store), joined(store)
    assert node.key is not None
    jobs = [store.jobs.submit(sleep(only_node=one.id, timeout_s=600)).id for one in (node, other)]
    for job_id in jobs:
        running(store, job_id)
    for one in (node, other):
        store.presence.disconnected(one.id, f"socket of {one.id}")
    clock.now_s += store.offline_ms / 1000
    how = {"address": node.address, "key": node.key, "relay": "here", "socket": "new"}
    assert store.nodes.resume(node.id, facts(gpus=node.gpus), **how, job_ids=[*jobs, "x"])
    assert [done.attempt.job_id for done in store.leases.sweep()] == [jobs[1]]
    [turn] = store.jobs.attempts(jobs[0])
    assert turn.lease_until_ms == store.now_ms() + LEASE_MS


def test_a_node_that_registers_is_connected_by_that(store: HostStore) -> None:
    """It is online at once; whoever brings the token once more, with its key, is not yet."""
    token, key = store.owners.issue_token(new_wallet(), proven=True).token, NodeKey.generate()
    how = {"address": "192.0.2.1", "key": key.public_hex, "relay": "here"}
    node = store.nodes.register(token, facts(), **how, socket="a")
    assert (node.relay, node.socket) == ("here", "a")
    assert node.status(store.now_ms(), store.offline_ms) == "online"
    again = store.nodes.register(token, facts(), **how, socket="b")
    assert (again.id, again.socket) == (node.id, "a")
    for unknown in ("x", joined(store, protocol=1).id):
        with pytest.raises(UnknownNode):
            store.nodes.key(unknown)


@pytest.mark.parametrize("why", ["banned", "revoked", "another key"])
def test_who_is_refused_changes_nothing(store: HostStore, why: str) -> None:
    """What the node is, and its GPUs, stay as they are, by whichever way it comes."""
    token, key = (
        store.owners.issue_token(new_wallet(), proven=True).token,
        NodeKey.generate().public_hex,
    )
    node = store.nodes.register(token, facts(), address="192.0.2.1", key=key)
    shown = key if why != "another key" else NodeKey.generate().public_hex
    if why in {"banned", "revoked"}:
        store.nodes.set_state(node.id, why, actor="admin")  # type: ignore[arg-type]
    before, new = store.nodes.get(node.id), facts(hostname="new", gpus=gpus(3))
    with pytest.raises(UnknownNode):
        store.nodes.resume(node.id, new, address="x", key=shown, relay="one", socket="a")
    with pytest.raises((UnknownNode, TokenRefused)):
        store.nodes.register(token, new, address="x", key=shown)
    assert store.nodes.get(node.id) == before


def test_a_used_token_with_the_nodes_key_changes_nothing_yet(store: HostStore) -> None:
    """Another connection may have the node, whose facts these are not: `resume` decides."""
    token, key = (
        store.owners.issue_token(new_wallet(), proven=True).token,
        NodeKey.generate().public_hex,
    )
    node = store.nodes.register(token, facts(), address="192.0.2.1", key=key)
    new = facts(hostname="new", gpus=gpus(3))
    assert store.nodes.register(token, new, address="192.0.2.9", key=key) == node
    assert store.nodes.get(node.id) == node
