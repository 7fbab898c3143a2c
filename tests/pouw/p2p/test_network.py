"""Networks of nodes that link, pass on, ask, and keep out."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Coroutine
from typing import Any

import pytest

from pocqueue.pouw.errors import LinkError
from pocqueue.pouw.p2p import relay
from pocqueue.pouw.p2p.frames import LIMITS, MAX_ANSWER_BYTES, UNASKED, Kind, Limit, answer_to
from pocqueue.pouw.p2p.handshake import Refused
from pocqueue.pouw.p2p.link import Link
from pocqueue.pouw.p2p.messages import Ids, Reason
from pocqueue.pouw.p2p.network import MAX_HALF_OPEN_OF_ADDRESS
from pocqueue.pouw.p2p.relay import pushed_id
from pocqueue.pouw.p2p.roster import MAX_INBOUND_OF_ADDRESS
from pocqueue.pouw.wire.codec import decode, encode
from tests.pouw.p2p.nodes import Node, id_of, running
from tests.pouw.p2p.rogue import connected, linked
from tests.support.waiting import PATIENCE_S, until


@pytest.fixture(autouse=True)
def _told_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before those who are not linked find each other by themselves."""
    monkeypatch.setattr(relay, "_TELL_PUSHED_S", (0.02, 0.08))


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


async def test_what_is_pushed_goes_whole_over_no_more_links_than_it_must() -> None:
    """Where everybody is linked to everybody, the one that made it sends it; others tell of it at most."""
    nodes, body = [Node(name) for name in "abcde"], bytes(50_000)
    async with running(*nodes):
        for number, node in enumerate(nodes):
            for other in nodes[:number]:
                await node.network.connect(*other.where)
        await until(lambda: all(len(node.network.peers) == 4 for node in nodes))
        nodes[0].network.push(Kind.ITERATION, body)
        await until(lambda: all(node.keeper.received for node in nodes[1:]))
        # Whatever is told of it has come once something that goes the same ways behind it has.
        nodes[1].network.push(Kind.VOTE, b"later")
        later = (Kind.VOTE, b"later")
        await until(
            lambda: all(later in node.keeper.received for node in nodes if node is not nodes[1])
        )
        assert nodes[0].network.traffic.bytes_out > 4 * len(body)
        for node in nodes[1:]:
            assert node.network.traffic.bytes_out < len(body)


async def test_a_committee_talks_to_its_members_alone() -> None:
    """As long as whoever says something is linked to all of them; else others pass it on."""
    a, b, c, d = nodes = [Node(name) for name in "abcd"]
    word, other, news = (Kind.VOTE, b"word"), (Kind.VOTE, b"other"), (Kind.RECORD, b"news")
    async with running(*nodes):
        for node, linked_to in ((a, [b, c, d]), (b, [c, d])):
            for one in linked_to:
                await node.network.connect(*one.where)
        for node in nodes:
            node.network.set_members([a.network.account, b.network.account, c.network.account])
        a.network.push(*word)
        await until(lambda: word in b.keeper.received and word in c.keeper.received)
        # c is not linked to d, nor d to c: nobody else tells it.
        b.network.push(*news)
        await until(lambda: news in d.keeper.received)
        for node in (a, c):
            node.network.set_members(one.network.account for one in (a, c, d))
        c.network.push(*other)
        await until(lambda: other in d.keeper.received)
        assert word not in d.keeper.received


