"""How one simulated GPU runs its ranges: as `workers.range_runner` does, with a made-up forward pass.

A pass takes as long as this GPU needs for a batch, on a clock of the GPU's own: the next batch begins where the
last one ended, not when this busy process noticed it. All else is what the real runner does, in its order: a
second look at the range while its first batch runs, the commit of each batch during the next one.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.fleet.ledger import Ledger, distance, valid_indices
from benchmarks.fleet.wire import Command, Wire, WireClosed
from pocqueue.poc.proofs import Proofs
from pocqueue.rounds.latency import Latency
from pocqueue.rounds.pool import shape_key
from pocqueue.rounds.records import CommitResult, Outcome, OutstandingRange, RoundStatus
from pocqueue.rounds.store import Keys, commit_batch_call, release_range_call

SEQ_LEN, BATCH_SIZE = 256, 32
SHAPE = shape_key(SEQ_LEN, BATCH_SIZE)
#: A batch takes this much more or less than the last one, as one standard deviation.
NOISE = 0.03


@dataclass
class Scripts:
    """SHA-1 of each script that a worker runs."""

    commit_batch: str
    release_range: str
    beat: str


@dataclass
class _Range:
    """A range at work: its round, its record and when it was opened, on the GPU's clock."""

    status: RoundStatus
    out: OutstandingRange
    opened: float

    @property
    def deadline(self) -> float:
        return self.opened + self.status.remaining_s


