"""The simulated GPUs of a fleet, in one process with one event loop.

    python -m benchmarks.fleet.process --socket REDIS_SOCKET --gpus 200 --fastest 0.05 --ledger OUT.npz …

Ends when its standard input is closed, and writes the ledger then. `benchmarks.fleet` starts it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import redis
import uvloop

from benchmarks.fleet.gpu import VirtualGpu
from benchmarks.fleet.ledger import Ledger
from benchmarks.fleet.runner import Scripts, Shared
from pocqueue.rounds.connection import read_scripts

#: How many times longer the slowest GPU takes for a batch than the fastest; in between the logarithm is
#: spread evenly.
SPREAD = 10.0
#: A GPU loads for this part of the run, from and to; when it died it is away for this part before.
LOAD, AWAY = (0.005, 0.025), (0.01, 0.06)
#: Deaths happen in this part of the run.
DEATHS = (0.1, 0.8)


def speeds(num_gpus: int, fastest_s: float) -> list[float]:
    """Return how long each GPU takes for a batch: the same spread whatever their number."""
    # Neighbours are not alike, so that the scheduler does not meet them in order of speed.
    places = [(number * 0.618_033_988_75) % 1.0 for number in range(num_gpus)]
    return [fastest_s * SPREAD**place for place in places]


async def simulate(
    socket: str,
    batch_s: Sequence[float],
    seconds: float,
    kill_share: float,
    scripts: Scripts,
) -> Ledger:
    """Let GPUs come, work, die and come back until standard input is closed.

    Args:
        socket: of Redis.
        batch_s: seconds for a batch, of each GPU.
        seconds: length of the run.
        kill_share: part of the GPUs that die once.
        scripts: the scripts that were loaded.
    """
    loop, ledger = asyncio.get_running_loop(), Ledger()
    offset = time.time() - time.monotonic()
    shared = Shared(scripts, ledger, lambda monotonic: monotonic + offset)
    rng = random.Random(5)  # noqa: S311 - the same fleet on every run
    doomed = set(rng.sample(range(len(batch_s)), round(kill_share * len(batch_s))))

    async def one(number: int) -> None:
        own = random.Random(number)  # noqa: S311 - as above

        def life() -> VirtualGpu:
            return VirtualGpu(socket, f"gpu{number}", batch_s[number], shared, own)

        load_s = seconds * own.uniform(*LOAD)
        if number in doomed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(life().live(load_s), seconds * own.uniform(*DEATHS))
            ledger.deaths += 1
            load_s = seconds * (own.uniform(*AWAY) + own.uniform(*LOAD))
        await life().live(load_s)

    async def watched(number: int) -> None:
        try:
            await one(number)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it makes the run worthless
            ledger.failures.append(f"gpu{number}: {exc!r}"[:500])

    tasks = [loop.create_task(watched(number)) for number in range(len(batch_s))]
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return ledger


def main() -> None:
    """Parse the command line, simulate, write the ledger."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--fastest", type=float, required=True, help="its seconds for a batch")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--kill-share", type=float, default=0.0)
    parser.add_argument("--ledger", type=Path, required=True)
    given = parser.parse_args()
    batch_s = speeds(given.gpus, given.fastest)
    with redis.Redis(unix_socket_path=given.socket, decode_responses=True) as client:
        texts = read_scripts()
        names = ("commit_batch", "release_range", "beat")
        scripts = Scripts(*[str(client.script_load(texts[name])) for name in names])
    # A full collection would stop all GPUs for as long as it takes; there are no cycles worth it.
    gc.disable()
    ledger = uvloop.run(simulate(given.socket, batch_s, given.seconds, given.kill_share, scripts))
    ledger.save(given.ledger)


if __name__ == "__main__":
    main()
