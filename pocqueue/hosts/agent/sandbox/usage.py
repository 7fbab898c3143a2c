"""What a job uses, as far as /proc shows it: the processes below one, their memory and their CPU time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Fields of /proc/PID/stat after the name, from 0 on: proc(5) counts from 3.
_TIMES, _THREADS, _RSS = slice(11, 15), 17, 21


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums over a job's processes."""

    processes: int = 0  #: threads
    memory_bytes: int = 0  #: resident; what processes share is counted for each
    cpu_s: float = 0.0  #: with that of children which have ended
    lacks_memory: bool = False  #: the kernel has killed one of them for want of memory


def usage_below(pid: int) -> Usage:
    """Add up a process and all below it; what has ended meanwhile counts as nothing.

    A process that was left by its parent is below the first one of its PID namespace, so none gets away.
    """
    threads = memory = ticks = 0
    waiting = [pid]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        try:
            found = (folder / "stat").read_bytes().rpartition(b") ")[2].split()
            tasks = os.listdir(folder / "task")
            for task in tasks:
                waiting += map(int, (folder / "task" / task / "children").read_bytes().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
        threads += int(found[_THREADS])
        memory += int(found[_RSS]) * _PAGE_BYTES
        ticks += sum(map(int, found[_TIMES]))
    return Usage(threads, memory, ticks / _TICKS_PER_S)


def num_threads_of(uid: int) -> int:
    """Count the threads of a user, which is what RLIMIT_NPROC counts."""
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == uid:
                    total += len(os.listdir(entry / "task"))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return total
