"""How many artifacts a second go through a small node's disk: pages in, posts out, on this machine.

    python -m benchmarks.artifacts_out [--per-second 10000] [--page 512] [--seconds 10]

A source in this process hands out pages at a pace; follower, outbox (SQLite, each page on disk), dispatcher and
HTTP are those of the node, and the receiver is on loopback in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import statistics
import tempfile
import time
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from pathlib import Path

from aiohttp import web
from typing_extensions import override

from pocqueue.node.dispatcher import Dispatcher
from pocqueue.node.follower import Follower
from pocqueue.node.keys import SigningKey
from pocqueue.node.metrics import NodeMetrics
from pocqueue.node.outbox import Outbox
from pocqueue.node.round import NodeRound, SearchRequest
from pocqueue.node.sources import Page, Source
from pocqueue.poc.proofs import Proofs, ReceivedBatch


class PacedSource(Source):
    """Hands out pages of artifacts at a pace, as a big node with a large pool does."""

    origin = "delegation"
    session_id = "paced"
    gpu_count = 200

    def __init__(self, node_round: NodeRound, page: int, per_second: float, seconds: float) -> None:
        self._round, self._page, self._pause_s = node_round, page, page / per_second
        self._pages = int(seconds * per_second / page)
        vectors = [base64.b64encode(os.urandom(23) + b"\0").decode() for _ in range(64)]
        # Finite: the high byte of a float16 whose exponent is not all ones.
        self._vectors = [_finite(text) for text in vectors]
        self._began = time.monotonic()
        self.made_s: list[float] = []  #: when each page was there

    @override
    async def read(self, cursor: str) -> Page:
        at = int(cursor or 0)
        due = self._began + (at + 1) * self._pause_s
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        self.made_s.append(time.monotonic())
        nonces = list(range(at * self._page, (at + 1) * self._page))
        vectors = [self._vectors[nonce % 64] for nonce in nonces]
        batch = ReceivedBatch.of(self._round, Proofs(nonces, vectors))
        return Page(str(at + 1), [batch], over=at + 1 >= self._pages)

    @override
    async def stop(self) -> None:
        """It ends by itself."""


def _finite(text: str) -> str:
    data = bytearray(base64.b64decode(text))
    for at in range(1, len(data), 2):
        data[at] &= 0x3F
    return base64.b64encode(bytes(data)).decode()


def receive(pipe: Connection) -> None:
    """Answer every post with 200; told to, say how many artifacts, posts and bytes came, and when each nonce did."""

    async def serve() -> None:
        arrived: dict[int, float] = {}
        totals = {"posts": 0, "bytes": 0, "largest": 0}

        async def answer(request: web.Request) -> web.Response:
            text = await request.read()
            now = time.monotonic()
            for one in json.loads(text)["artifacts"]:
                arrived.setdefault(one["nonce"], now)
            totals["posts"] += 1
            totals["bytes"] += len(text)
            totals["largest"] = max(totals["largest"], len(text))
            return web.Response()

        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        pipe.send(runner.addresses[0][1])
        while not await asyncio.to_thread(pipe.poll, 1.0):
            pass
        pipe.send((arrived, totals))
        await runner.cleanup()

    asyncio.run(serve())


async def run(port: int, folder: Path, page: int, per_second: float, seconds: float) -> list[float]:
    """Send what the source has; return when each page was there."""
    fields = {"scheme": "artifact", "block_hash": "b", "block_height": 1, "public_key": "k"}
    node = {"node_id": 0, "node_count": 1, "seq_len": 1024, "url": f"http://127.0.0.1:{port}"}
    node_round = NodeRound.model_validate(fields | node)
    request = SearchRequest(
        round=node_round, gpu_count=200, window_s=seconds, deadline_s=time.time()
    )
    source = PacedSource(node_round, page, per_second, seconds)
    with Outbox(folder / "outbox") as outbox:
        outbox.open_session(source.session_id, "delegation", "{}")
        async with Dispatcher(outbox, SigningKey.generate(), NodeMetrics()) as dispatcher:
            dispatcher.start()
            follower = Follower(source, request, dispatcher, spot_check=None)
            follower.start()
            while not follower.is_done or outbox.counts().waiting:  # noqa: ASYNC110 - two things, seldom
                await asyncio.sleep(0.1)
    return source.made_s


def main() -> None:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--per-second", type=float, default=10_000)
    parser.add_argument("--page", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    ours, theirs = Pipe()
    process = Process(target=receive, args=(theirs,))
    process.start()
    port = ours.recv()
    began, cpu = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        made = asyncio.run(
            run(port, Path(folder), options.page, options.per_second, options.seconds)
        )
    took, cpu = time.monotonic() - began, time.process_time() - cpu
    ours.send("done")
    arrived, totals = ours.recv()
    process.join()
    num = len(made) * options.page
    assert sorted(arrived) == list(range(num))
    late = [1000 * (at - made[nonce // options.page]) for nonce, at in arrived.items()]
    print(
        f"{num:,} artifacts in {took:.1f} s: {num / took:,.0f} a second, {len(made) / took:.0f} pages (rows) and "
        f"{totals['posts'] / took:.1f} posts a second, {totals['bytes'] / took / 1e6:.2f} MB a second, the largest "
        f"post {totals['largest'] / 1e6:.2f} MB; from page to receiver median {statistics.median(late):.0f} ms, "
        f"99 % {sorted(late)[int(0.99 * len(late))]:.0f} ms; {100 * cpu / took:.0f} % of one core here."
    )


if __name__ == "__main__":
    main()
