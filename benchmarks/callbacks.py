"""Callbacks of a round on a served model, through an outage of their receiver.

    python -m benchmarks.callbacks

150 batches a second, 32 valid nonces each, by the real prover and callback queue over an engine that computes
nothing; a real HTTP receiver in another process, 100 ms away, is gone for a minute in the middle. Counted there:
each nonce has to arrive, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from benchmarks.stats import Figure, Sample
from pocqueue.engine.base import EngineInfo
from pocqueue.engine.vllm.ranks import BatchLimits
from pocqueue.rounds.start import draft_spec
from pocqueue.served.gate import InferenceGate
from pocqueue.served.model import ServedModel
from pocqueue.served.prover import Prover, ServedRound

BATCH_SIZE = 32
BATCHES_PER_S = 150
ROUND_TRIP_S = 0.1
BEFORE_S, OUTAGE_S, AFTER_S = 20.0, 60.0, 20.0
_INFO = EngineInfo("vllm", "none", "0" * 64, "cpu", "cpu", "float32", 8, 8, 256)


class _Pacer:
    """Stands in for vLLM's engine client: a batch is done so many times a second, whatever the rest does."""

    errored = False

    def __init__(self) -> None:
        self._next_s = 0.0

    async def collective_rpc(self, _method: str, *, args: tuple[Any, ...] = ()) -> list[Any]:
        now = asyncio.get_running_loop().time()
        self._next_s = max(self._next_s, now - 1.0) + 1 / BATCHES_PER_S
        await asyncio.sleep(self._next_s - now)
        return [{"values": [nonce % 9973 / 9973 for nonce in args[0][2]] if args else None}]


@dataclass
class _Course:
    """What was measured."""

    found: int
    rate: float  #: batches a second
    waited: int  #: most nonces that waited
    back_s: float  #: from the receiver's return until all found by then had arrived
    grown_mib: float  #: of this process's memory at its peak
    arrived: int
    repeated: int
    posts: int


def callbacks() -> list[Figure]:
    """Run the course once; return its figures."""
    course = asyncio.run(_run())
    whole = course.arrived == course.found and not course.repeated
    name = f"callbacks of a served round, receiver gone for {OUTAGE_S:.0f} s"
    told = (
        f"{course.found:,} nonces at {course.rate:.0f} batches/s, {course.waited:,} waiting; "
        f"{course.arrived:,} arrived in {course.posts:,} posts, {course.repeated:,} of them again"
    )
    seconds, grown = Sample([course.back_s], "s"), Sample([course.grown_mib], "MiB")
    return [
        Figure(
            f"{name}: back to date",
            seconds,
            None,
            told,
            course.back_s,
            "all, each once, at most 10 s after its return",
            whole and course.back_s <= 10,
        ),
        Figure(
            f"{name}: memory at its peak",
            grown,
            None,
            told,
            course.grown_mib,
            "at most 64 MiB more than before",
            course.grown_mib <= 64,
        ),
    ]


async def _run() -> _Course:
    async with _receiver() as (url, tell):
        model = ServedModel(_Pacer(), _INFO, BatchLimits(1024))
        prover = Prover(model, InferenceGate(330), drain_s=0, max_round_s=3600)
        draft = draft_spec(block_hash="bench", public_key="bench", batch_size=BATCH_SIZE)
        prover.init(ServedRound(**draft.model_dump() | {"callback_url": url, "r_target": 2.0}))
        held_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        prover.generate()
        await asyncio.sleep(BEFORE_S)
        await tell("down")
        await asyncio.sleep(OUTAGE_S)
        waited = prover.status()["callbacks_waiting"]
        await tell("up")
        loop = asyncio.get_running_loop()
        back, found = loop.time(), prover.found.stats.total_valid
        while True:
            await asyncio.sleep(0.02)
            if (await tell("count"))["arrived"] >= found:
                break
        back_s = loop.time() - back
        await asyncio.sleep(AFTER_S)
        prover.stop()
        await prover.close()
        stats, count = prover.found.stats, await tell("count")
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held_kib
    rate = stats.total_checked / BATCH_SIZE / stats.elapsed
    return _Course(stats.total_valid, rate, waited, back_s, grown_kib / 1024, **count)


@contextlib.asynccontextmanager
async def _receiver() -> AsyncIterator[tuple[str, Any]]:
    """Run the receiver in a process; yield its URL, and what sends it a word and returns its answer."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.callbacks", "receive"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    into, out = process.stdin, process.stdout
    assert into is not None
    assert out is not None

    async def tell(word: str) -> Any:
        into.write(f"{word}\n".encode())
        return json.loads(await out.readline())

    try:
        yield json.loads(await out.readline()), tell
    finally:
        into.close()
        await process.wait()


async def _receive() -> None:
    """Serve until the input ends: `down` and `up` for the port, `count` for what has come."""
    seen: set[int] = set()
    count = {"arrived": 0, "repeated": 0, "posts": 0}

    async def take(request: web.Request) -> web.Response:
        nonces = (await request.json())["nonces"]
        await asyncio.sleep(ROUND_TRIP_S)
        count["repeated"] += sum(nonce in seen for nonce in nonces)
        seen.update(nonces)
        count["arrived"], count["posts"] = len(seen), count["posts"] + 1
        return web.Response()

    async def serve(port: int) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/{path:.*}", take)
        runner = web.AppRunner(app, shutdown_timeout=10 * ROUND_TRIP_S)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return runner

    def say(value: object) -> None:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()

    runner = await serve(0)
    port: int = runner.addresses[0][1]
    say(f"http://127.0.0.1:{port}")
    while word := await asyncio.to_thread(sys.stdin.readline):
        if word == "down\n":
            await runner.cleanup()
        elif word == "up\n":
            runner = await serve(port)
        say(count)
    await runner.cleanup()


if __name__ == "__main__":
    if sys.argv[1:] == ["receive"]:
        asyncio.run(_receive())
    else:
        for figure in callbacks():
            sys.stdout.write(f"{figure.name}: {figure.measured}; {figure.against_name}\n")
            sys.stdout.write(f"    {figure.target}: {'reached' if figure.reached else 'MISSED'}\n")
