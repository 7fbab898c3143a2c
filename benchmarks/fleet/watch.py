"""What the processes of a fleet cost while it runs: once a second, by the kernel's own count."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import psutil
import redis


@dataclass
class Watch:
    """Samples processor time and memory of some processes, and of Redis by its own word.

    Args:
        pids: process ids by name.
        client: of the Redis server.
    """

    pids: dict[str, int]
    client: redis.Redis
    #: Per cent of a core in each second, by name.
    cpu: dict[str, list[float]] = field(default_factory=dict)
    #: MiB of resident memory, by name.
    memory: dict[str, list[float]] = field(default_factory=dict)
    #: MiB that Redis says its data and buffers take.
    redis_used: list[float] = field(default_factory=list)
    #: Seconds of a round trip to Redis, from a process that does nothing else.
    ping_s: list[float] = field(default_factory=list)
    #: Per cent of all cores in each second, of whatever runs on the machine.
    machine_cpu: list[float] = field(default_factory=list)
    connections: int = 0
    _last: dict[str, float] = field(default_factory=dict)
    _at: float = 0.0

    def sample(self) -> None:
        """Look once."""
        now = time.monotonic()
        for name, pid in self.pids.items():
            process = psutil.Process(pid)
            times = process.cpu_times()
            # Of Redis with its children, which rewrite the append-only file.
            seconds = times.user + times.system + times.children_user + times.children_system
            if name in self._last and now > self._at:
                share = 100 * (seconds - self._last[name]) / (now - self._at)
                self.cpu.setdefault(name, []).append(share)
            self._last[name] = seconds
            self.memory.setdefault(name, []).append(process.memory_info().rss / 2**20)
        self._at = now
        # Of all cores together: 100 is a machine that has nothing left, for whatever is run on it.
        self.machine_cpu.append(psutil.cpu_percent())
        began = time.perf_counter()
        self.client.ping()
        self.ping_s.append(time.perf_counter() - began)
        self.redis_used.append(self.client.info("memory")["used_memory"] / 2**20)
        self.connections = max(self.connections, self.client.info("clients")["connected_clients"])