async def test_what_a_committee_has_come_to_is_sent_to_others_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its members have it as well; one that has not fetches it."""
    a, c = Node("a"), Node("c")
    b = Node("b", max_peers=1)  # it finds nobody else by itself
    async with running(a, b, c):
        for other in (b, c):
            await a.network.connect(*other.where)
        a.network.set_members([a.network.account, b.network.account])
        a.network.publish(Kind.RECORD, b"first")
        await until(lambda: all((Kind.RECORD, b"first") in one.keeper.received for one in (b, c)))
        # Longer than this test waits for anything.
        for window in ("_TELL_PUSHED_S", "_TELL_SOON_S"):
            monkeypatch.setattr(relay, window, (1000.0, 1000.0))
        a.network.publish(Kind.RECORD, b"second")
        a.network.push(Kind.VOTE, b"word")
        await until(lambda: (Kind.RECORD, b"second") in c.keeper.received)
        await until(lambda: (Kind.VOTE, b"word") in b.keeper.received)
        assert (Kind.RECORD, b"second") not in b.keeper.received


async def test_what_is_told_is_fetched_by_whom_it_did_not_come_to() -> None:
    """A member has a record as well, and the one that was to push it is gone."""
    a, b, c = Node("a"), Node("b"), Node("c")
    async with running(a, b, c):
        for other in (b, c):
            await a.network.connect(*other.where)
        b.network.push(Kind.RECORD, b"slot")
        await until(lambda: c.keeper.received == [(Kind.RECORD, b"slot")])
        a.network.tell(Kind.RECORD, b"slot")
        a.network.tell(Kind.RECORD, b"next")
        await until(lambda: (Kind.RECORD, b"next") in b.keeper.received)
        await until(lambda: len(c.keeper.received) == 2)
        assert [len(one.keeper.received) for one in (a, b, c)] == [1, 1, 2]


async def test_who_had_to_ask_is_told_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that is not linked to whoever makes what is pushed does not wait for long each time."""
    a, b, d = Node("a"), Node("b"), Node("d")
    c = Node("c", max_peers=1)  # it finds nobody else by itself
    nodes = (a, b, c, d)
    async with running(*nodes):
        for other in (b, c, d):
            await a.network.connect(*other.where)
        await b.network.connect(*d.where)
        b.network.push(Kind.RECORD, b"first")
        await until(lambda: all((Kind.RECORD, b"first") in one.keeper.received for one in (c, d)))
        # Longer than this test waits for anything.
        monkeypatch.setattr(relay, "_TELL_PUSHED_S", (1000.0, 1000.0))
        c.network.push(Kind.VOTE, b"of c")  # of which b and d would have to be told
        b.network.push(Kind.RECORD, b"second")
        await until(lambda: (Kind.RECORD, b"second") in c.keeper.received)
        assert (Kind.VOTE, b"of c") in a.keeper.received
        assert all((Kind.VOTE, b"of c") not in one.keeper.received for one in (b, d))


async def test_what_was_said_of_a_turn_that_is_over_is_told_to_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its record is, and what is said of the next turn."""
    a, b, c = Node("a"), Node("b"), Node("c")
    # Longer than this test waits for anything.
    monkeypatch.setattr(relay, "_TELL_PUSHED_S", (1000.0, 1000.0))
    async with running(a, b, c):
        for other in (b, c):
            await a.network.connect(*other.where)
        b.network.push(Kind.VOTE, b"first")
        b.network.push(Kind.ITERATION, b"message")
        b.network.push(Kind.RECORD, b"slot before")
        b.network.push(Kind.RECORD, b"slot")
        await until(lambda: len(a.keeper.received) == 4)
        a.network.turn_is_over()
        b.network.push(Kind.VOTE, b"second")
        await until(lambda: len(a.keeper.received) == 5)
        for _ in range(2):
            a.network._relay._tell_pushed()
        await until(lambda: len(c.keeper.received) == 2)
        assert sorted(c.keeper.received) == [(Kind.RECORD, b"slot"), (Kind.VOTE, b"second")]


async def test_who_asks_for_a_slot_is_told_what_the_next_ones_are_made_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its miner is not linked to the asker, and the slot may be over before anybody would tell of its messages."""
    a, b, c = Node("a"), Node("b"), Node("c")
    # Longer than this test waits for anything.
    for window in ("_TELL_PUSHED_S", "_TELL_SOON_S"):
        monkeypatch.setattr(relay, window, (1000.0, 1000.0))
    async with running(a, b, c):
        for other in (b, c):
            await a.network.connect(*other.where)
        await c.network.request(a.network.account, Kind.SLOTS, b"")
        b.network.push(Kind.ITERATION, b"message")
        await until(lambda: len(a.keeper.received) == 1)
        for record in (b"slot", b"next"):
            a.network.tell(Kind.RECORD, record)
        a.network.turn_is_over()
        told = [(Kind.ITERATION, b"message"), (Kind.RECORD, b"next"), (Kind.RECORD, b"slot")]
        await until(lambda: sorted(c.keeper.received) == told)
        assert a.network._relay._holders.keys() == a.network._relay._untold_pushed.keys()


