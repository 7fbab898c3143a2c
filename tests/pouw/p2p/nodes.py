"""Nodes that keep what they get: real links below, a dictionary above."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Any

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.errors import LinkError, PeerFault
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.network import Network
from pocqueue.pouw.p2p.service import NetworkConfig, PeerInfo
from tests.support.waiting import PATIENCE_S

NETWORK = hashlib.sha256(b"the tests' network").digest()
#: What a node finds bad.
BAD = b"bad"


def id_of(body: bytes) -> bytes:
    """Return the id by which these tests announce a body."""
    return hashlib.sha256(body).digest()


class Keeper:
    """A service that keeps bodies by their ids, and answers a request with its own bytes."""

    def __init__(self) -> None:
        self.bodies: dict[bytes, bytes] = {}
        self.num_looked_up = 0
        self.sent: list[bytes] = []  #: ids of what was asked for and sent
        self.too_early: set[bytes] = set()  #: what it makes nothing of yet
        self.received: list[tuple[Kind, bytes]] = []
        self.links: list[PeerInfo] = []
        self.ended: list[str] = []
        self.charges: list[tuple[int, str, bool]] = []
        self.answers: dict[bytes, bytes] = {}
        self.gate = asyncio.Event()  #: what is asked for ``wait`` is answered when it is open

    async def receive(
        self, peer: PeerInfo, kind: Kind, body: bytes, identifier: bytes = b""
    ) -> bool:
        if body.startswith(BAD):
            raise PeerFault(100, "bad")
        self.received.append((kind, body))
        self.bodies[id_of(body)] = body
        return body not in self.too_early

    async def serve(self, peer: PeerInfo, kind: Kind, body: bytes) -> bytes:
        if body == b"no":
            raise LinkError("no")
        if body == b"wait":
            await self.gate.wait()
        return self.answers.get(body, body)

    def has(self, kind: Kind, identifier: bytes) -> bool:
        return identifier in self.bodies

    async def body(self, kind: Kind, identifier: bytes) -> bytes | None:
        self.num_looked_up += 1
        return self.bodies.get(identifier)

    def given(self, kind: Kind, identifier: bytes) -> None:
        self.sent.append(identifier)

    def linked(self, peer: PeerInfo) -> None:
        self.links.append(peer)

    def unlinked(self, peer: PeerInfo, reason: str) -> None:
        self.ended.append(reason)

    def charged(self, peer: PeerInfo, points: int, reason: str, is_banned: bool) -> None:
        self.charges.append((points, reason, is_banned))


class Node:
    """A network with a keeper above it."""

    def __init__(self, name: str, key: SigningKey | None = None, **config: Any) -> None:
        self.keeper = Keeper()
        network_id = config.pop("network", NETWORK)
        # However busy the machine is.
        patience = {"handshake_s": PATIENCE_S, "dead_s": PATIENCE_S}
        config = {"role": "miner", "host": "127.0.0.1", **patience, **config}
        self.network = Network(
            key or SigningKey.generate(), network_id, NetworkConfig(name, **config), self.keeper
        )

    @property
    def where(self) -> tuple[str, int]:
        """Where it listens."""
        return self.network.listening[0]

    @property
    def names(self) -> set[str]:
        """Of its peers."""
        return {peer.node_id for peer in self.network.peers}


@contextlib.asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    """Start nodes, and stop them at the end."""
    try:
        for node in nodes:
            await node.network.start()
        yield
    finally:
        for node in nodes:
            await node.network.stop()
