"""What a sandbox costs a job: each that works here, as the agent starts it, against the bare command."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

from benchmarks.effort import FULL, Effort
from benchmarks.stats import Figure, Sample
from pocqueue.hosts.agent.errors import SandboxUnavailable
from pocqueue.hosts.agent.options import SandboxName
from pocqueue.hosts.agent.sandbox.base import Command, Sandbox
from pocqueue.hosts.agent.sandbox.choose import choose

NUM_RUNS = 40
#: Milliseconds that each may add.
MOST_MS: Final[dict[SandboxName, float]] = {"bubblewrap": 50, "docker": 1000, "podman": 1000}
_ARGV = ("/usr/bin/true",)


def sandbox_over_command(effort: Effort = FULL) -> list[Figure]:
    """Measure in turns; what is not installed, or does not work, has no row."""
    figures = []
    for name, most_ms in MOST_MS.items():
        with contextlib.suppress(SandboxUnavailable):
            sandbox = choose(name, "bench")
            figures.append(asyncio.run(_measure(sandbox, effort, most_ms)))
    return figures


async def _measure(sandbox: Sandbox, effort: Effort, most_ms: float) -> Figure:
    await sandbox.run(Command(_ARGV), asyncio.Event())  # which makes what all others use
    ours, bare = [], []
    for _ in range(effort.runs(NUM_RUNS)):
        began = time.perf_counter()
        outcome = await sandbox.run(Command(_ARGV), asyncio.Event())
        ours.append(1000 * (time.perf_counter() - began))
        if not outcome.is_good:
            raise RuntimeError(f"The sandbox did not run: {outcome}")
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(*_ARGV)
        await process.wait()
        bare.append(1000 * (time.perf_counter() - began))
    measured, against = Sample(ours, "ms"), Sample(bare, "ms")
    more = measured.median - against.median
    return Figure(
        f"hosts: a command in {sandbox.name}",
        measured,
        against,
        "the bare command",
        more,
        f"median at most {most_ms:g} ms more",
        more <= most_ms,
    )