async def test_what_does_not_come_is_had_from_another() -> None:
    """A peer tells of a message and does not give it; another one that has it is asked."""
    a, b = Node("a"), Node("b")
    body = encode(Ids(Kind.PUSHED, (pushed_id(Kind.RECORD, b"slot"),)))
    async with running(a, b), linked(*b.where) as rogue:
        rogue.channel.send(Kind.ANNOUNCE, body)
        while (await rogue.channel.read())[0] != Kind.WANT:
            pass
        await a.network.connect(*b.where)
        async with linked(*a.where) as other:
            other.channel.send(Kind.RECORD, b"slot")
            await until(lambda: b.keeper.received == [(Kind.RECORD, b"slot")])


async def test_what_came_too_early_is_taken_when_it_comes_again() -> None:
    """And passed on then, not before."""
    a, b, c = Node("a"), Node("b"), Node("c")
    b.keeper.too_early.add(b"early")
    async with running(a, b, c):
        for other in (a, c):
            await other.network.connect(*b.where)
        a.network.push(Kind.ITERATION, b"early")
        a.network.push(Kind.ITERATION, b"other")
        await until(lambda: c.keeper.received == [(Kind.ITERATION, b"other")])
        b.keeper.too_early.clear()
        a.network.push(Kind.ITERATION, b"early")
        await until(lambda: (Kind.ITERATION, b"early") in c.keeper.received)
        assert len(b.keeper.received) == 3


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


async def test_a_block_of_ones_own_is_sent_without_being_asked_for() -> None:
    """Once to each peer; who has it from another one by then takes no notice. Others ask for it."""
    a, b, c = Node("a"), Node("b"), Node("c")
    block = b"a block"
    async with running(a, b, c):
        await a.network.connect(*b.where)
        await c.network.connect(*b.where)
        for _ in range(60):  # more than would ban it, were it a fault
            a.network.push_block(id_of(block), block)
        a.network.push(Kind.RECORD, b"end")
        await until(lambda: (Kind.RECORD, b"end") in b.keeper.received)
        assert b.keeper.received == [(Kind.BLOCK, block), (Kind.RECORD, b"end")]
        await until(lambda: (Kind.BLOCK, block) in c.keeper.received)
        assert not b.keeper.charges


async def test_what_comes_unasked_settles_no_question() -> None:
    """A stranger sends something else by the id of a block; the answer of whoever was asked for it still counts."""
    node = Node("a")
    identifier = id_of(b"block")
    async with running(node), linked(*node.where) as asked, linked(*node.where) as stranger:
        asked.channel.send(Kind.ANNOUNCE, encode(Ids(Kind.BLOCK, (identifier,))))
        await asked.next(Kind.WANT)
        stranger.channel.send(Kind.BLOCK, identifier, b"other")
        await until(lambda: node.keeper.received == [(Kind.BLOCK, b"other")])
        asked.channel.send(Kind.BLOCK, identifier, b"block")
        await until(lambda: (Kind.BLOCK, b"block") in node.keeper.received)
        assert not node.keeper.charges


