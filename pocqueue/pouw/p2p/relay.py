"""Passes messages on: small urgent ones as they are, others by their ids to whoever wants them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence

from pocqueue.pouw.errors import BadEncoding, PeerFault
from pocqueue.pouw.p2p.frames import ANNOUNCED, ID_BYTES, PUSHED, Kind
from pocqueue.pouw.p2p.gossip import Item, Seen, Wants
from pocqueue.pouw.p2p.link import Link
from pocqueue.pouw.p2p.messages import MAX_IDS, Ids
from pocqueue.pouw.p2p.service import Service
from pocqueue.pouw.wire.codec import decode, encode

#: For a body that was not asked for. It may be an honest answer that came after another peer's.
_UNASKED_POINTS = 2


class Relay:
    """Gossip over the links of a node.

    Args:
        links: all of them by account; read only.
        service: takes messages and has their bodies.
    """

    def __init__(self, links: dict[bytes, Link], service: Service) -> None:
        self._links, self._service = links, service
        self._seen = Seen()
        self._wants = Wants()

    def push(self, kind: Kind, body: bytes, *, source: Link | None = None) -> None:
        """Send an ITERATION or RECORD to all peers but the one that it came from."""
        assert kind in PUSHED
        self._seen.add(_digest(kind, body))
        for link in self._others(source):
            link.send(kind, body)

    def announce(
        self,
        kind: Kind,
        ids: Sequence[bytes],
        *,
        source: Link | None = None,
        to: bytes | None = None,
    ) -> int:
        """Tell all peers but one, or one alone, of TXs or BLOCKs that are here; return the number of those told."""
        assert kind in ANNOUNCED
        links = [link for link in self._others(source) if to in (None, link.account)]
        for first in range(0, len(ids), MAX_IDS):
            body = encode(Ids(kind, tuple(ids[first : first + MAX_IDS])))
            for link in links:
                link.send(Kind.ANNOUNCE, body)
        return len(links)

    async def take(self, link: Link, kind: Kind, body: bytes) -> None:
        """Take a message of a peer.

        Raises:
            PeerFault: it is held against the peer.
            LinkError: the link is over.
        """
        if kind == Kind.ANNOUNCE:
            self._take_announcement(link, body)
        elif kind == Kind.WANT:
            await self._take_want(link, body)
        elif kind in ANNOUNCED:
            await self._take_body(link, kind, body)
        elif self._seen.add(digest := _digest(kind, body)):
            if await self._service.receive(link.info, kind, body):
                self.push(kind, body, source=link)
            else:
                # It may come too early, and again.
                self._seen.forget(digest)

    def ask_again(self) -> None:
        """Ask others for what did not come in time. To be called now and then."""
        for account, item in self._wants.overdue(time.monotonic()):
            link = self._links.get(account)
            if link is not None and not self._service.has(item.kind, item.identifier):
                _ask(link, item.kind, [item.identifier])

    def gone(self, link: Link) -> None:
        """Have others asked for what this peer was asked for."""
        self._wants.gone(link.account)

    def _take_announcement(self, link: Link, body: bytes) -> None:
        kind, ids = _ids(body)
        unknown = [Item(kind, each) for each in ids if not self._service.has(kind, each)]
        wanted = self._wants.announced(link.account, unknown, time.monotonic())
        if wanted:
            _ask(link, kind, [item.identifier for item in wanted])

    async def _take_want(self, link: Link, body: bytes) -> None:
        kind, ids = _ids(body)
        for each in ids:
            await link.turn_to_give(kind)
            found = await self._service.body(kind, each)
            if found is not None:
                await link.send_in_turn(kind, each, found)

    async def _take_body(self, link: Link, kind: Kind, body: bytes) -> None:
        identifier, body = body[:ID_BYTES], body[ID_BYTES:]
        if not self._wants.came(link.account, Item(kind, identifier)):
            raise PeerFault(_UNASKED_POINTS, f"it sent a {kind.name} that it was not asked for")
        if await self._service.receive(link.info, kind, body) and self._service.has(
            kind, identifier
        ):
            self.announce(kind, [identifier], source=link)

    def _others(self, source: Link | None) -> Iterator[Link]:
        return (link for link in list(self._links.values()) if link is not source)


def _ask(link: Link, kind: Kind, ids: Iterable[bytes]) -> None:
    link.send(Kind.WANT, encode(Ids(kind, tuple(ids))))


def _ids(body: bytes) -> tuple[Kind, tuple[bytes, ...]]:
    try:
        message = decode(body, Ids)
    except BadEncoding:
        raise PeerFault(20, "it sent no list of ids where one is due") from None
    if message.kind not in ANNOUNCED:
        raise PeerFault(20, f"it announced or wanted kind {message.kind}")
    return Kind(message.kind), message.ids


def _digest(kind: Kind, body: bytes) -> bytes:
    return hashlib.sha256(bytes((kind,)) + body).digest()
