"""The pool: which GPU queues have a live worker behind them, and what each of them can do.

A worker sends a heartbeat every second, with its rates and what it holds. After a time to live without
one it counts as dead and its ranges go to others. A queue belongs to one live worker.
"""

from __future__ import annotations

import dataclasses
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from pocqueue.engine.base import EngineInfo
from pocqueue.rounds.connection import Call, OnRedis
from pocqueue.rounds.store import Keys

#: How long a dead worker is still shown by `pocqueue gpus`.
FORGET_MS = 3600 * 1000
#: How often a worker says that it is alive, and after how much silence it counts as dead: a second of the
#: five that the loss of a worker may cost is left for the scheduler.
HEARTBEAT_S = 1.0
HEARTBEAT_TTL_S = 4 * HEARTBEAT_S
#: No forward pass takes this long, except on a GPU whose known rates say so.
HANG_S = 120.0


def shape_key(seq_len: int, batch_size: int) -> str:
    """Name the shape of a forward pass, as rates are kept by it: ``256x32``."""
    return f"{seq_len}x{batch_size}"


#: Upper bounds of the buckets, in seconds; a last one has all that took longer.
BOUNDS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Latency:
    """How long something took, many times over. Never changed in place, so threads may share one."""

    #: One for each of BOUNDS_S, and one more; each counts its own bucket only.
    counts: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)
    sum_s: float = 0.0  #: seconds in all

    def add(self, seconds: float) -> Latency:
        """Return these counts with one more duration."""
        at = bisect_left(BOUNDS_S, seconds)
        counts = (*self.counts[:at], self.counts[at] + 1, *self.counts[at + 1 :])
        return Latency(counts, self.sum_s + seconds)

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (upper bound, durations up to it) of each bucket, as Prometheus has them."""
        total, buckets = 0, []
        for bound, count in zip([*map(str, BOUNDS_S), "+Inf"], self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` wrote; nothing if it was written with other buckets."""
        counts = tuple(int(count) for count in values.get("counts", ()))
        if len(counts) != len(BOUNDS_S) + 1:
            return cls()
        return cls(counts, float(values.get("sum_s", 0.0)))


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU queue and the worker behind it, as its last heartbeat had it."""

    queue: str
    worker: str  #: id of the worker process; a restarted worker has another
    host: str
    pid: int
    info: EngineInfo
    #: Milliseconds after a heartbeat at which the worker counts as dead.
    ttl_ms: int = round(1000 * HEARTBEAT_TTL_S)
    #: Nonces per second while busy, by shape (`shape_key`).
    rates: dict[str, float] = field(default_factory=dict)
    #: The best of these so far, by shape; what it can do, whatever slowed it down lately.
    best_rates: dict[str, float] = field(default_factory=dict)
    #: Ranges it has taken from its queue: one running, one waiting (`OutstandingRange.key`).
    held: tuple[str, ...] = ()
    #: Share of the time since the heartbeat before that the engine was busy, 0 to 1.
    load: float = 0.0
    pass_s: float = 0.0  #: seconds that its forward pass at hand has run; 0 between two
    checked: int = 0  #: nonces counted since the worker started
    draining: bool = False  #: it finishes what it holds and takes nothing new
    last_error: str = ""  #: what went wrong last, or empty
    #: How long its commits took since the worker started.
    commits: Latency = field(default_factory=Latency)
    #: How long its engine was idle between two ranges of which the second one was there already.
    gaps: Latency = field(default_factory=Latency)
    seen_ms: int = 0  #: Redis's clock at the last heartbeat; set by the pool
    now_ms: int = 0  #: Redis's clock when this was read; set by the pool

    @property
    def is_live(self) -> bool:
        return self.now_ms - self.seen_ms < self.ttl_ms

    @property
    def silent_s(self) -> float:
        """Seconds since the last heartbeat."""
        return max(0.0, (self.now_ms - self.seen_ms) / 1000)

    @property
    def hangs(self) -> bool:
        """Say whether its forward pass takes so long that it will not end.

        The heartbeat is a thread of its own and goes on even if the GPU hangs.
        """
        if self.pass_s <= HANG_S:  # asked of every range ten times a second
            return False
        passes_s = (int(k.partition("x")[2]) / rate for k, rate in self.rates.items() if rate > 0)
        return self.pass_s > 20 * max(passes_s, default=0.0)

    def rate(self, seq_len: int, batch_size: int) -> float:
        """Return nonces per second at a shape; 0: not known.

        A shape that was never run is estimated from one that was, by positions per second, and
        halved: the first range is rather too short than too long.
        """
        if known := self.rates.get(shape_key(seq_len, batch_size)):
            return known
        for shape, rate in self.rates.items():
            return rate * int(shape.partition("x")[0]) / seq_len / 2
        return 0.0

    def has_run(self, seq_len: int, batch_size: int) -> bool:
        """Say whether the rate at a shape was measured."""
        return shape_key(seq_len, batch_size) in self.rates

    def least_batch_s(self, seq_len: int, batch_size: int) -> float:
        """Return the seconds that one batch takes at the least; 0: not known."""
        best = self.best_rates.get(shape_key(seq_len, batch_size), 0.0)
        return batch_size / best if best > 0 else 0.0

    def to_json(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "seen_ms": 0, "now_ms": 0})

    @classmethod
    def from_json(cls, text: str, seen_ms: int, now_ms: int) -> Gpu:
        known = {f.name for f in dataclasses.fields(cls)}
        # A newer worker may say more than this process knows of.
        values: dict[str, Any] = {k: v for k, v in json.loads(text).items() if k in known}
        values |= {
            "info": EngineInfo.from_dict(values["info"]),
            "held": tuple(values["held"]),
            "commits": Latency.from_dict(values.get("commits", {})),
            "gaps": Latency.from_dict(values.get("gaps", {})),
            "seen_ms": seen_ms,
            "now_ms": now_ms,
        }
        return cls(**values)


@dataclass(eq=False, repr=False)
class Pool(OnRedis):
    """The register of GPU queues in Redis. Safe to share between threads."""

    #: The last record of each queue, as it was read. Never changed in place: threads may share it.
    _known: dict[str, Gpu] = field(default_factory=dict, init=False)

    def beat(self, gpu: Gpu) -> Gpu | None:
        """Register a worker or renew its heartbeat; return the other live owner of the queue."""
        other = self._run("beat", *beat_call(gpu))
        return Gpu.from_json(other, 0, 0) if other else None

    def leave(self, queue: str, worker: str) -> None:
        """Take a worker out of the pool."""
        self._run("leave", [Keys.GPUS, Keys.HEARTBEATS], [queue, worker])

    def all(self) -> list[Gpu]:
        """Return every GPU, dead ones of the last hour too, by queue."""
        with self._pipeline() as pipe:
            pipe.zrange(Keys.HEARTBEATS, 0, -1, withscores=True)
            pipe.time()
            beats, time = pipe.execute()
        now_ms = time[0] * 1000 + time[1] // 1000
        seen = {str(queue): int(score) for queue, score in beats}
        # A scheduler asks ten times a second, a worker speaks once: most records are here already. A record
        # that was read in the same millisecond as it was written is read again: it may have been
        # overwritten within that millisecond.
        gpus = {q: gpu for q, gpu in self._known.items() if seen.get(q) == gpu.seen_ms < gpu.now_ms}
        if heard := [queue for queue in seen if queue not in gpus]:
            with self._errors():
                texts: Any = self.client.hmget(Keys.GPUS, heard)
            gpus |= {
                queue: Gpu.from_json(text, seen[queue], now_ms)
                for queue, text in zip(heard, texts, strict=True)
                if text is not None  # it left the pool just now
            }
        self._known = gpus
        return [
            dataclasses.replace(gpu, now_ms=now_ms)
            for _, gpu in sorted(gpus.items(), key=lambda item: _natural(item[0]))
        ]

    def live(self) -> list[Gpu]:
        """Return the GPUs with a live worker."""
        return [gpu for gpu in self.all() if gpu.is_live]

    def forget_dead(self, gpus: Sequence[Gpu]) -> None:
        """Remove those that have been dead for an hour."""
        for gpu in gpus:
            if gpu.now_ms - gpu.seen_ms > FORGET_MS:
                self.leave(gpu.queue, gpu.worker)


def beat_call(gpu: Gpu) -> Call:
    """Return keys and arguments of `lua/beat.lua`; see `Pool.beat`."""
    return [Keys.GPUS, Keys.HEARTBEATS], [gpu.queue, gpu.worker, gpu.to_json()]


def _natural(queue: str) -> tuple[str, int]:
    """Sort gpu2 before gpu10."""
    digits = len(queue) - len(queue.rstrip("0123456789"))
    return (queue[: len(queue) - digits], int(queue[len(queue) - digits :] or 0))
