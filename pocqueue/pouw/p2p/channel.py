"""Frames over a stream, counted."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from pocqueue.pouw.errors import LinkError
from pocqueue.pouw.p2p.deflate import Deflater, Inflater
from pocqueue.pouw.p2p.frames import (
    HEADER_BYTES,
    Kind,
    header,
    is_deflated,
    max_inflated,
    parse_header,
)
from pocqueue.pouw.p2p.messages import Goodbye, Reason
from pocqueue.pouw.wire.codec import encode

#: What may wait to be sent to a peer.
MAX_WAITING_BYTES = 8 * 1024 * 1024


@dataclass(slots=True)
class Traffic:
    """What all links carried together, without what TLS and TCP add."""

    bytes_in: int = 0
    bytes_out: int = 0
    messages_in: int = 0


class SlowReader(LinkError):
    """More waits for a peer than may wait."""


class Channel:
    """Sends and receives frames.

    Args:
        reader, writer: an open connection.
        traffic: is counted up.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, traffic: Traffic
    ) -> None:
        self._reader, self._writer, self._traffic = reader, writer, traffic
        self._deflater, self._inflater = Deflater(), Inflater()

    @property
    def writer(self) -> asyncio.StreamWriter:
        """What it writes to."""
        return self._writer

    async def read(self) -> tuple[int, bytes]:
        """Wait for a frame; return kind and body.

        Raises:
            PeerFault: it is none that may be sent.
            LinkError: the connection is over.
        """
        kind, length, deflated = parse_header(await self._exactly(HEADER_BYTES))
        body = await self._exactly(length)
        self._traffic.messages_in += 1
        self._traffic.bytes_in += HEADER_BYTES + length
        if deflated:
            body = self._inflater.inflate(body, max_inflated(kind))
        return kind, body

    async def _exactly(self, length: int) -> bytes:
        try:
            return await self._reader.readexactly(length)
        except asyncio.IncompleteReadError:
            raise LinkError("it closed the connection") from None
        except OSError as exc:
            raise LinkError(f"the connection broke ({first_words(exc)})") from None

    def send(self, kind: int, *parts: bytes) -> None:
        """Put a frame in line; what is in line goes out by itself.

        Raises:
            SlowReader: `MAX_WAITING_BYTES` are in line.
            LinkError: the connection is over.
        """
        body = b"".join(parts)
        head = header(kind, len(body))
        transport = self._writer.transport
        if transport.is_closing():
            raise LinkError("the connection is closed")
        if transport.get_write_buffer_size() + len(body) > MAX_WAITING_BYTES:
            raise SlowReader("it reads too slowly")
        if is_deflated(kind, len(body)):
            body = self._deflater.deflate(body)
            head = header(kind, len(body), deflated=True)
        self._writer.write(head + body)
        self._traffic.bytes_out += len(head) + len(body)

    async def has_room(self) -> None:
        """Wait until little is in line, or the connection is over."""
        with contextlib.suppress(OSError):
            await self._writer.drain()

    def say_goodbye(self, reason: Reason) -> None:
        """Send why the link ends, if it can be sent."""
        try:
            self.send(Kind.GOODBYE, encode(Goodbye(reason)))
        except LinkError:
            return

    async def close(self, timeout_s: float = 1.0) -> None:
        """Send what is in line and end the connection; after the timeout, without that."""
        # Python 3.11.2, as Debian 12 has it, cannot abort what is closed twice.
        if not self._writer.is_closing():
            self._writer.close()
        try:
            async with asyncio.timeout(timeout_s):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            pass
        finally:
            self._writer.transport.abort()


def first_words(exc: OSError) -> str:
    """Return what an error of the system or of TLS says, in a few words."""
    return (exc.strerror or str(exc) or type(exc).__name__).splitlines()[0][:100].lower()
