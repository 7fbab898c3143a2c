"""A peer that proves its key as it should, and then sends what it likes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import cast

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.errors import LinkError
from pocqueue.pouw.p2p.channel import Channel, Traffic
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.handshake import Identity, dialled, reason_of
from pocqueue.pouw.p2p.messages import Reason
from pocqueue.pouw.p2p.sockets import dial
from pocqueue.pouw.p2p.tls import dialling_context
from tests.pouw.p2p.nodes import NETWORK
from tests.support.waiting import PATIENCE_S


def identity(key: SigningKey | None = None, name: str = "rogue") -> Identity:
    """Return who a rogue says to be."""
    key = key or SigningKey.generate()
    return Identity(key, bytes.fromhex(key.public_hex), NETWORK, name, "peer", 0)


class Rogue:
    """The dialling end of a connection."""

    def __init__(self, channel: Channel, writer: asyncio.StreamWriter) -> None:
        self.channel, self.writer = channel, writer

    def read_no_more(self) -> None:
        """Leave everything that comes from now on where it is."""
        cast("asyncio.Transport", self.writer.transport).pause_reading()

    async def end(self) -> Reason | None:
        """Read until the other side ends the connection; return what it said last, if anything."""
        reason = None
        with contextlib.suppress(LinkError):
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    kind, body = await self.channel.read()
                    if kind == Kind.GOODBYE:
                        reason = reason_of(body)
        return reason

    async def next(self, wanted: int) -> bytes:
        """Return the body of the next frame of a kind."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                kind, body = await self.channel.read()
                if kind == wanted:
                    return body


@contextlib.asynccontextmanager
async def connected(host: str, port: int) -> AsyncIterator[Rogue]:
    """Connect over TLS, without a word."""
    (reader, writer), _ = await dial(host, port, dialling_context())
    channel = Channel(reader, writer, Traffic())
    try:
        yield Rogue(channel, writer)
    finally:
        await channel.close()


@contextlib.asynccontextmanager
async def linked(host: str, port: int, who: Identity | None = None) -> AsyncIterator[Rogue]:
    """Connect and be let in."""
    async with connected(host, port) as rogue:
        await dialled(rogue.channel, who or identity(), lambda _account: None)
        yield rogue
