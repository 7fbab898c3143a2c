"""Watches one running sandbox: takes its output, and ends it when a limit is reached or it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import time
from asyncio.subprocess import Process
from collections.abc import Callable

from pocqueue.hosts.agent.sandbox.base import EndedBy, Limits, Outcome
from pocqueue.hosts.agent.sandbox.output import Output
from pocqueue.hosts.agent.sandbox.usage import Usage

#: Seconds between two looks at what a job uses.
LOOK_S = 0.1
# What is left to do after SIGKILL takes milliseconds; this bounds a process stuck in the kernel.
_KILLED_S = 10.0
_CHUNK_BYTES = 1 << 16
_MIB = 1 << 20


async def run_bounded(
    process: Process,
    limits: Limits,
    stop: asyncio.Event,
    *,
    look: Callable[[], Usage],
    end: Callable[[], None],
    end_s: float = _KILLED_S,
) -> Outcome:
    """Wait until a sandbox has ended, also if this is cut off; its limits see to it that it does.

    Args:
        process: with a pipe for its output.
        limits: of the job.
        stop: ends the job once it is set.
        look: returns what the job uses.
        end: kills everything in the sandbox; `process` ends soon after.
        end_s: how soon, in seconds.

    Raises:
        TimeoutError: it did not.
    """
    assert process.stdout is not None
    began_s, output = time.monotonic(), Output(limits.kept_kib * 1024)
    reading = asyncio.create_task(_drain(process.stdout, output))
    ended = asyncio.create_task(process.wait())
    stopping = asyncio.create_task(stop.wait())
    ended_by: EndedBy = "itself"
    try:
        while not ended.done():
            await asyncio.wait({ended, stopping}, timeout=LOOK_S, return_when="FIRST_COMPLETED")
            used = look()
            if ended.done():
                if used.lacks_memory:
                    ended_by = "memory"
                break
            reached = _reached(limits, time.monotonic() - began_s, output.total, used)
            if stop.is_set():
                reached = "cancelled"
            if reached is not None:
                ended_by = reached
                end()
                break
        code = await asyncio.wait_for(asyncio.shield(ended), end_s)
        seconds = time.monotonic() - began_s
        # All that could hold the pipe has ended.
        await asyncio.wait_for(reading, _KILLED_S)
    finally:
        if not ended.done():
            end()
        stopping.cancel()
        try:
            # Who cuts a job off may close the event loop next, and give what was the job's to another.
            await asyncio.wait({ended, reading}, timeout=end_s)
        finally:
            reading.cancel()
    return Outcome(
        code if code >= 0 else 128 - code, ended_by, seconds, output.text(), output.left_out
    )


async def until_gone(process: Process) -> None:
    """Wait until a process that was killed has ended, and its pipe with it: neither is to outlive the event loop.

    One that is stuck in the kernel is left.
    """
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.communicate(), _KILLED_S)


def _reached(limits: Limits, wall_s: float, output_bytes: int, used: Usage) -> EndedBy | None:
    """Return the limit that is reached, if one is."""
    if wall_s > limits.wall_s:
        return "wall time"
    if used.cpu_s > limits.cpu_s:
        return "cpu time"
    if used.lacks_memory or used.memory_bytes > limits.memory_mib * _MIB:
        return "memory"
    if used.processes > limits.processes:
        return "processes"
    return "output" if output_bytes > limits.output_mib * _MIB else None


async def _drain(stream: asyncio.StreamReader, output: Output) -> None:
    while data := await stream.read(_CHUNK_BYTES):
        output.feed(data)
