"""How one simulated GPU runs its ranges: `RangeSearch` as in a worker, with a made-up forward pass.

A pass takes as long as this GPU needs for a batch, on a clock of the GPU's own: the next batch begins where the
last one ended, not when this busy process noticed it.
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

from benchmarks.fleet.ledger import Ledger, values_of
from benchmarks.fleet.wire import Command, Wire, WireClosed
from pocqueue.poc.batch import Batch
from pocqueue.rounds.pool import shape_key
from pocqueue.rounds.range_search import RangeSearch, second_look
from pocqueue.rounds.records import (
    BatchCommit,
    CommitResult,
    OpenedRange,
    Outcome,
    OutstandingRange,
    RoundStatus,
)
from pocqueue.rounds.store import Keys, commit_batch_call, release_range_call
from workers.runner_stats import RunnerStats

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
class Shared:
    """What all GPUs of one simulated fleet share."""

    scripts: Scripts
    #: Where everything is noted.
    ledger: Ledger
    #: Turns the monotonic clock into the Unix clock.
    to_unix: Callable[[float], float]


class VirtualRunner:
    """The ranges of one simulated GPU.

    Args:
        worker: id of its worker in the pool.
        batch_s: seconds that this GPU takes for a batch.
        store: connection for looks at ranges and for what goes back.
        committer: connection for commits.
        shared: with the other GPUs.
        rng: for noise.
    """

    def __init__(
        self,
        worker: str,
        batch_s: float,
        store: Wire,
        committer: Wire,
        shared: Shared,
        rng: random.Random,
    ) -> None:
        self.worker = worker
        self._batch_s, self._rng = batch_s, rng
        self._store, self._committer = store, committer
        self._scripts, self._ledger, self._to_unix = shared.scripts, shared.ledger, shared.to_unix
        self._engine = asyncio.Lock()
        self._ended: deque[str] = deque(maxlen=16)
        #: Since when the GPU is free, on its own clock, and since when this process knows.
        self._free_at = self._noticed_at = 0.0
        self._joined = 0.0
        self._in_flight: dict[int, tuple[str, int, int]] = {}
        self._commit_ids = itertools.count()
        self._tasks: set[asyncio.Task[CommitResult]] = set()
        self.stats = RunnerStats()
        # Warmed up, as a worker is before it joins.
        self.stats.set_rate(SEQ_LEN, BATCH_SIZE, BATCH_SIZE / batch_s)

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
        if self.stats.pass_since is None:
            self._idle(self._ledger.no_work, now - self._noticed_at)

    async def run(self, round_id: str, range_id: int) -> str:
        """Search a range to its end, or as far as it is wanted; return what became of it."""
        key = f"{round_id}:{range_id}"
        if key in self.stats.held:
            return "delivered twice; already at work on it"
        self.stats.held.add(key)
        try:
            opened = await self._open(round_id, range_id)
            if opened is None:
                return "no longer wanted"
            if opened.out.worker != self.worker:
                return "given to another worker"
            search = RangeSearch(opened, time.monotonic())
            async with self._engine:
                last = await self._search(search)
            if last is not None:
                search.committed(await last)
            if search.gives_back:
                call = release_range_call(round_id, range_id, failed=False)
                await self._store.send(evalsha(self._scripts.release_range, *call))
            return search.end.value if search.end is not None else ""
        finally:
            self.stats.held.discard(key)

    async def _open(self, round_id: str, range_id: int) -> OpenedRange | None:
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
        return OpenedRange(status, out)

    async def _look_again(self, out: OutstandingRange) -> CommitResult:
        try:
            opened = await self._open(out.round_id, out.range_id)
        except WireClosed:
            opened = None
        return second_look(opened, self.worker)

    async def _search(self, search: RangeSearch) -> asyncio.Task[CommitResult] | None:
        """Search batch by batch; return the last commit if it is under way."""
        out = search.out
        if out.round_id in self._ended:
            search.skip()
            return None
        free_since = self._free_at
        self._idle(self._ledger.no_work, search.opened_at - self._noticed_at)
        self.stats.begin(search, self._free_at, free_since)
        pending: asyncio.Task[CommitResult] | None = self._spawn(self._look_again(out))
        while isinstance(batch := search.next(self._free_at), Batch):
            began = self._free_at
            took_s = await self._pass(out.round_id)
            search.computed(values_of(search.status.spec, batch.nonces), began, self._free_at)
            result = None
            if pending is not None:
                result = await self._waited_for(pending)
                search.committed(result)
            commit, pending = search.to_commit(), None
            if commit is not None:
                pending = self._spawn(self._commit(commit, took_s))
            elif result is not None:
                lost = result.outcome.value if not result.outcome.goes_on else "elsewhere"
                self._ledger.dropped_s[lost] += took_s
        if search.round_is_over:
            self._ended.append(out.round_id)
        self.stats.end(search, self._free_at)
        return pending

    async def _waited_for(self, pending: asyncio.Task[CommitResult]) -> CommitResult:
        """Return the result of a commit; note for how long the GPU had to wait for it."""
        if not pending.done():
            woke = time.monotonic()
            await asyncio.wait([pending])
            self._noticed_at = time.monotonic()
            self._idle(self._ledger.on_commit, self._noticed_at - woke)
        return pending.result()

    async def _pass(self, round_id: str) -> float:
        """Let one forward pass go by; return how long it took."""
        took_s = self._batch_s * self._rng.lognormvariate(0.0, NOISE)
        end = self._free_at + took_s
        self.stats.pass_since = self._free_at
        await asyncio.sleep(max(0.0, end - time.monotonic()))
        self.stats.pass_since = None
        self._noticed_at = time.monotonic()
        self._ledger.late_s.append(max(0.0, self._noticed_at - end))
        self._ledger.spent_s[round_id] += took_s
        self._free_at = end
        return took_s

    async def _commit(self, batch: BatchCommit, took_s: float) -> CommitResult:
        name, run = batch.round_id, (batch.start, batch.stop)
        number, began = next(self._commit_ids), time.monotonic()
        self._in_flight[number] = (name, *run)
        call = commit_batch_call(batch)
        try:
            reply = await self._committer.send(evalsha(self._scripts.commit_batch, *call))
        except WireClosed:
            return CommitResult(Outcome.CLOSED, 0)
        del self._in_flight[number]
        seconds = time.monotonic() - began
        self._ledger.commit_s.append(seconds)
        self.stats.commits = self.stats.commits.add(seconds)
        result = CommitResult(Outcome(reply[0][0]), int(reply[0][1]))
        if result.outcome is Outcome.COMMITTED:
            self._ledger.committed[name].extend(run)
            self.stats.checked += batch.stop - batch.start
        else:
            self._ledger.dropped_s[result.outcome.value] += took_s
        return result

    def _spawn(self, work: Coroutine[Any, Any, CommitResult]) -> asyncio.Task[CommitResult]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps no hold of it
        task.add_done_callback(self._tasks.discard)
        return task

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
