"""Who gets a link, and what the others are told. Real sockets; the man in the middle is a real proxy."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import ssl

import pytest

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.errors import LinkError
from pocqueue.pouw.p2p.channel import Channel, Traffic
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.messages import VERSION, Goodbye, Hello, Introduction, Reason
from pocqueue.pouw.p2p.network import MAX_HALF_OPEN
from pocqueue.pouw.p2p.sockets import dial
from pocqueue.pouw.p2p.tls import Certificate, binding, dialling_context
from pocqueue.pouw.wire.codec import decode, encode
from tests.pouw.p2p.listener import in_between, listening
from tests.pouw.p2p.nodes import NETWORK, Node, running
from tests.pouw.p2p.rogue import connected, identity
from tests.support.waiting import until


async def test_a_man_in_the_middle_gets_no_link() -> None:
    """He ends TLS on both sides with a certificate of his own and passes on every byte."""
    a, b = Node("a"), Node("b")
    async with running(a, b), in_between(b.where) as (middle, seen):
        with pytest.raises(LinkError, match="key is not proven: somebody may be in between"):
            await a.network.connect(*middle)
        assert NETWORK in bytes(seen)
        assert not a.network.peers
        assert not b.network.peers
        await a.network.connect(*b.where)


@pytest.mark.parametrize("port", [7, 8000])
async def test_a_listener_has_to_prove_its_key(port: int) -> None:
    """A proof by another key than the one that it named is none, whatever else it says."""
    victim, own = SigningKey.generate(), SigningKey.generate()
    node = Node("a")

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = Channel(reader, writer, Traffic())
        await channel.read()
        account = bytes.fromhex(victim.public_hex)
        challenge = secrets.token_bytes(32)
        channel.send(Kind.INTRODUCTION, encode(Introduction(VERSION, NETWORK, account, challenge)))
        await channel.read()
        proof = bytes.fromhex(own.sign(b"whatever"))
        channel.send(Kind.HELLO, encode(Hello(proof, "victim", "miner", port)))
        kind, body = await channel.read()
        assert (kind, decode(body, Goodbye).reason) == (Kind.GOODBYE, Reason.NOT_PROVEN)

    async with running(node), listening(talk, Certificate.generate().context) as where:
        with pytest.raises(LinkError, match=r"^its key is not proven: somebody may be in between$"):
            await node.network.connect(*where)
        assert not node.network.peers


async def test_a_proof_of_another_connection_is_none() -> None:
    """Sent again as it was, with its introduction and all."""
    node, who = Node("a"), identity()
    async with running(node):
        recorded: list[bytes] = []
        for _ in range(2):
            async with connected(*node.where) as rogue:
                intro = recorded[0] if recorded else encode(who.introduction())
                rogue.channel.send(Kind.INTRODUCTION, intro)
                theirs = decode(await rogue.next(Kind.INTRODUCTION), Introduction)
                if recorded:
                    rogue.channel.send(Kind.HELLO, recorded[1])
                    assert await rogue.end() is Reason.NOT_PROVEN
                    continue
                tls = rogue.writer.get_extra_info("ssl_object")
                seen = hashlib.sha256(tls.getpeercert(binary_form=True)).digest()
                mine = decode(intro, Introduction)
                hello = encode(who.hello(binding(seen, mine, theirs, by_dialler=True)))
                recorded += [intro, hello]
                rogue.channel.send(Kind.HELLO, hello)
                assert await rogue.next(Kind.HELLO)
        assert not node.network.peers or node.names == {"rogue"}


async def test_why_there_is_no_link_is_said() -> None:
    """In words that fit behind a colon, whatever is at the other end."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def answers_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async def says_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        Channel(reader, writer, Traffic()).send(Kind.INTRODUCTION, b"nonsense")
        await writer.drain()
        await reader.read()

    key = SigningKey.generate()
    node, twin = Node("a", key, handshake_s=0.5), Node("twin", key)
    other = Node("other", network=hashlib.sha256(b"other").digest())
    patient = Node("patient")
    context = Certificate.generate().context
    async with (
        running(node, twin, other, patient),
        listening(silent, None) as mute,
        listening(answers_http, None) as http,
        listening(says_nonsense, context) as nonsense,
    ):
        free = twin.where[1]
        await twin.network.stop()
        for network, where, why in [
            (node.network, mute, r"no answer within 0\.5 s"),
            (patient.network, http, r"it speaks no TLS 1\.3"),
            (patient.network, nonsense, "it sent no Introduction where one is due"),
            (patient.network, other.where, "it belongs to another network"),
            (patient.network, patient.where, "it is this node itself"),
            (patient.network, ("127.0.0.1", free), "connection refused"),
            (patient.network, ("no-such-host.invalid", 80), "its name does not resolve"),
        ]:
            with pytest.raises(LinkError, match=f"^{why}$"):
                await network.connect(*where)
        assert not patient.network.peers


async def test_old_tls_is_refused() -> None:
    """TLS 1.3 alone, and no resumption."""
    node = Node("a")
    old = dialling_context()
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with running(node):
        with pytest.raises(LinkError, match=r"it speaks no TLS 1\.3|it closed the connection"):
            await dial(*node.where, old)
        async with connected(*node.where) as rogue:
            rogue.channel.send(Kind.INTRODUCTION, encode(identity().introduction()))
            await rogue.next(Kind.INTRODUCTION)
            tls = rogue.writer.get_extra_info("ssl_object")
            assert tls.version() == "TLSv1.3"
            assert not tls.session.has_ticket


async def test_who_says_nothing_is_in_the_way_for_a_while_only() -> None:
    """Half-open connections are few and end by themselves; then there is a place again."""
    node, good = Node("a", handshake_s=2.0), Node("good", handshake_s=60.0)
    async with running(node, good):
        silent = [await asyncio.open_connection(*node.where) for _ in range(MAX_HALF_OPEN + 20)]
        ends = [asyncio.create_task(reader.read()) for reader, _ in silent]

        async def is_linked() -> bool:
            with contextlib.suppress(LinkError):
                await good.network.connect(*node.where)
            return bool(good.network.peers)

        await until(is_linked)
        assert await asyncio.gather(*ends) == [b""] * len(ends)
        for _, writer in silent:
            writer.close()
