"""How much of a core one process of the delegation API takes for 20 sessions polled at 10 Hz.

A real server process on a Redis of its own, with batches committed meanwhile. By itself:

    python -m benchmarks.delegation_polls
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.services import TOKEN, big_node, start_body
from benchmarks.stats import Figure, Sample
from pocqueue.engine.base import EngineInfo
from pocqueue.poc.proofs import Proofs
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.pool import Gpu
from pocqueue.rounds.records import Assignment, BatchCommit
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.settings import Settings

NUM_SESSIONS = 20
POLLS_PER_S = 10
SECONDS = 6
COMMITS_PER_S = 20
TARGET_SHARE = 0.25


def delegation_polls() -> Figure:
    """Poll twenty sessions, half with a cursor and half without, and read the server's CPU time.

    Against: as many polls of `/health`, the least that a request costs there.
    """
    with tempfile.TemporaryDirectory(prefix="pocqueue-polls-") as folder:
        settings = Settings(state_dir=Path(folder))
        redis_server = RedisServer(settings.state_dir)
        redis_server.ensure()
        log = settings.state_dir / "delegation.log"
        try:
            with (
                big_node(settings, log, DELEGATION_MAX_SESSIONS="100") as (url, process),
                Backend.open(settings) as backend,
            ):
                backend.pool.beat(_gpu())
                busy = asyncio.run(_load(backend, process.pid, url, "batches"))
                least = asyncio.run(_load(backend, process.pid, url, "health"))
        finally:
            redis_server.stop()
    return Figure(
        "Delegation API: CPU of one process, 20 sessions polled at 10 Hz",
        Sample([busy], "of a core"),
        target=f"at most {TARGET_SHARE} of a core",
        value=busy,
        reached=busy <= TARGET_SHARE,
        against=Sample([least], "of a core"),
        against_name="as many polls of /health",
    )


async def _load(backend: Backend, pid: int, url: str, route: str) -> float:
    """Poll for a while; return the server's CPU seconds a second."""
    body = start_body("block", 1.4)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=url, headers=headers) as http:
        ids = [
            (await http.post("/start", json=body)).json()["session_id"] for _ in range(NUM_SESSIONS)
        ]
        ranges = {
            session_id: backend.store.assign_ranges(
                [Assignment(session_id, "gpu0", "worker", 1 << 30)]
            )[0]
            for session_id in ids
        }
        end = time.monotonic() + SECONDS

        async def poll(session_id: str, number: int) -> None:
            await asyncio.sleep(number / NUM_SESSIONS / POLLS_PER_S)
            cursor, due = "", time.monotonic()
            while time.monotonic() < end:
                if route == "health":
                    await http.get("/health")
                else:
                    query = {"cursor": cursor} if number % 2 else {"auth_token": TOKEN}
                    reply = await http.get(f"/batches/{session_id}", params=query)
                    cursor = json.loads(reply.content)["cursor"]
                due += 1 / POLLS_PER_S
                await asyncio.sleep(max(0.0, due - time.monotonic()))

        async def commit() -> None:
            batch = 0
            while time.monotonic() < end:
                session_id = ids[batch % NUM_SESSIONS]
                out = ranges[session_id]
                assert out is not None
                start = 32 * (batch // NUM_SESSIONS)
                backend.store.commit_batch(
                    BatchCommit(
                        session_id,
                        out.range_id,
                        start,
                        start + 32,
                        Proofs([start, start + 1, start + 2], [1.3123456789] * 3),
                    )
                )
                batch += 1
                await asyncio.sleep(1 / COMMITS_PER_S)

        before, began = _cpu_seconds(pid), time.monotonic()
        await asyncio.gather(commit(), *(poll(one, i) for i, one in enumerate(ids)))
        return (_cpu_seconds(pid) - before) / (time.monotonic() - began)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _gpu() -> Gpu:
    info = EngineInfo("torch", "embedded", "0" * 64, "cpu", "a CPU", "bfloat16", 128, 1024, 4096)
    return Gpu("gpu0", "worker", "host", os.getpid(), info, ttl_ms=600_000)


if __name__ == "__main__":
    figure = delegation_polls()
    sys.stdout.write(f"{json.dumps(figure.to_dict(), indent=2)}\n")
