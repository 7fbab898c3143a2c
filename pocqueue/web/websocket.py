"""A client's WebSocket as `serve` keeps it: uvicorn's, with some things more.

- What a client does not read is kept for it up to `MAX_UNREAD_BYTES`; then it is cut off. uvicorn alone would keep the
  answer to each ping of one that pings and never reads.
- Only who has said nothing for a while is sent a ping: thousands that speak all the time need not be asked. They are
  looked at together, once a second at most: a process that sleeps between messages pays for each time that it wakes.
- One that was told of its end and does not read that keeps no server from ending: uvicorn's would fail then, with all
  other sockets.
- What an application can do at once, it may be given as it comes: a short text that comes by itself is given to it past
  the steps that any frame takes, which cost more than the rest.
- A socket's state has the socket, so that its application can ask whether there is still somebody.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable
from typing import Any

from typing_extensions import override
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

try:
    from websockets.speedups import apply_mask
except ImportError:  # not compiled for this machine
    from websockets.utils import apply_mask

#: Most bytes that wait for a client to read them.
MAX_UNREAD_BYTES = 1 << 20
#: In the state of a WebSocket (``scope["state"]``): its `LiveSocket`.
SOCKET = "socket"


def text_frame(text: str) -> bytes:
    """Return a text as it is on its way to a client."""
    return Frame(Opcode.TEXT, text.encode()).serialize(mask=False)


def only_text(data: bytes) -> bytes | None:
    """Return the text of a client's frame of less than 64 KiB that is all of its message, and all of the data (RFC 6455, 5.2).

    Returns:
        None: it is something else, or not well-formed.
    """
    if len(data) < 6 or data[0] != 0x80 | Opcode.TEXT or data[1] < 0x80:
        return None
    begin, length = 2, data[1] & 0x7F
    if length == 126:
        begin, length = 4, data[2] << 8 | data[3]
    if length == 127 or len(data) != begin + 4 + length:
        return None
    return apply_mask(data[begin + 4 :], data[begin : begin + 4])


def is_between(conn: ServerProtocol) -> bool:
    """Say whether a client's next byte begins a message: nothing of a frame or of a message in parts has come before it.

    It asks for what websockets 16 and 17 keep to themselves. Of a version that keeps it otherwise it says no: all frames take
    all steps then, and a test fails.
    """
    # By where the parser waits: of a frame whose header has come nothing may be left in its buffer.
    parsing = getattr(getattr(conn, "parser", None), "gi_yieldfrom", None)
    waits = getattr(getattr(parsing, "gi_yieldfrom", None), "__name__", None)
    return (
        conn.state is State.OPEN and waits == "at_eof" and getattr(conn, "current_size", 0) is None
    )


class LiveSocket(WebSocketsSansIOProtocol):
    """Fits uvicorn's option `ws`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._asked: dict[bytes, asyncio.Future[bool]] = {}
        #: Is given texts (`only_text`) before the application is, and says whether one is done with: for what comes all
        #: the time.
        self.take: Callable[[bytes], bool] | None = None
        self._heard_s = 0.0  #: when something came, by the loop's clock
        self._is_between = False  # as `is_between` said after the newest data that took all steps

    async def answers(self, timeout_s: float) -> bool:
        """Say whether the client's machine answers a ping within a time, in seconds."""
        if self.transport.is_closing() or self.close_sent:
            return False
        payload = secrets.token_bytes(8)
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asked[payload] = answer
        try:
            self.conn.send_ping(payload)
            self.transport.write(b"".join(self.conn.data_to_send()))
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            return False
        finally:
            self._asked.pop(payload, None)

    async def say(self, text: str, timeout_s: float) -> bool:
        """Send a text, past all that could only answer a request; for sockets that send thousands of them.

        What is said meanwhile may overtake one that waits for the client to read.

        Returns:
            False: the socket has ended.

        Raises:
            TimeoutError: the client has not read enough within so many seconds of what it was sent before.
        """
        if not self.writable.is_set():  # hardly ever: a timer costs more than the rest
            async with asyncio.timeout(timeout_s):
                while not self.writable.is_set():
                    await self.writable.wait()
        return self.say_at_once(text_frame(text))

    def say_at_once(self, frame: bytes) -> bool:
        """Send a frame (`text_frame`) however much the client has not read yet; False: the socket has ended."""
        if self.conn.state is not State.OPEN or self.transport.is_closing():
            return False
        self.transport.write(frame)
        return True

    def abort(self) -> None:
        """Drop the connection without a farewell: nobody listens."""
        self.transport.abort()

    @override
    def shutdown(self) -> None:
        if self.transport.is_closing():
            self.stop_keepalive()
            self.abort()
        else:
            super().shutdown()

    @override
    def data_received(self, data: bytes) -> None:
        self._heard_s = self.loop.time()
        if (
            self.take is None
            or not (self._is_between or is_between(self.conn))
            or (text := only_text(data)) is None
            or not self.take(text)
        ):
            super().data_received(data)
            self._is_between = is_between(self.conn)

    @override
    def schedule_ping(self) -> None:
        # In whole seconds, so that those of thousands are due together.
        self.ping_timer = self.loop.call_at(math.ceil(self._due_s), self.send_keepalive_ping)

    @override
    def send_keepalive_ping(self) -> None:
        if self._due_s > self.loop.time():
            self.schedule_ping()
        else:
            super().send_keepalive_ping()

    @property
    def _due_s(self) -> float:
        """When it was silent for long enough to be sent a ping."""
        assert self.ping_interval is not None
        return self._heard_s + self.ping_interval

    @override
    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if hasattr(self, "scope"):  # the handshake is one
            self.scope["state"][SOCKET] = self

    @override
    def handle_ping(self) -> None:
        super().handle_ping()
        if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.abort()

    @override
    def handle_pong(self, event: Frame) -> None:
        if (answer := self._asked.get(bytes(event.data))) is None:
            super().handle_pong(event)
        elif not answer.done():
            answer.set_result(True)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result(False)
        super().connection_lost(exc)