async def test_blocks_that_nobody_asked_for_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above their rate nobody looks at one, and each costs points."""
    monkeypatch.setitem(UNASKED, Kind.BLOCK, Limit(1000, per_second=1e-9, burst=5))
    node = Node("a")
    async with running(node), linked(*node.where) as rogue:
        for number in range(8):
            body = b"block %d" % number
            rogue.channel.send(Kind.BLOCK, id_of(body), body)
        rogue.channel.send(Kind.VOTE, b"behind them")
        await until(lambda: (Kind.VOTE, b"behind them") in node.keeper.received)
        assert len(node.keeper.received) == 5 + 1
        reason = "it sent a BLOCK that it was not asked for"
        assert node.keeper.charges == [(2, reason, False)] * 3


async def test_who_mines_many_blocks_at_once_sends_no_more_than_may_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others are told of; all of them come, and nothing is held against it."""
    monkeypatch.setitem(UNASKED, Kind.BLOCK, Limit(1000, per_second=1e-9, burst=4))
    a, b = Node("a"), Node("b")
    blocks = [b"block %d" % number for number in range(6)]
    a.keeper.bodies = {id_of(block): block for block in blocks}
    async with running(a, b):
        await a.network.connect(*b.where)
        for identifier, block in a.keeper.bodies.items():
            a.network.push_block(identifier, block)
        await until(lambda: len(b.keeper.received) == 6)
        assert sorted(b.keeper.received) == [(Kind.BLOCK, block) for block in blocks]
        assert a.keeper.num_looked_up == 4
        assert not b.keeper.charges


