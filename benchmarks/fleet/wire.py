"""A lean Redis connection for an event loop: thousands of them fit into one process.

It speaks RESP2 over a Unix socket, as redis-py does for a worker, and does nothing else: no pool, no
retries, no decoding by command. One `send` is one write, whatever the number of commands in it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, NamedTuple, cast

from typing_extensions import override

Command = tuple[str | int | float, ...]


class WireError(Exception):
    """Redis refused a command."""


class WireClosed(Exception):
    """The connection is gone; whether what was under way took effect is not known."""


class _Waiting(NamedTuple):
    future: asyncio.Future[list[Any]]
    num_replies: int
    replies: list[Any]


class Wire(asyncio.Protocol):
    """One connection. Commands are answered in the order they were sent."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[_Waiting] = deque()
        self._buffer = b""

    @classmethod
    async def open(cls, path: str) -> Wire:
        """Connect to the Unix socket of a Redis server; wait if too many do so at once."""
        while True:
            try:
                _, wire = await asyncio.get_running_loop().create_unix_connection(cls, path)
            except BlockingIOError:
                await asyncio.sleep(0.05)
            else:
                return wire

    def send(self, *commands: Command) -> asyncio.Future[list[Any]]:
        """Send commands in one write; return a future of their replies, in order.

        It gets a `WireError` if one of them was refused, `WireClosed` if the connection ended.
        """
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        if self._transport is None:
            future.set_exception(WireClosed())
        else:
            self._waiting.append(_Waiting(future, len(commands), []))
            self._transport.write(b"".join(map(_encode, commands)))
        return future

    def abort(self) -> None:
        """Drop the connection at once, as the kernel does for a process that was killed."""
        if self._transport is not None:
            self._transport.abort()
            self._lose()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._lose()

    @override
    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        at = 0
        try:
            while at < len(buffer):
                reply, at = _parse(buffer, at)
                self._take(reply)
        except _Incomplete:
            pass
        self._buffer = buffer[at:]

    def _take(self, reply: Any) -> None:
        if not self._waiting:
            return  # published to a subscriber
        first = self._waiting[0]
        first.replies.append(reply)
        if len(first.replies) < first.num_replies:
            return
        self._waiting.popleft()
        if first.future.done():
            return
        refused = next((r for r in first.replies if isinstance(r, WireError)), None)
        if refused is None:
            first.future.set_result(first.replies)
        else:
            first.future.set_exception(refused)

    def _lose(self) -> None:
        self._transport = None
        for waiting in self._waiting:
            if not waiting.future.done():
                waiting.future.set_exception(WireClosed())
                # Not an error if nobody looks: the sender may be gone as well.
                waiting.future.exception()
        self._waiting.clear()


class _Incomplete(Exception):
    """The reply is not all here yet."""


def _encode(command: Command) -> bytes:
    parts = [b"*%d\r\n" % len(command)]
    for argument in command:
        text = str(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(text), text))
    return b"".join(parts)


def _parse(buffer: bytes, at: int) -> tuple[Any, int]:
    """Return the reply that begins at a position, and the position behind it."""
    line_end = buffer.find(b"\r\n", at)
    if line_end < 0:
        raise _Incomplete
    kind, line, behind = buffer[at : at + 1], buffer[at + 1 : line_end], line_end + 2
    if kind == b"$":
        size = int(line)
        if size < 0:
            return None, behind
        if len(buffer) < behind + size + 2:
            raise _Incomplete
        return buffer[behind : behind + size].decode(), behind + size + 2
    if kind == b":":
        return int(line), behind
    if kind == b"*":
        num = int(line)
        if num < 0:
            return None, behind
        found = []
        for _ in range(num):
            one, behind = _parse(buffer, behind)
            found.append(one)
        return found, behind
    if kind == b"-":
        return WireError(line.decode()), behind
    return line.decode(), behind
