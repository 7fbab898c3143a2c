"""Connections as links have them."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from pocqueue.pouw.p2p.sockets import Streams, accept, dial, listen, over_tls
from pocqueue.pouw.p2p.tls import Certificate, dialling_context


async def test_small_frames_go_at_once() -> None:
    """On both sides: a word of a committee does not wait until the one before it was acknowledged (40 ms)."""
    certificate, [listener] = Certificate.generate(), await listen("127.0.0.1", 0)
    accepted = asyncio.Queue[socket.socket]()
    accepting = asyncio.create_task(accept(listener, lambda one, _: accepted.put_nowait(one)))
    try:
        dialling = asyncio.create_task(
            dial("127.0.0.1", listener.getsockname()[1], dialling_context())
        )
        theirs = await over_tls(await accepted.get(), certificate.context, server_side=True)
        ours, _ = await dialling
        assert _sends_at_once(ours)
        assert _sends_at_once(theirs)
        for _, writer in (ours, theirs):
            writer.transport.abort()
    finally:
        accepting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await accepting
        listener.close()


def _sends_at_once(streams: Streams) -> bool:
    sock = streams[1].get_extra_info("socket")
    return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
