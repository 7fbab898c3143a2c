"""A client's connection as `serve` keeps it: uvicorn's, with two things more.

- A request whose head does not come in within `MAX_HEAD_S` is ended: uvicorn alone would wait for ever. (Its body
  has a time of its own, see `body_limit`.)
- A request's state has its transport, so that a reply can learn when the client's machine has all of it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import sys
import termios

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Seconds from the first byte of a request to the end of its head.
MAX_HEAD_S = 10.0
#: In the state of a request (``scope["state"]``): its transport.
TRANSPORT = "transport"
#: Pauses between two looks at what the client has, in seconds; they double.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.05
#: TCP_CLOSE, the first byte of what tcp(7) calls TCP_INFO.
_CLOSED = 7


class Connection(HttpToolsProtocol):
    """Fits uvicorn's option `http`."""

    _head: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # One that sends nothing at all is idle, as between two requests.
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    @override
    def data_received(self, data: bytes) -> None:
        if self._head is None and (self.cycle is None or self.cycle.response_complete):
            self._head = self.loop.call_later(MAX_HEAD_S, self.timeout_keep_alive_handler)
        super().data_received(data)

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"][TRANSPORT] = self.transport

    @override
    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


async def is_received(transport: asyncio.Transport, stall_s: float) -> bool:
    """Wait until the client's machine has acknowledged every byte that was written; False: it has not.

    A proxy between the two acknowledges in the client's place.

    Args:
        transport: of a TCP connection, encrypted or not.
        stall_s: seconds without progress after which it is given up.
    """
    loop = asyncio.get_running_loop()
    try:
        # Of our own: a client that has all of it may close the connection before the next look.
        own = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
    except OSError:
        return False
    # Between encryption and the socket is a buffer that does not show. It is written whenever the loop turns, so
    # that nothing is in it when nothing is on its way at two looks in a row.
    looks = 1 if transport.get_extra_info("ssl_object") is None else 2
    num_quiet, pause_s, left, until, is_flushed = 0, 0.0, -1, 0.0, False
    with own:
        while True:
            waiting = transport.get_write_buffer_size()
            is_flushed = is_flushed or (waiting == 0 and not transport.is_closing())
            if transport.is_closing() and not is_flushed:
                return False
            on_its_way = waiting + _num_unacknowledged(own.fileno())
            num_quiet = 0 if on_its_way else num_quiet + 1
            if num_quiet == looks:
                return True
            if own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSED:
                return False  # broken: what is on its way stays there
            if on_its_way != left:
                left, until = on_its_way, loop.time() + stall_s
            elif loop.time() >= until:
                return False
            await asyncio.sleep(pause_s)
            pause_s = min(max(2 * pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)


def _num_unacknowledged(fd: int) -> int:
    # SIOCOUTQ of tcp(7): what the kernel has not sent, and what it has sent without an answer.
    return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
