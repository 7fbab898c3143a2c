"""Listening, accepting and dialling, with errors in sentences."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from pocqueue.pouw.errors import LinkError
from pocqueue.pouw.p2p.channel import first_words

_BACKLOG = 128
_TRIES_FOR_ONE_PORT = 20
_READ_BYTES = 64 * 1024
_GOODBYE_S = 1.0

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def listen(host: str, port: int) -> list[socket.socket]:
    """Open the sockets of a host's addresses, all on one port.

    Args:
        host: a name or an address; ``localhost`` is 127.0.0.1 and, where there is IPv6, ::1.
        port: 0 takes any.

    Raises:
        LinkError: the port is taken, or the host is not this machine.
    """
    addresses = ["127.0.0.1", "::1"] if host == "localhost" else await _resolved(host, port)
    for _ in range(_TRIES_FOR_ONE_PORT):
        sockets: list[socket.socket] = []
        wanted = port
        try:
            for address in addresses:
                with contextlib.suppress(_NoSuchFamily):
                    sockets.append(_listener(address, wanted))
                    wanted = sockets[-1].getsockname()[1]
        except OSError as exc:
            for each in sockets:
                each.close()
            if exc.errno == errno.EADDRINUSE and port == 0:
                continue  # free on one address, taken on the other
            raise LinkError(_why_not(exc, host, wanted)) from None
        if sockets:
            return sockets
        break
    raise LinkError(f"no port of {host} can be listened on")


async def accept(
    listener: socket.socket, on_connection: Callable[[socket.socket, str], None]
) -> None:
    """Hand over each connection with the address that it comes from, until cancelled."""
    while True:
        await _readable(listener)
        try:
            # Not the loop's own way: a connection that it hands over in the step in which this ends would be nobody's.
            connection, address = listener.accept()
        except BlockingIOError:
            continue  # who called has gone again
        except OSError:
            await asyncio.sleep(0.5)  # no more files may be open, say; that passes
            continue
        connection.setblocking(False)
        on_connection(connection, address[0])


async def over_tls(
    connection: socket.socket, context: ssl.SSLContext, *, server_side: bool
) -> Streams:
    """Return the streams of a connection after its handshake; if there are none, it is closed, whenever this is cancelled.

    Raises:
        OSError: it is over, or the other side speaks no TLS 1.3.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_READ_BYTES, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    making: Coroutine[Any, Any, tuple[asyncio.Transport, object]]
    if server_side:
        making = loop.connect_accepted_socket(
            lambda: protocol, connection, ssl=context, ssl_shutdown_timeout=_GOODBYE_S
        )
    else:
        making = loop.create_connection(
            lambda: protocol,
            sock=connection,
            ssl=context,
            server_hostname="",
            ssl_shutdown_timeout=_GOODBYE_S,
        )
    transport = await _made(connection, making)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def dial(host: str, port: int, context: ssl.SSLContext) -> tuple[Streams, str]:
    """Connect to the first address of a host that answers; return the streams and the address.

    Raises:
        LinkError: none does, in words that fit behind a colon.
    """
    reason = "it has no address"
    for address in await _resolved(host, port):
        try:
            connection = await _connected(address, port)
            streams = await over_tls(connection, context, server_side=False)
        except ssl.SSLError:
            reason = "it speaks no TLS 1.3"
        except ConnectionResetError:
            reason = "it closed the connection"
        except OSError as exc:
            reason = os_words(exc)
        else:
            return streams, address
    raise LinkError(reason)


def is_address(host: str) -> bool:
    """Say whether a host is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def os_words(exc: OSError) -> str:
    """Return what an error of the system says; asyncio's own words name all of its tries."""
    return first_words(OSError(exc.errno, os.strerror(exc.errno)) if exc.errno else exc)


class _NoSuchFamily(OSError):
    """This machine has no addresses of the family."""


async def _made(
    connection: socket.socket, making: Coroutine[Any, Any, tuple[asyncio.Transport, object]]
) -> asyncio.Transport:
    """Return what the loop makes of a connection, or close it."""
    # asyncio leaves a connection whose making is cancelled in its first step to the garbage collector. So it is not:
    # it ends as if the other side had gone.
    task = asyncio.create_task(making)
    try:
        return (await asyncio.shield(task))[0]
    except BaseException:
        if task.done():
            _end(connection, task)
        else:  # this was cancelled, and may be again
            task.add_done_callback(partial(_end, connection))
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            await asyncio.wait([task])
        raise


def _end(connection: socket.socket, made: asyncio.Task[tuple[asyncio.Transport, object]]) -> None:
    if not made.cancelled() and made.exception() is None:
        made.result()[0].abort()
    else:
        connection.close()
        connection.detach()  # uvloop closes one that fails early behind the socket's back, which would do so again


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)


async def _connected(address: str, port: int) -> socket.socket:
    connection = _socket(address)
    try:
        await asyncio.get_running_loop().sock_connect(connection, (address, port))
    except BaseException:
        connection.close()
        raise
    return connection


def _socket(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # By its protocol asyncio knows it for TCP, as what it accepts, and then sends small frames at once (TCP_NODELAY).
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
    return socket.socket(family, kind, socket.IPPROTO_TCP)


async def _resolved(host: str, port: int) -> list[str]:
    if is_address(host):
        return [host]
    loop = asyncio.get_running_loop()
    try:
        rows = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise LinkError("its name does not resolve") from None
    return list(dict.fromkeys(str(row[4][0]) for row in rows))


def _listener(address: str, port: int) -> socket.socket:
    try:
        sock = _socket(address)
    except OSError as exc:
        raise _NoSuchFamily(exc.errno, "no such family") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(_BACKLOG)
    except OSError as exc:
        sock.close()
        if exc.errno == errno.EADDRNOTAVAIL and address == "::1":
            raise _NoSuchFamily(exc.errno, "no such family") from None
        raise
    return sock


def _why_not(exc: OSError, host: str, port: int) -> str:
    if exc.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken: give another one, or 0 for any that is free"
    if exc.errno == errno.EACCES:
        return f"port {port} of {host} may not be opened by this user: give one above 1023"
    if exc.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine: give one that is, or 0.0.0.0 for all"
    return f"port {port} of {host} cannot be opened ({os_words(exc)})"
