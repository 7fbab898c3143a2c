"""How a node is: what it measures of itself and its machine."""

from __future__ import annotations

import collections
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class NodeHealthMetrics:
    """One look at a node."""

    node_id: str
    last_heartbeat: float  #: seconds since 1970; 0 before the first slot or ping
    response_time: float  #: s, median of the links' pings; 0 without links
    success_rate: float  #: of its last 200 messages, those that were certified; 1 before the first
    task_completion_rate: float  #: tasks that ended well, of those that ended; 1 before the first
    bandwidth_utilization: float  #: bytes/s, sent and received, over the last minute
    cpu_usage: float  #: of the machine, percent 0 to 100
    memory_usage: float  #: of the machine, percent 0 to 100
    status: str  #: running, isolated or stopped

    def is_healthy(self) -> bool:
        """Return whether nothing here needs a person."""
        return (
            self.status == "running"
            and self.cpu_usage < 90
            and self.memory_usage < 90
            and self.success_rate >= 0.5
        )


class Machine:
    """CPU and memory of this machine, as psutil has them; percent of the time since the last look."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        psutil.cpu_percent()

    def look(self) -> tuple[float, float]:
        """Return the use of the CPUs and of memory, in percent."""
        return self._psutil.cpu_percent(), self._psutil.virtual_memory().percent


class Recent:
    """A running count of which of the last things went well."""

    def __init__(self, kept: int) -> None:
        self._went: collections.deque[bool] = collections.deque(maxlen=kept)

    def add(self, went_well: bool) -> None:
        """Count one more."""
        self._went.append(went_well)

    @property
    def rate(self) -> float:
        """Share that went well; 1 before the first."""
        return sum(self._went) / len(self._went) if self._went else 1.0


class Bandwidth:
    """Bytes a second over the last minute."""

    def __init__(self) -> None:
        self._seen: collections.deque[tuple[float, int]] = collections.deque()

    def rate(self, num_bytes: int) -> float:
        """Return the rate at which a count of bytes, which only grows, has grown."""
        now = time.monotonic()
        self._seen.append((now, num_bytes))
        while now - self._seen[0][0] > 60 and len(self._seen) > 2:
            self._seen.popleft()
        since, before = self._seen[0]
        return (num_bytes - before) / (now - since) if now > since else 0.0
