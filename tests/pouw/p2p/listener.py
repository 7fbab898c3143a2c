"""Somebody who listens and does with each connection what he likes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

from pocqueue.pouw.p2p.sockets import accept, dial, listen, over_tls
from pocqueue.pouw.p2p.tls import Certificate, dialling_context

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(talk: Talk, context: ssl.SSLContext | None) -> AsyncIterator[tuple[str, int]]:
    """Give where; at the end every connection is closed.

    Args:
        talk: is given the streams of each connection.
        context: of TLS; None: there is none.
    """

    def take(connection: socket.socket, _host: str) -> None:
        task = asyncio.create_task(talk_over(connection))
        talks.add(task)
        task.add_done_callback(lambda task: ended(task, connection))

    def ended(task: asyncio.Task[None], connection: socket.socket) -> None:
        talks.discard(task)
        if task.cancelled():  # it may be before its first step
            connection.close()

    async def talk_over(connection: socket.socket) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if context is None:
                reader, writer = await asyncio.open_connection(sock=connection)
            else:
                reader, writer = await over_tls(connection, context, server_side=True)
            try:
                await talk(reader, writer)
                await writer.drain()
            finally:
                writer.close()

    talks: set[asyncio.Task[None]] = set()
    (listener,) = await listen("127.0.0.1", 0)
    accepting = asyncio.create_task(accept(listener, take))
    try:
        host, port = listener.getsockname()
        yield host, port
    finally:
        ending = [accepting, *talks]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        listener.close()


@contextlib.asynccontextmanager
async def in_between(where: tuple[str, int]) -> AsyncIterator[tuple[tuple[str, int], bytearray]]:
    """Give where a proxy listens that ends TLS on both sides with a certificate of its own and passes on every byte, and what it
    reads of each connection first.
    """
    seen = bytearray()

    async def copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (far_reader, far_writer), _ = await dial(*where, dialling_context())
        first = await reader.readexactly(100)
        seen.extend(first)
        far_writer.write(first)
        await asyncio.gather(copied(reader, far_writer), copied(far_reader, writer))

    async with listening(talk, Certificate.generate().context) as middle:
        yield middle, seen
