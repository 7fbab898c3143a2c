"""What a peer that means harm can do to a link, and to nothing else. Real sockets."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pocqueue.pouw.p2p.channel import MAX_WAITING_BYTES
from pocqueue.pouw.p2p.frames import LIMITS, REQUESTS, Kind, answer_to, header
from pocqueue.pouw.p2p.link import MAX_ASKED
from pocqueue.pouw.p2p.messages import MAX_IDS, Addresses, Ids, Ping, Reason
from pocqueue.pouw.wire.codec import encode
from tests.pouw.p2p.nodes import BAD, Node, id_of, running
from tests.pouw.p2p.rogue import connected, identity, linked
from tests.support.waiting import until


@pytest_asyncio.fixture
async def good() -> AsyncIterator[Node]:
    """A peer that keeps to the rules."""
    peer = Node("good")
    async with running(peer):
        yield peer


@pytest_asyncio.fixture
async def node(good: Node) -> AsyncIterator[Node]:
    """A node with that peer, that still answers when the test is over."""
    a = Node("a")
    async with running(a):
        account = (await good.network.connect(*a.where)).account
        yield a
        assert await good.network.request(account, Kind.STATUS, b"there?", 60) == b"there?"
        assert a.names == {"good"}


def _frame(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", len(body), kind) + body


_TOO_LONG = struct.pack(">IB", LIMITS[Kind.TX].max_bytes + 1, Kind.TX)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (_frame(200, b""), "the unknown kind 200"),
        (_frame(answer_to(Kind.CHUNK) + 1, b""), "the unknown kind 102"),
        (_TOO_LONG, "32801 bytes as kind 18, where 32800 are allowed"),
        (b"\xff" * 5, "the unknown kind 255"),
        (_frame(Kind.HELLO, b""), "HELLO after the handshake"),
        (_frame(Kind.PONG, b"\x00"), "no PONG"),
        (_frame(Kind.STATUS, b"\x00"), "a request without a number"),
        (_frame(Kind.REFUSED, b""), "an answer without a number"),
        (_frame(Kind.REFUSED, bytes(4)), "answered what it was not asked"),
        (_frame(answer_to(Kind.THETA), b"\x00\x00\x00\x01x"), "answered what it was not asked"),
    ],
)
async def test_a_broken_frame_ends_the_link(node: Node, sent: bytes, why: str) -> None:
    """It costs points, and is told what it was ended for."""
    async with linked(*node.where) as rogue:
        rogue.writer.write(sent)
        assert await rogue.end() is Reason.FAULT
    [(points, reason, is_banned)] = node.keeper.charges
    assert (points, is_banned) == (20, False)
    assert why in reason


@pytest.mark.parametrize(
    ("kind", "body", "why"),
    [
        (Kind.ANNOUNCE, b"", "no list of ids"),
        (Kind.ANNOUNCE, encode(Ids(Kind.RECORD, (bytes(32),))), "announced or wanted kind 21"),
        (Kind.WANT, encode((int(Kind.TX), (bytes(32),) * (MAX_IDS + 1))), "no list of ids"),
        (Kind.BLOCK, id_of(BAD) + BAD, "bad"),
        (Kind.TX, b"", "a TX that it was not asked for"),
        (Kind.ITERATION, BAD, "bad"),
    ],
)
async def test_a_bad_message_costs_points(node: Node, kind: Kind, body: bytes, why: str) -> None:
    """A hundred of them ban the key, but no address of this machine."""
    who = identity()
    async with linked(*node.where, who) as rogue:
        for i in range(51):
            rogue.channel.send(kind, body, b"%d" % i if kind == Kind.ITERATION else b"")
        assert await rogue.end() is Reason.BANNED
    assert why in node.keeper.charges[0][1]
    assert [is_banned for _, _, is_banned in node.keeper.charges].count(True) == 1
    with pytest.raises(ConnectionError, match="it has banned this node"):
        async with linked(*node.where, who):
            pass
    async with linked(*node.where):
        pass
    await until(lambda: node.names == {"good"})


async def test_a_flood_is_read_slowly_and_costs_points(node: Node) -> None:
    """What is too much is dropped unread."""
    limit = LIMITS[Kind.PING]
    async with linked(*node.where) as rogue:
        rogue.writer.write(_frame(Kind.PING, bytes(9)) * (limit.burst + 20))
        await until(lambda: node.keeper.charges)
        points, reason, _ = node.keeper.charges[0]
        assert (points, reason) == (20, "flood: it sends too many PING")
    await until(lambda: node.names == {"good"})


async def test_who_asks_too_fast_waits(node: Node) -> None:
    """And is answered or refused in the end, without a point."""
    num = LIMITS[Kind.STATUS].burst + 30
    async with linked(*node.where) as rogue:
        for i in range(num):
            rogue.channel.send(Kind.STATUS, struct.pack(">I", i), b"?")
        numbers: set[bytes] = set()
        while len(numbers) < num:
            kind, body = await rogue.channel.read()
            if kind in (answer_to(Kind.STATUS), Kind.REFUSED):
                numbers.add(body[:4])
    assert not node.keeper.charges
    await until(lambda: node.names == {"good"})


async def test_who_does_not_read_loses_the_link(node: Node, good: Node) -> None:
    """As soon as more waits for it than may wait; others have had all."""
    big = bytes(LIMITS[Kind.RECORD].max_bytes - 8)
    async with linked(*node.where) as rogue:
        rogue.read_no_more()
        for i in range(10 * MAX_WAITING_BYTES // len(big)):
            node.network.push(Kind.RECORD, struct.pack(">Q", i) + big)
            await until(lambda num=i + 1: len(good.keeper.received) == num)  # type: ignore[misc]
            if node.keeper.ended:
                break
        assert node.keeper.ended == ["it reads too slowly"]


async def test_who_asks_much_and_does_not_read_costs_no_memory(node: Node) -> None:
    """Answers and bodies wait for room, and requests beyond a few are refused."""
    node.keeper.answers[b"long"] = bytes(1_000_000)
    blocks = [bytes(900_000) + b"%d" % i for i in range(40)]
    node.keeper.bodies = {id_of(block): block for block in blocks}
    async with linked(*node.where) as rogue:
        rogue.channel.send(Kind.WANT, encode(Ids(Kind.BLOCK, tuple(node.keeper.bodies))))
        for i in range(40):
            rogue.channel.send(Kind.THETA, struct.pack(">I", i), b"long")
        assert await rogue.next(Kind.REFUSED)
        answers = [len(await rogue.next(answer_to(Kind.THETA))) for _ in range(3)]
        assert answers == [1_000_004] * 3
        assert not node.keeper.charges
        # Reads no more, and has the link as long as nobody has news.
        rogue.read_no_more()
        assert len(node.network.peers) == 2
    await until(lambda: node.names == {"good"})


async def test_half_a_frame_holds_nothing_up() -> None:
    """Who begins a frame and stops is taken for dead."""
    node = Node("a", ping_s=0.05, dead_s=0.5)
    async with running(node), linked(*node.where) as rogue:
        rogue.writer.write(header(Kind.BLOCK, 1_000_000) + b"only so much")
        await rogue.end()
        await until(lambda: node.keeper.ended)
        assert node.keeper.ended == ["nothing came from it for 0.5 s"]


async def test_an_answer_that_is_too_long_ends_the_link(node: Node) -> None:
    """By its head alone, before it is read."""
    who = identity()
    async with linked(*node.where, who) as rogue:
        asked = asyncio.create_task(node.network.request(who.account, Kind.STATUS, b"?", 60))
        await rogue.next(Kind.STATUS)
        limit = LIMITS[answer_to(Kind.STATUS)].max_bytes
        rogue.writer.write(struct.pack(">IB", limit + 1, answer_to(Kind.STATUS)))
        assert await rogue.end() is Reason.FAULT
        with pytest.raises(ConnectionError, match="it broke the protocol"):
            await asked
    assert [points for points, _, _ in node.keeper.charges] == [20]


async def test_who_never_answers_is_not_asked_without_end(node: Node) -> None:
    """Eight questions are out at most; a late answer is no fault."""
    who = identity()
    async with linked(*node.where, who) as rogue:
        asked = [node.network.request(who.account, Kind.STATUS, b"?", 0.3) for _ in range(20)]
        for result in await asyncio.gather(*asked, return_exceptions=True):
            assert "did not answer" in str(result)
        rogue.channel.send(Kind.PING, encode(Ping(bytes(8))))
        late = []
        while (frame := await rogue.channel.read())[0] != Kind.PONG:
            if frame[0] in REQUESTS:
                late.append(frame)
        assert 1 < len(late) <= MAX_ASKED
        for kind, body in late:
            rogue.channel.send(answer_to(Kind(kind)), body[:4], encode(Addresses(())))
        again = asyncio.create_task(node.network.request(who.account, Kind.STATUS, b"!", 60))
        number = (await rogue.next(Kind.STATUS))[:4]
        rogue.channel.send(answer_to(Kind.STATUS), number, b"now")
        assert await again == b"now"
    assert not node.keeper.charges
    await until(lambda: node.names == {"good"})


async def test_any_bytes_do_no_harm(node: Node) -> None:
    """At each stage of a connection."""
    rng = random.Random(1)  # noqa: S311 - the same in each run
    for i in range(15):
        data = rng.randbytes(rng.randrange(1, 3000))
        _, writer = await asyncio.open_connection(*node.where)
        writer.write(data)
        async with connected(*node.where) as rogue:
            rogue.writer.write(data)
            await rogue.end()
        async with linked(*node.where, identity(name=f"rogue{i}")) as rogue:
            kind = rng.choice(sorted(LIMITS))
            rogue.channel.send(kind, data[: LIMITS[kind].max_bytes])
            rogue.writer.write(data)
        writer.close()
    await until(lambda: node.names == {"good"})
