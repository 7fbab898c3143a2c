"""How nodes find each other, and find each other again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.errors import LinkError
from pocqueue.pouw.p2p.frames import Kind, answer_to
from tests.pouw.p2p.nodes import Node, running
from tests.pouw.p2p.rogue import linked
from tests.support.waiting import PATIENCE_S, until

ROOT = Path(__file__).parents[3]


@contextlib.asynccontextmanager
async def _child(key: Path, port: int) -> AsyncIterator[tuple[Process, int]]:
    """Give a node in a process of its own, and its port; it is killed at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.pouw.p2p.node_process", str(key), str(port)),
        cwd=ROOT,
        stdout=PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            yield process, int(await process.stdout.readline())
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_a_process_that_was_killed_is_found_again(tmp_path: Path) -> None:
    """By whoever was told to link to it; nobody tells twice."""
    key, node = SigningKey.generate(), Node("a")
    key.save_pem(tmp_path / "key.pem")
    async with running(node):
        async with _child(tmp_path / "key.pem", 0) as (process, port):
            account = (await node.network.connect("localhost", port)).account
            assert account.hex() == key.public_hex
            assert await node.network.request(account, Kind.STATUS, b"one", 60) == b"one"
            process.kill()
            await until(lambda: not node.network.peers)
        async with _child(tmp_path / "key.pem", port):
            await until(lambda: node.names == {"child"})
            assert await node.network.request(account, Kind.STATUS, b"two", 60) == b"two"


async def test_all_find_all_through_one() -> None:
    """Everybody knows a first node alone."""
    first = Node("first", max_peers=20)
    async with running(first):
        others = [Node(f"n{i}", max_peers=20, bootstrap=[first.where]) for i in range(4)]
        async with running(*others):
            await others[0].network.first_dials(60)
            assert "first" in others[0].names
            names = {"first", *(node.network.config.node_id for node in others)}
            for node in (first, *others):
                wanted = names - {node.network.config.node_id}
                await until(lambda node=node, wanted=wanted: node.names == wanted)  # type: ignore[misc]
            assert not any(node.keeper.charges for node in others)


async def test_a_bootstrap_peer_that_comes_later_is_found() -> None:
    """It is dialled until it is there; the node itself, which is on the list as well, only once."""
    later = Node("later")
    async with running(later):
        port = later.where[1]
    node = Node("a", bootstrap=[("127.0.0.1", port), ("no-such-host.invalid", 80)])
    async with running(node):
        await node.network.first_dials(60)
        assert not node.network.peers
        with pytest.raises(LinkError, match="itself"):
            await node.network.connect("localhost", node.where[1])
        again = Node("later", port=port)
        async with running(again):
            await until(lambda: node.names == {"later"})


async def test_a_member_that_is_back_brings_the_others() -> None:
    """After a cut whoever was out of reach is dialled at once when one of the committee has a link again: a stranger that
    would be waited for a minute, and the member itself after a few seconds."""
    member, stranger = Node("member"), Node("stranger")
    keys = member.network._key, stranger.network._key
    node = Node("a")
    async with running(node):
        async with running(member, stranger):
            places = member.where, stranger.where
            for host, port in places:
                await node.network.connect(host, port)
            node.network.set_members([member.network.account])
        await until(lambda: not node.network.peers)
        # As if both had been out of reach for long, and were waited for a minute.
        failures, now_s = node.network._discovery._failures, time.monotonic()
        for host, port in places:
            for _ in range(10):
                failures.failed(host, port, now_s, 1000.0)
        again = [
            Node(name, key, port=port)
            for name, key, (_, port) in zip(("member", "stranger"), keys, places, strict=True)
        ]
        async with running(*again):
            await again[0].network.connect(*node.where)
            await until(lambda: node.names == {"member", "stranger"})


async def test_why_a_bootstrap_peer_has_no_link_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Once for each reason: nobody listens there; it belongs to another network."""
    caplog.set_level(logging.DEBUG, "pocqueue.pouw.p2p.discovery")
    later = Node("later")
    async with running(later):
        where = later.where
    node = Node("a", bootstrap=[where])

    def told(level: int) -> list[str]:
        return [one.getMessage() for one in caplog.records if one.levelno == level]

    async with running(node):
        await until(lambda: len(told(logging.WARNING)) == 1 and bool(told(logging.DEBUG)))
        other = Node("later", port=where[1], network=b"x" * 32)
        async with running(other):
            await until(lambda: "another network" in "".join(told(logging.WARNING)))
    warnings = told(logging.WARNING)
    assert len(warnings) == 2
    assert all(f"No link to {where[0]}:{where[1]}" in one for one in warnings)


async def test_peers_are_remembered_on_disk(tmp_path: Path) -> None:
    """A node that is started again finds them without being told; a start that fails forgets nothing."""
    a, folder = Node("a"), tmp_path / "p2p"
    async with running(a):
        b = Node("b", folder=folder)
        async with running(b):
            await b.network.connect(*a.where)
        table = (folder / "peers.json").read_bytes()
        assert str(a.where[1]).encode() in table
        failing = Node("b", folder=folder, port=a.where[1])
        with pytest.raises(LinkError):
            await failing.network.start()
        await failing.network.stop()
        assert (folder / "peers.json").read_bytes() == table
        again = Node("b", folder=folder)
        async with running(again):
            await until(lambda: again.names == {"a"})


async def test_a_damaged_or_closed_folder_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and addresses are found anew."""
    caplog.set_level(logging.WARNING, "pocqueue.pouw.p2p")
    damaged, closed = tmp_path / "damaged", tmp_path / "closed"
    damaged.mkdir()
    (damaged / "peers.json").write_text("[[")
    closed.write_text("a file")
    a, b = Node("a", folder=damaged), Node("b", folder=closed)
    async with running(a, b):
        await a.network.connect(*b.where)
    assert "peers.json cannot be read, and are found anew" in caplog.text
    assert "[b] Addresses of peers cannot be kept" in caplog.text
    assert (damaged / "peers.json").read_text() != "[["


async def test_what_a_peer_tells_is_judged() -> None:
    """Nonsense in place of addresses is held against it."""
    node = Node("a")
    async with running(node), linked(*node.where) as rogue:
        number = (await rogue.next(Kind.PEX))[:4]
        rogue.channel.send(answer_to(Kind.PEX), number, b"nonsense")
        await until(lambda: node.keeper.charges)
        assert node.keeper.charges == [(20, "it sent no addresses where they are due", False)]


async def test_four_links_to_preferred_places_are_kept() -> None:
    """Nobody but this node dials them; all of them, once it is told to."""
    node, others = Node("a"), [Node(f"other{number}") for number in range(6)]
    async with running(node, *others):
        places = [("127.0.0.1", other.network.port) for other in others]
        node.network.prefer(places)
        await until(lambda: len(node.network.peers) == 4)
        assert all(peer.outbound for peer in node.network.peers)
        lost = node.network.peers[0].account
        assert await node.network.disconnect(lost)
        await until(lambda: len({peer.account for peer in node.network.peers} - {lost}) == 4)
        node.network.dial_all(places)
        await until(lambda: len(node.network.peers) == 5)
        assert lost not in {peer.account for peer in node.network.peers}
