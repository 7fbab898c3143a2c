"""Links between nodes: how long one takes, a question over it, and how much goes over it.

    python -m benchmarks.pouw_links

The other node is in a process of its own, over loopback. Against: plain TCP with asyncio's streams, which has
neither keys nor limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import struct
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable

from benchmarks.effort import FULL, Effort
from benchmarks.stats import Figure, Sample
from pocqueue.node.keys import SigningKey
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.network import Network
from pocqueue.pouw.p2p.service import NetworkConfig, PeerInfo

NUM_LINKS = 200
NUM_QUESTIONS = 300
NUM_ANSWERS = 40  #: long ones
QUESTION_BYTES = 64
ANSWER_BYTES = 2 * 1024 * 1024

_NETWORK = hashlib.sha256(b"benchmark").digest()
_NUMBER = struct.Struct(">I")


class _Service:
    """Answers with as many zeros as it is asked for."""

    async def receive(
        self, peer: PeerInfo, kind: Kind, body: bytes, identifier: bytes = b""
    ) -> bool:
        return False

    async def serve(self, peer: PeerInfo, kind: Kind, body: bytes) -> bytes:
        return bytes(*_NUMBER.unpack(body))

    def has(self, kind: Kind, identifier: bytes) -> bool:
        return True

    async def body(self, kind: Kind, identifier: bytes) -> bytes | None:
        return None

    def given(self, kind: Kind, identifier: bytes) -> None: ...

    def linked(self, peer: PeerInfo) -> None: ...

    def unlinked(self, peer: PeerInfo, reason: str) -> None: ...

    def charged(self, peer: PeerInfo, points: int, reason: str, is_banned: bool) -> None: ...


def pouw_links(effort: Effort = FULL) -> list[Figure]:
    """Measure links with a node in another process."""
    return asyncio.run(_measured(effort))


async def _measured(effort: Effort) -> list[Figure]:
    async with _other() as (node_port, plain_port), _node("a") as node:
        links, dials = await _links(node_port, plain_port, effort.runs(NUM_LINKS))
        account = (await node.connect("127.0.0.1", node_port)).account
        reader, writer = await asyncio.open_connection("127.0.0.1", plain_port)

        async def asked(num_bytes: int) -> None:
            # The first 400 of a kind come as fast as they can, later ones at a rate.
            answer = await node.request(account, Kind.STATUS, _NUMBER.pack(num_bytes))
            assert len(answer) == num_bytes

        async def fetched(num_bytes: int) -> None:
            answer = await node.request(account, Kind.THETA, _NUMBER.pack(num_bytes), 60)
            assert len(answer) == num_bytes

        async def plain(num_bytes: int) -> None:
            writer.write(_NUMBER.pack(num_bytes))
            await reader.readexactly(num_bytes)

        num_questions, num_answers = effort.runs(NUM_QUESTIONS), effort.runs(NUM_ANSWERS)
        questions = await _timed(asked, QUESTION_BYTES, num_questions)
        bare_questions = await _timed(plain, QUESTION_BYTES, num_questions)
        answers = await _timed(fetched, ANSWER_BYTES - 4, num_answers)
        bare_answers = await _timed(plain, ANSWER_BYTES - 4, num_answers)
        writer.close()
    return [
        _milliseconds("pouw: dial to link", links, dials, 20),
        _milliseconds("pouw: question to answer over a link", questions, bare_questions, 1),
        _speed(answers, bare_answers),
    ]


def _milliseconds(name: str, times: list[float], plain: list[float], most: float) -> Figure:
    measured, against = (Sample([1e3 * each for each in values], "ms") for values in (times, plain))
    median = measured.median
    target = f"median under {most:g} ms"
    return Figure(name, measured, against, "plain TCP", median, target, median < most)


def _speed(answers: list[float], bare: list[float]) -> Figure:
    measured, plain = (
        Sample([ANSWER_BYTES / 1e6 / each for each in times], "MB/s") for times in (answers, bare)
    )
    median = measured.median
    name = "pouw: answers of 2 MiB over a link"
    return Figure(name, measured, plain, "plain TCP", median, "at least 50 MB/s", median >= 50)


async def _links(node_port: int, plain_port: int, num: int) -> tuple[list[float], list[float]]:
    """Return seconds to a link with proven keys, and to a connection."""
    links, dials = [], []
    for _ in range(num):
        async with _node("b") as node:
            began = time.perf_counter()
            await node.connect("127.0.0.1", node_port)
            links.append(time.perf_counter() - began)
        began = time.perf_counter()
        _, writer = await asyncio.open_connection("127.0.0.1", plain_port)
        dials.append(time.perf_counter() - began)
        writer.close()
        await writer.wait_closed()
    return links, dials


async def _timed(ask: Callable[[int], Awaitable[None]], num_bytes: int, num: int) -> list[float]:
    times = []
    for _ in range(num):
        began = time.perf_counter()
        await ask(num_bytes)
        times.append(time.perf_counter() - began)
    return times


@contextlib.asynccontextmanager
async def _node(name: str) -> AsyncIterator[Network]:
    config = NetworkConfig(name, "miner", "127.0.0.1", max_peers=1000)
    network = Network(SigningKey.generate(), _NETWORK, config, _Service())
    await network.start()
    try:
        yield network
    finally:
        await network.stop()


@contextlib.asynccontextmanager
async def _other() -> AsyncIterator[tuple[int, int]]:
    """Give the ports of a node and of a plain server in another process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.pouw_links", "serve"), stdin=PIPE, stdout=PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        node_port, plain_port = map(int, (await process.stdout.readline()).split())
        yield node_port, plain_port
    finally:
        process.stdin.close()  # at which it ends
        await process.wait()


async def _serve() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                writer.write(bytes(*_NUMBER.unpack(await reader.readexactly(4))))
                await writer.drain()
        writer.close()

    async with _node("other") as node, await asyncio.start_server(answer, "127.0.0.1", 0) as plain:
        print(node.port, plain.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(_serve())
    else:
        for figure in pouw_links():
            print(figure.name, figure.measured, figure.against, figure.reached, sep="  ")
