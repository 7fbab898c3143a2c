"""Networks of nodes that link, pass on, ask, and keep out."""

from __future__ import annotations

import asyncio

import pytest

from pocqueue.pouw.errors import LinkError
from pocqueue.pouw.p2p.frames import MAX_ANSWER_BYTES, Kind
from tests.pouw.p2p.nodes import Node, id_of, running
from tests.support.waiting import until


async def test_both_sides_of_a_link_know_each_other() -> None:
    """Account, name, role, and where the other one listens."""
    a, b = Node("a", role="supervisor"), Node("b")
    async with running(a, b):
        peer = await a.network.connect(*b.where)
        assert (peer.account, peer.node_id, peer.role) == (b.network.account, "b", "miner")
        assert (peer.host, peer.port, peer.outbound) == (*b.where, True)
        [other] = b.network.peers
        assert (other.account, other.node_id, other.role) == (
            *(a.network.account, "a"),
            "supervisor",
        )
        assert (other.host, other.port, other.outbound) == (*a.where, False)
        await until(lambda: all(p.rtt_s for p in a.network.peers + b.network.peers))


async def test_what_is_pushed_reaches_everybody_once() -> None:
    """Along a ring and back, each node takes it once."""
    nodes = [Node(name) for name in "abcd"]
    async with running(*nodes):
        for one, other in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
            await one.network.connect(*other.where)
        nodes[0].network.push(Kind.ITERATION, b"first")
        nodes[0].network.push(Kind.RECORD, b"second")
        wanted = [(Kind.ITERATION, b"first"), (Kind.RECORD, b"second")]
        await until(lambda: all(len(n.keeper.received) == 2 for n in nodes[1:]))
        nodes[2].network.push(Kind.RECORD, b"third")
        third = (Kind.RECORD, b"third")
        others = (*nodes[:2], nodes[3])
        await until(lambda: all(third in n.keeper.received for n in others))
        assert sorted(nodes[1].keeper.received) == sorted([*wanted, third])
        assert sorted(nodes[2].keeper.received) == wanted
        assert sorted(nodes[3].keeper.received) == sorted([*wanted, third])
        assert nodes[0].keeper.received == [third]


async def test_what_is_announced_is_fetched_and_announced_on() -> None:
    """A block of the largest size, over two links, and a hundred transactions."""
    a, b, c = Node("a"), Node("b"), Node("c")
    block = bytes(1_000_000)
    transactions = [b"tx %d" % i for i in range(100)]
    for body in (block, *transactions):
        a.keeper.bodies[id_of(body)] = body
    async with running(a, b, c):
        await a.network.connect(*b.where)
        await c.network.connect(*b.where)
        a.network.announce(Kind.BLOCK, id_of(block))
        a.network.announce(Kind.TX, *map(id_of, transactions))
        await until(lambda: len(c.keeper.received) == 101)
        assert c.keeper.received.count((Kind.BLOCK, block)) == 1
        assert {body for kind, body in c.keeper.received if kind == Kind.TX} == set(transactions)
        assert len(b.keeper.received) == 101
        assert not a.keeper.received


async def test_requests_are_answered_refused_or_given_up() -> None:
    """Also many at once, the longest answers among them, and late ones."""
    a, b = Node("a"), Node("b")
    longest = bytes(MAX_ANSWER_BYTES[Kind.THETA])
    b.keeper.answers = {b"long": longest, b"too long": longest + b"x"}
    async with running(a, b):
        account = (await a.network.connect(*b.where)).account
        answers = await asyncio.gather(
            *(a.network.request(account, Kind.STATUS, b"%d" % i, 60) for i in range(50)),
            *(a.network.request(account, Kind.THETA, b"long", 60) for _ in range(10)),
        )
        assert answers == [b"%d" % i for i in range(50)] + [longest] * 10
        with pytest.raises(LinkError, match="it has no answer to BLOCKS"):
            await a.network.request(account, Kind.BLOCKS, b"no", 60)
        with pytest.raises(LinkError, match="it has no answer to THETA"):
            await a.network.request(account, Kind.THETA, b"too long", 60)
        with pytest.raises(LinkError, match=r"it did not answer SLOTS within 0\.1 s"):
            await a.network.request(account, Kind.SLOTS, b"wait", 0.1)
        b.keeper.gate.set()
        assert await a.network.request(account, Kind.STATUS, b"after", 60) == b"after"
        assert not a.keeper.charges
        await b.network.stop()
        with pytest.raises(LinkError):
            await a.network.request(account, Kind.STATUS, b"gone", 60)
