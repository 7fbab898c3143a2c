"""A pool of GPUs in simulated time, scheduled by `plan`: no Redis, no threads, no clock.

Each GPU works through its queue in order, at its own speed. Every 50 ms of simulated time the
scheduler looks at the pool and its assignments are queued at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from pocqueue.rounds.planner import plan
from pocqueue.rounds.pool import Gpu
from pocqueue.rounds.records import Assignment, OutstandingRange, RoundStatus
from pocqueue.rounds.spec import RoundSpec
from tests.support.factories import NOW_MS, make_status

STEP_S = 0.05


@dataclass
class _Work:
    """A range in the queue of a GPU."""

    out: OutstandingRange
    left_s: float
    rate: float

    def as_it_stands(self) -> OutstandingRange:
        """Return the record, with what is computed by now counted."""
        # A nonce at work is not counted yet.
        left = min(self.out.stop - self.out.start, ceil(self.left_s * self.rate - 1e-9))
        return replace(self.out, done=self.out.stop - left)


@dataclass
class Simulation:
    """GPUs, rounds and what became of them."""

    gpus: dict[str, Gpu]
    rounds: dict[str, RoundStatus] = field(default_factory=dict)
    now_s: float = 0.0
    #: GPU seconds by (round, GPU queue).
    spent_s: dict[tuple[str, str], float] = field(default_factory=dict)
    idle_s: dict[str, float] = field(default_factory=dict)
    #: When each range began, of which round, and how many nonces it had.
    begun: list[tuple[float, str, int]] = field(default_factory=list)
    away: set[str] = field(default_factory=set)
    _queues: dict[str, list[_Work]] = field(default_factory=dict)
    _last_id: int = 0

    @property
    def now_ms(self) -> int:
        return NOW_MS + round(self.now_s * 1000)

    def join(self, round_id: str, spec: RoundSpec) -> None:
        """Start a round now."""
        self.rounds[round_id] = make_status(round_id, spec=spec, created_ms=self.now_ms)

    def leave(self, round_id: str) -> None:
        """Stop a round now; workers drop what they have of it."""
        del self.rounds[round_id]
        for queue, works in self._queues.items():
            self._queues[queue] = [work for work in works if work.out.round_id != round_id]

    def run(self, seconds: float) -> dict[str, float]:
        """Let time pass; return the GPU seconds that each round got in it."""
        before = self.shares()
        for _ in range(round(seconds / STEP_S)):
            self._schedule()
            for queue in self.gpus:
                self._work(queue)
            self.now_s = round(self.now_s + STEP_S, 6)
        return {name: spent - before.get(name, 0.0) for name, spent in self.shares().items()}

    def shares(self) -> dict[str, float]:
        """Return the GPU seconds of each round so far."""
        total: dict[str, float] = {}
        for (round_id, _), spent in self.spent_s.items():
            total[round_id] = total.get(round_id, 0.0) + spent
        return total

    def _schedule(self) -> None:
        gpus = [
            replace(
                gpu,
                now_ms=self.now_ms,
                seen_ms=self.now_ms - (gpu.ttl_ms if queue in self.away else 0),
            )
            for queue, gpu in self.gpus.items()
        ]
        outstanding = [w.as_it_stands() for works in self._queues.values() for w in works]
        rounds = [
            replace(
                status,
                now_ms=self.now_ms,
                # Batches count as they are done, as in the store.
                checked=status.checked
                + sum(o.done - o.start for o in outstanding if o.round_id == status.round_id),
            )
            for status in self.rounds.values()
            if status.deadline_ms > self.now_ms
        ]
        for a in plan(rounds, gpus, outstanding, self.now_ms):
            status = self.rounds[a.round_id]
            self._last_id += 1
            start = status.next_index
            self.rounds[a.round_id] = replace(
                status, next_index=start + a.num_nonces, vtime=vtime_after(a)
            )
            rate = self.gpus[a.queue].rate(status.spec.seq_len, status.spec.batch_size)
            self._queues.setdefault(a.queue, []).append(
                _Work(
                    OutstandingRange(
                        a.round_id,
                        self._last_id,
                        start,
                        start + a.num_nonces,
                        start,
                        a.queue,
                        a.worker,
                        0,
                        self.now_ms,
                    ),
                    a.num_nonces / rate,
                    rate,
                )
            )

    def _work(self, queue: str) -> None:
        works, budget_s = self._queues.setdefault(queue, []), STEP_S
        while works and budget_s > 1e-9:
            work = works[0]
            num = work.out.stop - work.out.start
            if work.left_s == num / work.rate:
                began_s = round(self.now_s + STEP_S - budget_s, 6)
                self.begun.append((began_s, work.out.round_id, num))
            used = min(budget_s, work.left_s)
            key = (work.out.round_id, queue)
            self.spent_s[key] = self.spent_s.get(key, 0.0) + used
            work.left_s -= used
            budget_s -= used
            if work.left_s <= 1e-9:
                works.pop(0)
                status = self.rounds[work.out.round_id]
                self.rounds[work.out.round_id] = replace(status, checked=status.checked + num)
        self.idle_s[queue] = self.idle_s.get(queue, 0.0) + budget_s


def vtime_after(assignment: Assignment) -> float:
    """Return the virtual time of a round once an assignment of it is made."""
    a = assignment
    return a.vtime_floor + a.num_nonces * a.vtime_per_nonce


def jain_index(values: Sequence[float]) -> float:
    """Return Jain's index of fairness: 1 where all are equal, 1/n where one has all.

    R. Jain, D. Chiu, W. Hawe: A Quantitative Measure of Fairness, DEC-TR-301, 1984.
    """
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))
