"""Runs nonce ranges through an engine, batch by batch, and commits each batch.

Promises:
- One forward pass at a time, all of them in one thread. A range that waits for the engine is open
  already, so the engine goes from one range to the next without waiting for Redis.
- The engine is told of the next batch with each one, the first of the next range with the last of this
  one, so that it can prefetch inputs and permutations while the model is busy.
- The commit of a batch runs while the next one is computed; at most one batch is computed for a
  round after it was stopped, reached its deadline or gave the range to another GPU.
- Redis may go away or refuse at any time: commits wait for it, and repeating one does no harm.
- Draining ends the running range after the batch at hand and gives the rest back.
- Only ranges that were given to this very worker, for the model it has deployed, are searched.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from pocqueue.engine.base import Engine
from pocqueue.errors import (
    EngineUnavailable,
    PassTooLarge,
    PocqueueError,
    StoreError,
    StoreForbidden,
    StoreUnavailable,
)
from pocqueue.poc.batch import Batch
from pocqueue.rounds.range_search import RangeBook, RangeSearch, second_look
from pocqueue.rounds.records import BatchCommit, CommitResult, Outcome, OutstandingRange
from pocqueue.rounds.spec import RoundSpec
from pocqueue.words import counted
from workers.runner_stats import RunnerStats

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Between two tries to reach Redis.
RETRY_S = 0.25
#: Engine failures in a row after which the worker gives up on itself.
MAX_FAILURES = 3


def single_thread(name: str) -> ThreadPoolExecutor:
    """Return an executor of one thread."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)


@dataclass
class _Work:
    """A range that waits for the engine, or has it; and its commit under way, if there is one."""

    search: RangeSearch
    pending: Future[CommitResult] | None = None

    def settle(self) -> None:
        """Wait for the commit under way.

        Raises:
            StoreError: the store refused it.
        """
        if self.pending is not None:
            pending, self.pending = self.pending, None
            self.search.committed(pending.result())