class VirtualRunner:
    """The ranges of one simulated GPU.

    Args:
        worker: id of its worker in the pool.
        batch_s: seconds that this GPU takes for a batch.
        store: connection for looks at ranges and for what goes back.
        committer: connection for commits.
        scripts: the scripts that were loaded.
        ledger: where everything is noted.
        to_unix: turns the monotonic clock into the Unix clock.
        rng: for noise.
    """

    def __init__(
        self,
        worker: str,
        batch_s: float,
        store: Wire,
        committer: Wire,
        scripts: Scripts,
        ledger: Ledger,
        to_unix: Callable[[float], float],
        rng: random.Random,
    ) -> None:
        self.worker = worker
        self._batch_s = batch_s
        self._store = store
        self._committer = committer
        self._scripts = scripts
        self._ledger = ledger
        self._to_unix = to_unix
        self._rng = rng
        self._engine = asyncio.Lock()
        self._ended: deque[str] = deque(maxlen=16)
        #: Since when the GPU is free, on its own clock, and since when this process knows.
        self._free_at = self._noticed_at = 0.0
        self._joined = 0.0
        self._in_flight: dict[int, tuple[str, int, int]] = {}
        self._commit_ids = itertools.count()
        self._tasks: set[asyncio.Task[CommitResult]] = set()
        # What the heartbeat tells.
        self.held: set[str] = set()
        self.pass_since: float | None = None
        self.busy_s = 0.0
        # Warmed up, as a worker is before it joins.
        self.rates = {SHAPE: BATCH_SIZE / batch_s}
        self.best_rates = dict(self.rates)
        self.checked = 0
        self.commits = Latency()

    def join(self) -> None:
        """Begin: from now on the GPU is in the pool."""
        self._joined = self._free_at = self._noticed_at = time.monotonic()

    def die(self) -> None:
        """Note what was under way, and the time that was not worked to the end."""
        for round_id, start, stop in self._in_flight.values():
            self._ledger.unknown[round_id].append((start, stop))
        if not self._joined:
            return
        now = time.monotonic()
        self._ledger.lives.append((self._to_unix(self._joined), self._to_unix(now)))
        if self.pass_since is None:
            self._idle(self._ledger.no_work, now - self._noticed_at)

    async def run(self, round_id: str, range_id: int) -> str:
        """Search a range to its end, or as far as it is wanted; return what became of it."""
        key = f"{round_id}:{range_id}"
        if key in self.held:
            return "delivered twice; already at work on it"
        self.held.add(key)
        try:
            work = await self._open(round_id, range_id)
            if work is None:
                return "no longer wanted"
            if work.out.worker != self.worker:
                return "given to another worker"
            async with self._engine:
                pending = self._search_begins(work)
                ended = await self._search(work, pending) if pending else "closed"
            return await self._settle(work, ended)
        finally:
            self.held.discard(key)

    async def _open(self, round_id: str, range_id: int) -> _Range | None:
        fields, record, now = await self._store.send(
            ("HGETALL", Keys.of_round(round_id, "round")),
            ("HGET", Keys.of_round(round_id, "ranges"), range_id),
            ("TIME",),
        )
        if not fields or not record:
            return None
        now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
        by_name = dict(zip(fields[::2], fields[1::2], strict=True))
        status = RoundStatus.parse(round_id, by_name, now_ms)
        if status.remaining_s <= 0:
            return None
        out = OutstandingRange.parse(round_id, str(range_id), record)
        return _Range(status, out, time.monotonic())

    def _search_begins(self, work: _Range) -> asyncio.Task[CommitResult] | None:
        """Look again at the range while its first batch runs; None where its round is over."""
        if work.out.round_id in self._ended:
            return None
        return self._spawn(self._reopen(work.out))

    async def _reopen(self, out: OutstandingRange) -> CommitResult:
        try:
            work = await self._open(out.round_id, out.range_id)
        except WireClosed:
            work = None
        if work is None or work.out.worker != self.worker:
            return CommitResult(Outcome.REASSIGNED, 0)
        return CommitResult(Outcome.REPEATED, work.out.done)

    async def _search(
        self, work: _Range, pending: asyncio.Task[CommitResult]
    ) -> asyncio.Task[CommitResult] | str:
        """Search batch by batch; return the last commit, under way, or why the search ended."""
        out = work.out
        self._idle(self._ledger.no_work, work.opened - self._noticed_at)
        position, began, computed = out.done, self._free_at, 0
        while True:
            if position >= out.stop:
                self._note_rate(computed, self._free_at - began)
                return pending
            late = self._free_at >= work.deadline - BATCH_SIZE / self.best_rates[SHAPE]
            stop, took_s = min(position + BATCH_SIZE, out.stop), 0.0
            if not late:
                took_s = await self._pass(out.round_id)
                computed += stop - position
            if not pending.done():
                woke = time.monotonic()
                await asyncio.wait([pending])
                self._noticed_at = time.monotonic()
                self._idle(self._ledger.on_commit, self._noticed_at - woke)
            result = pending.result()
            if not result.outcome.goes_on:
                if result.outcome.ends_round:
                    self._ended.append(out.round_id)
                self._ledger.dropped_s[result.outcome] += took_s
                self._note_rate(computed, self._free_at - began)
                return result.outcome
            if result.outcome is not Outcome.COMMITTED and result.done != position:
                self._ledger.dropped_s["elsewhere"] += took_s
                position = result.done
                continue
            if late:
                self._note_rate(computed, self._free_at - began)
                return "late"
            pending = self._spawn(self._commit(work, position, stop, took_s))
            position = stop

    async def _pass(self, round_id: str) -> float:
        """Let one forward pass go by; return how long it took."""
        took_s = self._batch_s * self._rng.lognormvariate(0.0, NOISE)
        end = self._free_at + took_s
        self.pass_since = self._free_at
        await asyncio.sleep(max(0.0, end - time.monotonic()))
        self.pass_since = None
        self._noticed_at = time.monotonic()
        self._ledger.late_s.append(max(0.0, self._noticed_at - end))
        self._ledger.spent_s[round_id] += took_s
        self.busy_s += took_s
        self._free_at = end
        return took_s

    async def _commit(self, work: _Range, start: int, stop: int, took_s: float) -> CommitResult:
        spec, out = work.status.spec, work.out
        found, name = valid_indices(start, stop), out.round_id
        valid = Proofs.of((spec.node_id + i * spec.node_count, distance(i)) for i in found)
        call = commit_batch_call(name, out.range_id, start, stop, valid, 0)
        number, began = next(self._commit_ids), time.monotonic()
        self._in_flight[number] = (name, start, stop)
        try:
            reply = await self._committer.send(evalsha(self._scripts.commit_batch, *call))
        except WireClosed:
            return CommitResult(Outcome.CLOSED, 0)
        del self._in_flight[number]
        seconds = time.monotonic() - began
        self._ledger.commit_s.append(seconds)
        self.commits = self.commits.add(seconds)
        outcome, done = Outcome(reply[0][0]), reply[0][1]
        if outcome is Outcome.COMMITTED:
            self._ledger.committed[name].extend((start, stop))
            self.checked += stop - start
        else:
            self._ledger.dropped_s[outcome] += took_s
        return CommitResult(outcome, int(done))

    async def _settle(self, work: _Range, ended: asyncio.Task[CommitResult] | str) -> str:
        """Wait for the last commit, give back what is left; return one word about the range."""
        if isinstance(ended, str):
            word, left = ended, ended == "late"
        else:
            result = await ended
            word = result.outcome
            left = word != "committed" and result.outcome.goes_on and result.done != work.out.stop
        if left:
            call = release_range_call(work.out.round_id, work.out.range_id, failed=False)
            await self._store.send(evalsha(self._scripts.release_range, *call))
        return word

    def _spawn(self, work: Coroutine[Any, Any, CommitResult]) -> asyncio.Task[CommitResult]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps no hold of it
        task.add_done_callback(self._tasks.discard)
        return task

    def _note_rate(self, computed: int, seconds: float) -> None:
        if computed == 0 or seconds <= 0:
            return
        rate = computed / seconds
        self.rates[SHAPE] = (self.rates[SHAPE] + rate) / 2
        self.best_rates[SHAPE] = max(rate, self.best_rates[SHAPE])

    def _idle(self, kind: list[tuple[float, float]], seconds: float) -> None:
        """Note that the GPU had to wait, and move its clock on.

        Counted from when this process knew that the GPU is free: by how much it was late is its own
        fault.
        """
        if seconds > 0:
            start = self._to_unix(self._free_at)
            kind.append((start, start + seconds))
            self._free_at += seconds


def evalsha(sha: str, keys: Sequence[str], arguments: Sequence[Any]) -> Command:
    """Return the command that runs a script."""
    return ("EVALSHA", sha, len(keys), *keys, *arguments)
