"""What links are told by the node above them, and what they tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pocqueue.pouw.p2p.frames import Kind


@dataclass
class NetworkConfig:
    """How a node is on the network. `max_peers` and `bans` may be changed while it runs.

    Attributes:
        node_id: its name in logs, 1 to 64 of ``A-Z a-z 0-9 _ . -``; no identity, that is the key.
        role: a small word that peers are told.
        host: where it listens; ``localhost`` is 127.0.0.1 and, where there is IPv6, ::1.
        port: 0 takes any.
        max_peers: links at once; half of them may come from outside.
        bootstrap: (host, port) of nodes that are dialled for good.
        folder: for the table of addresses; None keeps it in memory.
        bans: False ends links with whoever breaks the protocol, but keeps nobody out.
        ping_s, dead_s: how often a peer is asked for a sign of life, and after how long without one the link ends.
        handshake_s: for a connection to become a link.
    """

    node_id: str
    role: str
    host: str = "localhost"
    port: int = 0
    max_peers: int = 50
    bootstrap: Sequence[tuple[str, int]] = ()
    folder: Path | None = None
    bans: bool = True
    ping_s: float = 5.0
    dead_s: float = 20.0
    handshake_s: float = 5.0


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A peer at one moment."""

    account: bytes  #: its key, 33 bytes, proven
    node_id: str  #: its own words, as is the role
    role: str
    host: str  #: IP address that it is seen at
    port: int  #: where it listens there; 0: nowhere
    rtt_s: float | None  #: of the last ping; None before the first answer
    outbound: bool  #: this side dialled
    since: float  #: Unix seconds


class Service(Protocol):
    """What a node does with what its peers send. All of it runs on the event loop."""

    async def receive(
        self, peer: PeerInfo, kind: Kind, body: bytes, identifier: bytes = b""
    ) -> bool:
        """Take a TX, BLOCK, ITERATION or RECORD; True if it is to be passed on.

        `identifier` is what a TX or BLOCK was asked for by; whether it is its id is for the service to see. A peer's messages come one after the other, those of several peers at the same time. A TX or BLOCK is
        passed on only if `has` knows it afterwards.

        Raises:
            PeerFault: it is held against the peer.
        """

    async def serve(self, peer: PeerInfo, kind: Kind, body: bytes) -> bytes:
        """Return the answer to a request: STATUS, BLOCKS, SLOTS or THETA; see `frames.MAX_ANSWER_BYTES`.

        Raises:
            PeerFault: it is held against the peer, which gets no answer.
            LinkError: there is none.
        """

    def has(self, kind: Kind, identifier: bytes) -> bool:
        """Say whether an announced TX or BLOCK is known, good or not, and need not be sent."""

    async def body(self, kind: Kind, identifier: bytes) -> bytes | None:
        """Return a TX or BLOCK that was announced; None if it is not here any more."""

    def given(self, kind: Kind, identifier: bytes) -> None:
        """Hear that a peer which asked for a TX or BLOCK was sent it."""

    def linked(self, peer: PeerInfo) -> None:
        """Hear of a new link."""

    def unlinked(self, peer: PeerInfo, reason: str) -> None:
        """Hear that a peer has no link any more; the reason fits behind a colon."""

    def charged(self, peer: PeerInfo, points: int, reason: str, is_banned: bool) -> None:
        """Hear what is held against a peer, and whether that was enough to ban it."""
