"""How far a run on one server is: for its live view, and for a line now and then where there is none."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable

#: Seconds that the rate of a download is of.
RATE_S = 60.0
#: Seconds between two lines about a download.
TOLD_EVERY_S = 30.0
_SAID = re.compile(r"([0-9]{1,15}) bytes")


class Load:
    """Bytes that come.

    Args:
        total_bytes: how many there are at the end; > 0.
        clock: seconds.
    """

    def __init__(self, total_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total_bytes = total_bytes
        #: That are there.
        self.done_bytes = 0
        self._clock = clock
        #: Of when and how many; the first is what was there when we came.
        self._seen: deque[tuple[float, int]] = deque()
        self._told_s = clock()

    def take(self, line: str) -> bool:
        """Read a line that a job has printed; say whether it was about this, ``N bytes``."""
        if not (said := _SAID.fullmatch(line)):
            return False
        now, self.done_bytes = self._clock(), min(int(said[1]), self.total_bytes)
        # Lines that come at once are of the past: only the last one is of now.
        while self._seen and (self._seen[-1][0] == now or self._seen[-1][1] > self.done_bytes):
            self._seen.pop()
        self._seen.append((now, self.done_bytes))
        while len(self._seen) > 2 and self._seen[1][0] < now - RATE_S:
            self._seen.popleft()
        return True

    @property
    def bytes_per_s(self) -> float:
        """Return the rate of the last minute; 0: not known, or nothing comes."""
        if len(self._seen) < 2:
            return 0.0
        (begun_s, before), (now_s, after) = self._seen[0], self._seen[-1]
        return (after - before) / (now_s - begun_s)

    @property
    def left_s(self) -> float | None:
        """Return the seconds that are left at that rate; None: not known."""
        rate = self.bytes_per_s
        return (self.total_bytes - self.done_bytes) / rate if rate > 0 else None

    def is_due(self) -> bool:
        """Say whether it is time for a line, and begin to wait for the next."""
        if (now := self._clock()) - self._told_s < TOLD_EVERY_S:
            return False
        self._told_s = now
        return True

    def parts(self) -> tuple[str, str, str]:
        """Return bytes, rate and time left for people; empty where it is not known."""
        left_s = self.left_s
        size, unit = (1e9, "GB") if self.total_bytes >= 1e9 else (1e6, "MB")
        return (
            f"{self.done_bytes / size:.1f} of {self.total_bytes / size:.1f} {unit}",
            f"{self.bytes_per_s / 1e6:.1f} MB/s" if left_s is not None else "",
            f"{duration(left_s)} left" if left_s is not None else "",
        )


class Standing:
    """Where a run on one server is.

    Args:
        name: of the node.
        clock: seconds.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.clock = clock
        self.phase = 0
        #: Empty: none of its steps.
        self.step = ""
        self.load: Load | None = None
        self.is_over = False
        self._begun_s = clock()

    def begin(self, phase: int, step: str = "") -> None:
        """Be at a phase, or at a step of it."""
        self.phase, self.step, self.load, self._begun_s = phase, step, None, self.clock()

    @property
    def elapsed_s(self) -> float:
        """Return for how long."""
        return self.clock() - self._begun_s


def duration(time_s: float) -> str:
    """Return a time for people.

    >>> duration(47), duration(751), duration(7322)
    ('0:47', '12:31', '2:02:02')
    """
    minutes, rest_s = divmod(int(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest_s:02}" if hours else f"{minutes}:{rest_s:02}"
