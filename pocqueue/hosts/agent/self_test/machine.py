"""Rows about the machine: its memory, its disk, and its sandbox, which is run for real."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from tempfile import TemporaryFile

from pocqueue.hosts.agent.errors import SandboxUnavailable
from pocqueue.hosts.agent.messages import TestRow
from pocqueue.hosts.agent.sandbox.base import Command, Limits, Sandbox
from pocqueue.hosts.agent.sandbox.none import NoSandbox

#: Least MB/s (10^6 bytes) that a disk is to write, least free GiB, least GiB of memory.
DISK_MB_S, DISK_GIB, MEMORY_GIB = 200.0, 10.0, 8.0

_WRITTEN_BYTES = 64 << 20
_GIB = 1 << 30
_WORDS = "the sandbox runs"


def memory_row() -> TestRow:
    """Return how much memory there is."""
    gib = memory_bytes() / _GIB
    return TestRow(
        name="memory",
        state="pass" if gib >= MEMORY_GIB else "warn",
        measured=f"{gib:.1f} GiB",
        wanted=f"{MEMORY_GIB:g} GiB",
        remedy="" if gib >= MEMORY_GIB else "large jobs are refused",
    )


def memory_bytes() -> int:
    """Return the memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def disk_rows(folder: Path) -> list[TestRow]:
    """Return how much room there is in a folder, and how fast it is written to."""
    free = shutil.disk_usage(folder).free / _GIB
    rows = [
        TestRow(
            name="disk_free",
            state="pass" if free >= DISK_GIB else "warn",
            measured=f"{free:.1f} GiB in {folder}",
            wanted=f"{DISK_GIB:g} GiB",
            remedy=""
            if free >= DISK_GIB
            else "make room, or set POCQUEUE_STATE_DIR to another disk",
        )
    ]
    chunk, began_s = os.urandom(1 << 20), time.perf_counter()
    try:
        with TemporaryFile(dir=folder, buffering=0) as file:
            for _ in range(_WRITTEN_BYTES // len(chunk)):
                file.write(chunk)
            os.fsync(file.fileno())
    except OSError as exc:
        return [
            *rows,
            TestRow(
                name="disk_speed",
                state="fail",
                measured=f"{folder} cannot be written to: {exc.strerror}",
                wanted=f"{DISK_MB_S:g} MB/s",
                remedy="make room, or set POCQUEUE_STATE_DIR to another folder",
            ),
        ]
    speed = _WRITTEN_BYTES / (time.perf_counter() - began_s) / 1e6
    return [
        *rows,
        TestRow(
            name="disk_speed",
            state="pass" if speed >= DISK_MB_S else "warn",
            measured=f"{speed:.0f} MB/s",
            wanted=f"{DISK_MB_S:g} MB/s",
            remedy=""
            if speed >= DISK_MB_S
            else "results are kept slowly; a solid-state disk is better",
        ),
    ]


async def sandbox_row(sandbox: Sandbox) -> TestRow:
    """Run a command in a sandbox; return how that went."""
    wanted = "Docker, podman or bubblewrap, that runs a command"
    if isinstance(sandbox, NoSandbox):
        return TestRow(
            name="sandbox",
            state="fail",
            measured="there is none",
            wanted=wanted,
            remedy=sandbox.why,
        )
    limits = Limits(wall_s=60, cpu_s=60, memory_mib=256, disk_mib=16, processes=16)
    try:
        done = await sandbox.run(Command(("echo", _WORDS), limits), asyncio.Event())
    except SandboxUnavailable as exc:
        measured = f"{sandbox.name} cannot be set up"
        return TestRow(
            name="sandbox", state="fail", measured=measured, wanted=wanted, remedy=str(exc)[:1000]
        )
    if not done.is_good or done.output.strip() != _WORDS:
        return TestRow(
            name="sandbox",
            state="fail",
            measured=f"{sandbox.name}: exit code {done.exit_code}, {done.output.strip()[-300:]}",
            wanted=wanted,
            remedy="look at what it says; HN_SANDBOX names another one",
        )
    return TestRow(
        name="sandbox",
        state="pass",
        measured=f"{sandbox.name}, {1000 * done.seconds:.0f} ms, bounds by {sandbox.bounds}",
        wanted=wanted,
    )
