"""Whether an engine on the CPU may try twice the batch: who asks Linux for too much memory is killed."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

from pocqueue.engine.base import EngineInfo

#: Of the memory that is free this share may be asked for.
_MOST = 0.9


class MemoryGuard:
    """Watches this process's memory from batch size to batch size, each twice the one before.

    Args:
        info: of the engine. A GPU refuses what does not fit and goes on, so it is not watched, and nor
            are ranks, which are processes of their own.
        in_process: the model is in this process.
    """

    def __init__(self, info: EngineInfo, *, in_process: bool) -> None:
        self._watches = in_process and info.device == "cpu" and info.tensor_parallel == 1
        self._before = _peak_bytes()

    def has_room_for_twice(self) -> bool:
        """Say whether what batches have needed so far can be had once more; yes where nobody knows."""
        free = free_bytes() if self._watches else None
        return free is None or _peak_bytes() - self._before < _MOST * free


def free_bytes() -> int | None:
    """Return the memory that this process may still get, of the machine and of its control group."""
    machine = None
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                machine = 1024 * int(line.split()[1])
    group = None
    with contextlib.suppress(OSError, ValueError):  # "max" is no number, and no limit
        folder = Path("/sys/fs/cgroup")
        limit = int((folder / "memory.max").read_text())
        group = max(0, limit - int((folder / "memory.current").read_text()))
    return min((free for free in (machine, group) if free is not None), default=None)


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
