"""A real HTTP server on loopback that keeps the callbacks it gets and answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

from aiohttp import web


class Receiver:
    """What came in, and what is answered.

    Attributes:
        url: callback URL, with a path prefix of its own.
        statuses: answers still to give, in order.
        verdict: what a body is answered with once they are used up.
        received: (path, body) of every request, whatever was answered.
        accepted: the bodies that were answered with 200.
        gate: requests wait here while it is cleared.
    """

    def __init__(self) -> None:
        self.url = ""
        self.statuses: Iterator[int] = iter(())
        self.verdict: Callable[[Any], int] = lambda _: 200
        self.received: list[tuple[str, Any]] = []
        self.accepted: list[Any] = []
        self.content_types: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.content_types.add(request.content_type)
        self.received.append((request.path, body))
        await self.gate.wait()
        status = next(self.statuses, None) or self.verdict(body)
        if status == 200:
            self.accepted.append(body)
        headers = {"Location": "/elsewhere"} if 300 <= status < 400 else {}
        return web.Response(status=status, headers=headers)


@contextlib.asynccontextmanager
async def receiving(port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """Serve on a loopback port until left; 0 takes a free one. `tls`: of a server that speaks https."""
    receiver = Receiver()
    async with answering(receiver.answer, port=port, tls=tls) as url:
        receiver.url = f"{url}/v1/poc-batches"
        try:
            yield receiver
        finally:
            receiver.gate.set()


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def answering(
    answer: Answer | int,
    words: str = "",
    headers: Mapping[str, str] | None = None,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[str]:
    """Answer every request on a loopback port; yields its URL.

    Args:
        answer: makes the answer, or its status.
        words: with a status: the body of the answer.
        headers: with a status: of the answer.
        port: 0 takes a free one.
        tls: of a server that speaks https; None: http.
    """

    async def same(_: web.Request) -> web.Response:
        assert isinstance(answer, int)
        return web.Response(status=answer, text=words, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", same if isinstance(answer, int) else answer)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()
    scheme = "http" if tls is None else "https"
    try:
        yield f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
