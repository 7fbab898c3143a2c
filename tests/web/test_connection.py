"""Connections of clients: requests that do not come in whole, and replies that do not arrive."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from typing_extensions import override

from pocqueue.web.connection import is_received

#: Of the socket of a client that does not read on.
SMALL = 4096
#: Far more than the two ends hold between them.
FAR_TOO_MUCH = 32 << 20
#: Far less than the server's end holds, and more than the client's.
A_REPLY = 64 << 10
LONG_S = 60.0


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[asyncio.Transport, socket.socket]]:
    """Yield the server's end of a connection and the client's, which takes little unread."""
    opened: asyncio.Future[asyncio.Transport] = asyncio.get_running_loop().create_future()

    class Opened(asyncio.Protocol):
        @override
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            opened.set_result(transport)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Opened, "127.0.0.1", 0)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    client.setblocking(False)
    await loop.sock_connect(client, server.sockets[0].getsockname())
    transport = await opened
    try:
        yield transport, client
    finally:
        client.close()
        transport.abort()
        server.close()


async def read(client: socket.socket, num_bytes: int) -> None:
    """Let the client read so much."""
    while num_bytes > 0:
        num_bytes -= len(await asyncio.get_running_loop().sock_recv(client, min(num_bytes, 65536)))


def cut(client: socket.socket) -> None:
    """Break the connection at once, as a proxy does that is killed."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("num_bytes", [1, A_REPLY, FAR_TOO_MUCH])
async def test_what_the_client_has_is_received(num_bytes: int) -> None:
    """Also if it closes as soon as it has it, before anybody looks, where the kernel had taken all at once.

    Of more than that nobody knows whether the rest went out or was cut off: it is handed over again.
    """
    for closes in (False, True) if num_bytes <= A_REPLY else (False,):
        async with connection() as (transport, client):
            transport.write(bytes(num_bytes))
            received = asyncio.create_task(is_received(transport, LONG_S))
            await read(client, num_bytes)
            if closes:
                client.close()
            assert await received


@pytest.mark.parametrize("num_bytes", [A_REPLY, FAR_TOO_MUCH])
@pytest.mark.parametrize("leave", [cut, socket.socket.close])
async def test_what_was_on_its_way_is_not_received(
    num_bytes: int, leave: Callable[[socket.socket], None]
) -> None:
    """The client, or what stands before it, went away in between; the kernel here had taken it all."""
    async with connection() as (transport, client):
        transport.write(bytes(num_bytes))
        received = asyncio.create_task(is_received(transport, 1.0))
        await read(client, num_bytes // 4)
        leave(client)
        assert not await received


async def test_who_reads_nothing_is_given_up() -> None:
    """And who reads on is waited for, however slowly: the time runs without progress only."""
    async with connection() as (transport, client):
        transport.write(bytes(A_REPLY))
        assert not await is_received(transport, 0.2)
        received = asyncio.create_task(is_received(transport, LONG_S))
        await read(client, A_REPLY)
        assert await received
