"""What this machine sees of a server: real sockets, and one that never answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from pocqueue.deploy.facts.http import Answer
from pocqueue.deploy.outside import FromHere


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[int]:
    """Listen on a port that says this to everybody, or nothing ever."""
    over, talks = asyncio.Event(), set[asyncio.Task[None] | None]()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.current_task())
        await reader.read(1)
        if answer is None:
            await over.wait()
        else:
            writer.write(answer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        over.set()
        server.close()
        await server.wait_closed()
        await asyncio.gather(*filter(None, talks))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def test_pages_and_ports_are_seen_as_they_are() -> None:
    """One that is not there, or says what is no HTTP, is not reached; no certificate is none."""
    here = FromHere()
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    async with answering(said) as port:
        assert await here.get(f"http://127.0.0.1:{port}/") == Answer(200, "hi")
        assert await here.is_open("127.0.0.1", port)
        assert await here.certificate_days(f"https://127.0.0.1:{port}") is None
    async with answering(b"SSH-2.0-x\r\n") as port:
        assert await here.get(f"http://127.0.0.1:{port}/") == Answer(0)
    port = free_port()
    assert await here.get(f"http://127.0.0.1:{port}/") == Answer(0)
    assert not await here.is_open("127.0.0.1", port)
    assert await here.certificate_days(f"https://127.0.0.1:{port}") is None


async def test_one_that_never_answers_is_not_waited_for() -> None:
    """It is not reached within the time."""
    async with answering(None) as port:
        assert await FromHere(timeout_s=0.05).get(f"http://127.0.0.1:{port}/") == Answer(0)
