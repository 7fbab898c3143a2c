"""What a sandbox costs a job: bubblewrap as the agent starts it, against the bare command."""

from __future__ import annotations

import asyncio
import time

from benchmarks.effort import FULL, Effort
from benchmarks.stats import Figure, Sample
from pocqueue.hosts.agent.errors import SandboxUnavailable
from pocqueue.hosts.agent.sandbox.base import Command, Sandbox
from pocqueue.hosts.agent.sandbox.choose import choose

NUM_RUNS = 40
_ARGV = ("/usr/bin/true",)


def sandbox_over_command(effort: Effort = FULL) -> list[Figure]:
    """Measure in turns; empty where there is no bubblewrap."""
    try:
        sandbox = choose("bubblewrap", "bench")
    except SandboxUnavailable:
        return []
    return asyncio.run(_measure(sandbox, effort))


async def _measure(sandbox: Sandbox, effort: Effort) -> list[Figure]:
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
    return [
        Figure(
            "hosts: a command in bubblewrap",
            measured,
            against,
            "the bare command",
            more,
            "median at most 50 ms more",
            more <= 50,
        )
    ]
