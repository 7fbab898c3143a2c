"""What the kernel's log says of GPUs: Xid errors, as NVIDIA calls them (https://docs.nvidia.com/deploy/xid-errors)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from typing_extensions import override

from pocqueue.closing import Closing

#: Errors that are older than this, in seconds, are not looked at.
OLDEST_S = 86_400.0

KMSG = Path("/dev/kmsg")
_LINE = re.compile(
    r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F]+:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})[^)]*\): (\d+), ?(.*)"
)
_RECORD_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Xid:
    """One error."""

    bus: str  #: where the GPU is, as `short_bus` writes it
    code: int
    text: str
    age_s: float


def short_bus(bus: str) -> str:
    """Write a GPU's place on the bus in one way, as kernel and NVML do not.

    >>> short_bus("00000000:65:00.0")
    '0000:65:00'
    """
    domain, *others = bus.partition(".")[0].lower().split(":")
    return ":".join([domain[-4:].zfill(4), *others])


def xids(records: Iterable[str], now_s: float) -> Iterator[Xid]:
    """Yield the errors among records of the kernel's log, but for old ones.

    Args:
        records: as /dev/kmsg gives them, ``PRIORITY,NUMBER,MICROSECONDS,FLAGS;TEXT``.
        now_s: seconds since the machine was started.
    """
    for record in records:
        head, _, text = record.partition(";")
        found = _LINE.search(text)
        if found is not None:
            # The kernel's clock is another one than ours, by moments.
            age_s = max(0.0, now_s - int(head.split(",")[2]) / 1e6)
            if age_s <= OLDEST_S:
                yield Xid(short_bus(found[1]), int(found[2]), found[3].strip(), age_s)


@dataclass(eq=False)
class KernelLog(Closing):
    """Reads the log from its beginning, and then what is new of it."""

    path: Path = KMSG
    _fd: int | None = field(default=None, init=False)

    def news(self) -> list[Xid]:
        """Return the errors that came since the last time.

        Raises:
            OSError: this user may not read it, or there is none, as in a container.
        """
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return list(xids(self._records(self._fd), time.monotonic()))

    def _records(self, fd: int) -> Iterator[str]:
        while True:
            try:
                record = os.read(fd, _RECORD_BYTES)
            except BlockingIOError:
                return
            except BrokenPipeError:
                continue  # records were overwritten before we read them
            if not record:
                return  # a plain file, of a test
            yield from record.decode("utf-8", "replace").splitlines()

    @override
    def close(self) -> None:
        """Let go of it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