async def test_who_answers_after_another_one_is_not_held_to_account(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was asked first and had no time; so are all its answers, more than would ban it."""
    monkeypatch.setattr("pocqueue.pouw.p2p.gossip.ASK_S", 0.0)
    node, quick = Node("a"), Node("quick")
    bodies = {id_of(body): body for body in (b"tx %d" % i for i in range(60))}
    quick.keeper.bodies = dict(bodies)
    ids = encode(Ids(Kind.TX, tuple(bodies)))
    async with running(node, quick), linked(*node.where) as slow:
        await quick.network.connect(*node.where)
        slow.channel.send(Kind.ANNOUNCE, ids)
        await slow.next(Kind.WANT)
        quick.network.announce(Kind.TX, *bodies)
        await until(lambda: len(node.keeper.received) == 60)
        for identifier, body in bodies.items():
            slow.channel.send(Kind.TX, identifier, body)
        slow.channel.send(Kind.STATUS, b"\0\0\0\1", b"there?")
        assert await slow.next(answer_to(Kind.STATUS)) == b"\0\0\0\1there?"
        # Behind them in the same line.
        slow.channel.send(Kind.VOTE, b"last")
        await until(lambda: (Kind.VOTE, b"last") in node.keeper.received)
        assert not node.keeper.charges
        assert len(node.keeper.received) == 61


async def test_transactions_are_announced_on_many_at_once() -> None:
    """Or who passes on as many as may come would send too many announcements."""
    a, b = Node("a"), Node("b")
    a.keeper.bodies = {id_of(body): body for body in (b"tx %d" % i for i in range(200))}
    async with running(a, b), linked(*b.where) as third:
        await a.network.connect(*b.where)
        a.network.announce(Kind.TX, *a.keeper.bodies)
        told, frames = set[bytes](), 0
        while len(told) < 200:
            told |= set(decode(await third.next(Kind.ANNOUNCE), Ids).ids)
            frames += 1
        assert told == set(a.keeper.bodies)
        assert frames < 100


async def test_who_is_asked_again_for_much_is_asked_in_few_messages() -> None:
    """All that another one that is gone did not send."""
    node = Node("a")
    bodies = [b"tx %d" % i for i in range(64)]
    ids = encode(Ids(Kind.TX, tuple(map(id_of, bodies))))
    async with running(node), linked(*node.where) as second:
        async with linked(*node.where) as first:
            first.channel.send(Kind.ANNOUNCE, ids)
            await first.next(Kind.WANT)
            second.channel.send(Kind.ANNOUNCE, ids)
            second.channel.send(Kind.VOTE, b"heard")
            await until(lambda: (Kind.VOTE, b"heard") in node.keeper.received)
        assert set(decode(await second.next(Kind.WANT), Ids).ids) == set(map(id_of, bodies))


async def test_an_announcement_to_one_peer_is_its_alone() -> None:
    """Others neither hear of it nor fetch it, unless that peer passes it on."""
    a, b, c = Node("a"), Node("b"), Node("c")
    a.keeper.bodies = {id_of(body): body for body in (b"to b", b"to all")}
    async with running(a, b, c):
        for other in (b, c):
            await a.network.connect(*other.where)
        assert a.network.announce(Kind.TX, id_of(b"to b"), to=b.network.account) == 1
        assert a.network.announce(Kind.TX, id_of(b"to b"), to=bytes(33)) == 0
        assert a.network.announce(Kind.TX, id_of(b"to all")) == 2
        await until(lambda: len(b.keeper.received) == 2 and c.keeper.received)
        assert c.keeper.received == [(Kind.TX, b"to all")]


async def test_who_wants_without_end_is_given_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No more is looked up or sent than the peer may send itself, half a burst at once; the rest of its link goes on."""
    monkeypatch.setitem(LIMITS, Kind.TX, Limit(1000, per_second=1e-9, burst=20))
    node = Node("a")
    node.keeper.bodies = {id_of(b"tx"): b"tx"}
    async with running(node), linked(*node.where) as rogue:
        ids = encode(Ids(Kind.TX, (id_of(b"tx"), id_of(b"unknown")) * 32))
        for _ in range(100):
            rogue.channel.send(Kind.WANT, ids)
        for _ in range(5):
            assert await rogue.next(Kind.TX) == id_of(b"tx") + b"tx"
        rogue.channel.send(Kind.STATUS, b"\0\0\0\1", b"there?")
        assert await rogue.next(answer_to(Kind.STATUS)) == b"\0\0\0\1there?"
        assert node.keeper.num_looked_up == 10
        assert not node.keeper.charges


async def test_one_address_has_few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four links and eight connections that are none yet, whatever keys it has; here, where it is not this machine's own."""
    monkeypatch.setattr("pocqueue.pouw.p2p.roster.is_loopback", lambda _host: False)
    monkeypatch.setattr("pocqueue.pouw.p2p.network.is_loopback", lambda _host: False)
    node, dialled = Node("a"), Node("dialled")
    async with running(node, dialled), contextlib.AsyncExitStack() as open_:
        await node.network.connect(*dialled.where)
        for _ in range(MAX_INBOUND_OF_ADDRESS):
            await open_.enter_async_context(linked(*node.where))
        with pytest.raises(Refused, match="no place for another peer"):
            async with linked(*node.where):
                pass
        silent = [
            await open_.enter_async_context(connected(*node.where))
            for _ in range(MAX_HALF_OPEN_OF_ADDRESS)
        ]
        with pytest.raises(LinkError):
            async with connected(*node.where):
                pass
        assert len(node.network.peers) == MAX_INBOUND_OF_ADDRESS + 1
        await silent[0].channel.close()

        async def has_room() -> bool:
            with contextlib.suppress(LinkError):
                async with connected(*node.where):
                    return True
            return False

        await until(has_room)


async def test_what_one_peer_does_not_send_another_is_asked_for() -> None:
    """As soon as the first one is gone."""
    node, good = Node("a"), Node("good")
    good.keeper.bodies[id_of(b"tx")] = b"tx"
    async with running(node, good):
        async with linked(*node.where) as rogue:
            await good.network.connect(*node.where)
            rogue.channel.send(Kind.ANNOUNCE, encode(Ids(Kind.TX, (id_of(b"tx"),))))
            await rogue.next(Kind.WANT)
            good.network.announce(Kind.TX, id_of(b"tx"))
            account = node.network.account
            assert await good.network.request(account, Kind.STATUS, b"heard?", 60)
            assert not node.keeper.received
        await until(lambda: node.keeper.received == [(Kind.TX, b"tx")])


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


async def test_there_are_only_so_many_links() -> None:
    """Half of them from outside; of two hundred at once, the others are told, and nobody else notices."""
    node, good = Node("a", max_peers=10), Node("good")
    async with running(node, good):
        account = (await good.network.connect(*node.where)).account

        async def tried() -> Reason | None:
            with contextlib.suppress(Refused):
                async with linked(*node.where):
                    await asyncio.sleep(0)
                    await done.wait()
                return None
            return Reason.FULL

        done = asyncio.Event()
        tries = [asyncio.create_task(_result(tried())) for _ in range(200)]
        await until(lambda: sum(each.done() for each in tries) >= 196)
        assert len(node.network.peers) == 5
        assert await good.network.request(account, Kind.STATUS, b"there?", 60) == b"there?"
        done.set()
        outcomes = await asyncio.gather(*tries)
        assert outcomes.count("linked") == 4
        assert Reason.FULL in outcomes
        await until(lambda: node.names == {"good"})


async def test_who_is_disconnected_stays_away() -> None:
    """By name or account, also over loopback; others do not."""
    a, b, c = Node("a"), Node("b"), Node("c")
    async with running(a, b, c):
        await b.network.connect(*a.where)
        await c.network.connect(*a.where)
        assert await a.network.disconnect("b")
        assert not await a.network.disconnect("b")
        assert not await a.network.disconnect(bytes(33))
        await until(lambda: not b.network.peers)
        assert b.keeper.ended[0] == "it has disconnected this node"
        assert a.keeper.ended == ["it was disconnected here"]
        with pytest.raises(LinkError, match="it has banned this node for a while"):
            await b.network.connect(*a.where)
        with pytest.raises(LinkError, match="it is banned here for a while"):
            await a.network.connect(*b.where)
        assert a.names == {"c"}
        assert await a.network.disconnect(c.network.account)


async def test_points_ban_but_where_nobody_is_to_be_banned() -> None:
    """A hundred in all; the service hears of it. Without bans it hears the same, and the link stays."""
    a, b, c = Node("a"), Node("b"), Node("c", bans=False)
    async with running(a, b, c):
        for node in (a, c):
            await b.network.connect(*node.where)
            node.network.charge(b.network.account, 50, "a map was refused")
            assert node.names == {"b"}
            node.network.charge(b.network.account, 50, "another one")
        assert a.keeper.charges == [(50, "a map was refused", False), (50, "another one", True)]
        assert c.keeper.charges == [(50, "a map was refused", False), (50, "another one", False)]
        await until(lambda: b.names == {"c"})
        assert b.keeper.ended == ["it has banned this node for a while"]


async def test_two_nodes_that_dial_each_other_at_once_have_one_link() -> None:
    """Whoever dialled; both sides have the same one in the end, and it works."""
    for _ in range(5):
        a, b = Node("a"), Node("b")
        async with running(a, b):
            await asyncio.gather(
                a.network.connect(*b.where), b.network.connect(*a.where), return_exceptions=True
            )
            await until(lambda a=a, b=b: a.names == {"b"} and b.names == {"a"})  # type: ignore[misc]
            await until(lambda a=a, b=b: a.network.peers[0].outbound != b.network.peers[0].outbound)  # type: ignore[misc]
            answer = await a.network.request(b.network.account, Kind.STATUS, b"one", 60)
            assert answer == b"one"
            again = await a.network.connect(*b.where)
            assert again.account == b.network.account
            assert len(a.network.peers) == len(b.network.peers) == 1
            assert not a.keeper.charges
            assert not b.keeper.charges


async def test_a_taken_port_is_named() -> None:
    """So that another one can be given; the first node has it as before."""
    a = Node("a")
    async with running(a):
        port = a.where[1]
        b = Node("b", port=port)
        with pytest.raises(LinkError, match=f"^port {port} of 127.0.0.1 is taken: give another"):
            await b.network.start()
        await b.network.stop()
        with pytest.raises(LinkError, match=r"^192\.0\.2\.1 is no address of this machine"):
            await Node("c", host="192.0.2.1").network.start()


async def test_localhost_is_both_addresses_on_one_port() -> None:
    """IPv4, and IPv6 where there is some."""
    a, b = Node("a", host="localhost"), Node("b")
    async with running(a, b):
        assert {port for _, port in a.network.listening} == {a.network.port}
        assert a.network.listening[0][0] == "127.0.0.1"
        for host, port in a.network.listening:
            assert (await b.network.connect(host, port)).account == a.network.account
        assert len(b.network.peers) == 1
        if _has_ipv6():
            assert a.network.listening[1][0] == "::1"


async def test_a_stop_says_goodbye_and_may_be_repeated() -> None:
    """Also to a peer that does not read; what was asked ends."""
    a, b = Node("a"), Node("b")
    async with running(a, b):
        account = (await b.network.connect(*a.where)).account
        async with linked(*a.where) as rogue:
            rogue.read_no_more()
            for i in range(10):
                a.network.push(Kind.RECORD, bytes(500_000) + b"%d" % i)
            asked = asyncio.create_task(b.network.request(account, Kind.STATUS, b"wait", 60))
            await until(lambda: len(a.network.peers) == 2)
            async with asyncio.timeout(PATIENCE_S):
                await a.network.stop()
                await a.network.stop()
        with pytest.raises(LinkError):
            await asked
        await until(lambda: b.keeper.ended)
        assert b.keeper.ended == ["it stops"]
        assert not a.network.peers
        assert a.network.port == 0


async def test_a_goodbye_counts_whatever_is_sent_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there and not read yet, for much stands before it; the connection is closed already."""
    node, may_go_on = Node("a"), asyncio.Event()
    receive = node.keeper.receive

    async def held(*args: Any) -> bool:
        await may_go_on.wait()
        return await receive(*args)

    monkeypatch.setattr(node.keeper, "receive", held)
    async with running(node), linked(*node.where) as rogue:
        [link] = node.network._roster.links.values()
        for number in range(9):
            rogue.channel.send(
                Kind.RECORD, bytes(LIMITS[Kind.RECORD].max_bytes - 1) + b"%d" % number
            )
        await until(lambda: len(link._inbox._items) == 8)
        rogue.channel.send(Kind.VOTE, b"one too many")
        rogue.channel.say_goodbye(Reason.STOPPING)
        rogue.writer.close()
        await until(link._channel.writer.transport.is_closing)
        node.network.push(Kind.VOTE, b"anybody there?")
        assert node.keeper.ended == []
        may_go_on.set()
        await until(lambda: node.keeper.ended)
        assert node.keeper.ended == ["it stops"]
        # What it said before is heard: its sender may be gone for good, and nobody else have it.
        assert len(node.keeper.received) == 10


async def test_what_is_given_is_told_once_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stops as soon as it has given something has not lost it."""
    a, b, may_send = Node("a"), Node("b"), asyncio.Event()
    send_in_turn = Link.send_in_turn

    async def held(link: Link, kind: int, *parts: bytes) -> None:
        if kind == Kind.TX:
            held_back.set()
            await may_send.wait()
        await send_in_turn(link, kind, *parts)

    held_back = asyncio.Event()
    monkeypatch.setattr(Link, "send_in_turn", held)
    async with running(b):
        async with running(a):
            await a.network.connect(*b.where)
            a.keeper.bodies[id_of(b"order")] = b"order"
            a.network.announce(Kind.TX, id_of(b"order"))
            await held_back.wait()
            assert a.keeper.sent == []
            may_send.set()
            await until(lambda: a.keeper.sent == [id_of(b"order")])
        await until(lambda: b.keeper.ended)
        assert b.keeper.received == [(Kind.TX, b"order")]


async def _result(work: Coroutine[object, object, Reason | None]) -> Reason | str:
    try:
        return await work or "linked"
    except LinkError:
        return "closed"  # at the door: too many half-open ones


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
