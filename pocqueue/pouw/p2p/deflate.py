"""What is said again and again over a link is sent once: small frames are deflated, each with those before it in view.

RFC 1951, a stream for each direction of a link, flushed after each frame; the four bytes that end such a flush are
always the same and left out, as in RFC 7692. Networks, tasks, accounts and ids of certificates are in nearly every
message, so that a third of what gossip says need not be said.

Nothing that is a secret may go this way: of what stands beside it in the same stream the length would tell.
"""

from __future__ import annotations

import zlib

from pocqueue.pouw.errors import PeerFault

#: What is longer goes as it is: it would push everything else out of view, and take the event loop's time.
MAX_DEFLATED_BYTES = 8 * 1024
#: What deflating may add to such a body at most.
MAX_ADDED_BYTES = 32

_LEVEL = 6
_WINDOW_BITS = 13  # 8 KiB in view: some ten messages
_MEMORY_LEVEL = 6  # 64 KiB a link for all of it
_FLUSHED = b"\x00\x00\xff\xff"


class Deflater:
    """The sending end of a direction."""

    def __init__(self) -> None:
        self._stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, -_WINDOW_BITS, _MEMORY_LEVEL)

    def deflate(self, body: bytes) -> bytes:
        """Return what the other end makes this body of; it has to come there next."""
        data = self._stream.compress(body) + self._stream.flush(zlib.Z_SYNC_FLUSH)
        return data.removesuffix(_FLUSHED)


class Inflater:
    """The receiving end of a direction."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(-_WINDOW_BITS)

    def inflate(self, data: bytes, max_bytes: int) -> bytes:
        """Return the body of a frame.

        Raises:
            PeerFault: it is none, or longer than allowed; no more than that is ever made of it.
        """
        try:
            body = self._stream.decompress(data + _FLUSHED, max_bytes + 1)
        except zlib.error:
            raise PeerFault(20, "it sent bytes that cannot be inflated") from None
        if len(body) > max_bytes:
            raise PeerFault(20, f"it sent what inflates to more than {max_bytes} bytes")
        if self._stream.eof or self._stream.unconsumed_tail:
            raise PeerFault(20, "it sent bytes that cannot be inflated")
        return body