class RangeRunner:
    """The ranges of one GPU.

    Args:
        engine: the deployed model; used by one thread at a time.
        book: where ranges come from and batches go to.
        worker: id of this worker process in the pool; ranges of another one are left alone.
        on_broken: called once with a reason when the engine failed MAX_FAILURES times in a row.
        clock: monotonic seconds.
        engine_thread: an executor of one thread, the one that loaded the engine; None: make one.
            Each thread that enters torch's CPU kernels gets a team of helper threads of its own, and
            once there are more of those than cores, libgomp has them all sleep between kernels
            instead of spin: with two calling threads the engine ran at half its speed.
        retry_s: seconds between two tries to reach Redis.
    """

    def __init__(
        self,
        engine: Engine,
        book: RangeBook,
        worker: str,
        on_broken: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        engine_thread: ThreadPoolExecutor | None = None,
        retry_s: float = RETRY_S,
    ) -> None:
        self._engine, self._book, self._worker = engine, book, worker
        self._on_broken, self._clock, self._retry_s = on_broken, clock, retry_s
        self._engine_thread = engine_thread or single_thread("engine")
        self._stats_lock = threading.Lock()
        self._stats = RunnerStats()
        self._draining = threading.Event()
        #: The last rounds whose end was noticed; of the engine thread. A range that waited for the
        #: engine does not need a batch of its own to find out.
        self._ended: deque[str] = deque(maxlen=16)
        #: Ranges in the order in which the engine gets them; the lock keeps the executor in step.
        self._waiting: deque[_Work] = deque()
        self._waiting_lock = threading.Lock()
        self._free_since = -math.inf  # of the engine thread
        self._committer = single_thread("commit")

    def run(self, round_id: str, range_id: int) -> str:
        """Search a range to its end, or as far as it is wanted; return one line about it.

        Never raises for what Redis, the round or the engine do: such a range goes back, or is no
        longer wanted.
        """
        key = f"{round_id}:{range_id}"
        with self._stats_lock:
            if key in self._stats.held:
                return "delivered twice; already at work on it"
            self._stats.held.add(key)
        try:
            return self._run(round_id, range_id)
        finally:
            with self._stats_lock:
                self._stats.held.discard(key)

    def drain(self) -> None:
        """Take nothing more; what is running ends after its batch and gives its rest back."""
        self._draining.set()

    @property
    def draining(self) -> bool:
        return self._draining.is_set()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no range is held; say whether that is so."""
        deadline = time.monotonic() + timeout_s
        while self.stats().held:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def close(self) -> None:
        """End the threads; a forward pass that still runs is not waited for."""
        self._engine_thread.shutdown(wait=False, cancel_futures=True)
        self._committer.shutdown(wait=True)

    def set_rate(self, seq_len: int, batch_size: int, rate: float) -> None:
        """Set the rate of a shape, measured outside of ranges (by a warm-up)."""
        with self._stats_lock:
            self._stats.set_rate(seq_len, batch_size, rate)

    def stats(self) -> RunnerStats:
        """Return a copy of the counters; busy time includes the range that runs now."""
        with self._stats_lock:
            return self._stats.snapshot(self._clock())

    def _run(self, round_id: str, range_id: int) -> str:
        opened = self._retry(lambda: self._book.open_range(round_id, range_id))
        if opened is None:
            return "no longer wanted"
        status, out = opened
        if out.worker != self._worker:
            # Left in the queue by a worker that died; the scheduler gives the range to others.
            return "given to another worker"
        if not status.spec.is_served_by(self._engine.info):
            self._give_back(out, failed=False)
            return "of another model"
        work = _Work(RangeSearch(opened, self._clock()))
        try:
            with self._waiting_lock:
                self._waiting.append(work)
                searched = self._engine_thread.submit(self._search)
            searched.result()
            # The engine has the next range by now; this one's last commit is on its way.
            work.settle()
        except StoreError as exc:
            # Refused, not just away: nothing of this range can be counted now.
            self._give_back(out, failed=False)
            return f"not counted: {exc}"
        except Exception as exc:  # noqa: BLE001 - any runtime may raise anything
            self._engine_failed(status.spec, out, exc)
            return f"failed: {exc}"
        finally:
            # Also if a commit was refused: those before it count.
            with self._stats_lock:
                self._stats.checked += work.search.counted
        if work.search.gives_back:
            self._give_back(out, failed=False)
        return f"{work.search.counted} of {out.left} nonces"

    def _search(self) -> None:
        """Search the next range in the engine thread; its last commit may be under way at the end."""
        with self._waiting_lock:
            work = self._waiting.popleft()
        if work.search.out.round_id in self._ended:
            work.search.skip()
            return
        with self._stats_lock:
            self._stats.begin(work.search, self._clock(), self._free_since)
        try:
            self._search_batches(work)
        except BaseException:
            # The engine or Redis failed with a commit under way: see it through.
            if work.pending is not None and not work.pending.exception():
                work.settle()
            raise
        finally:
            with self._stats_lock:
                self._stats.end(work.search, self._clock())
        if work.search.round_is_over:
            self._ended.append(work.search.out.round_id)

    def _search_batches(self, work: _Work) -> None:
        search = work.search
        # It may have waited for the engine since it was opened: look again while it begins.
        work.pending = self._committer.submit(self._look_again, search.out)
        while isinstance(batch := search.next(self._clock(), draining=self.draining), Batch):
            upcoming = search.upcoming() or self._first_that_waits()
            # From when it began it is known whether it hangs.
            self._stats.pass_since = began = self._clock()
            try:
                values = self._engine.values(batch, upcoming)
            finally:
                self._stats.pass_since = None
            self._free_since = self._clock()
            search.computed(values, began, self._free_since)
            work.settle()
            if (commit := search.to_commit()) is not None:
                work.pending = self._committer.submit(self._commit, commit)

    def _first_that_waits(self) -> Batch | None:
        with self._waiting_lock:
            return self._waiting[0].search.upcoming() if self._waiting else None

    def _commit(self, batch: BatchCommit) -> CommitResult:
        began = self._clock()
        result = self._retry(lambda: self._book.commit_batch(batch))
        if result is None:
            return CommitResult(Outcome.CLOSED, 0)
        took_s = self._clock() - began
        with self._stats_lock:
            self._stats.commits = self._stats.commits.add(took_s)
        return result

    def _look_again(self, out: OutstandingRange) -> CommitResult:
        """Look whether a range is still this worker's, as the commit of no nonces would."""
        opened = self._retry(lambda: self._book.open_range(out.round_id, out.range_id))
        return second_look(opened, self._worker)

    def _give_back(self, out: OutstandingRange, *, failed: bool) -> None:
        num = self._retry(
            lambda: self._book.release_range(out.round_id, out.range_id, failed=failed)
        )
        if num:
            logger.info("Round %s: handed %s back.", out.round_id, counted(num, "nonce"))

    def _engine_failed(self, spec: RoundSpec, out: OutstandingRange, exc: Exception) -> None:
        # A server that is away says nothing about the range, which must not be given up for it.
        away = isinstance(exc, EngineUnavailable)
        if away:
            logger.error("Range %s goes back: %s", out.key, exc)
        else:
            logger.error("The engine failed on range %s.", out.key, exc_info=exc)
        self._give_back(out, failed=not away)
        # An engine that says what it cannot do (too large a batch, say) is well otherwise.
        refused = isinstance(exc, PocqueueError) and not away
        with self._stats_lock:
            if isinstance(exc, PassTooLarge):
                self._stats.too_large(spec.pass_tokens)
            self._stats.failures += not refused
            self._stats.last_error = f"{type(exc).__name__}: {exc}"[:200]
            broken = self._stats.failures == MAX_FAILURES and not refused
        if broken:
            self._on_broken(f"the engine failed {MAX_FAILURES} times in a row, last with {exc!r}")

    def _retry(self, call: Callable[[], T]) -> T | None:
        """Call until Redis answers; None once draining, as nobody waits for the result then."""
        warned = False
        while True:
            try:
                return call()
            except (StoreUnavailable, StoreForbidden) as exc:
                # What an operator took away from this user may come back as well.
                if self._draining.is_set():
                    return None
                if not warned:
                    warned = True
                    logger.warning("Waiting for Redis: %s", exc)
                self._draining.wait(self._retry_s)
