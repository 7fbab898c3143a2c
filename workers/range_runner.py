"""Runs nonce ranges through an engine, batch by batch, and commits each batch.

Promises:
- One forward pass at a time, all of them in one thread: whoever waits for the engine has opened its
  range already, so the engine goes from one range to the next without waiting for Redis.
- The engine is told of the next batch with each one, the first of the next range with the last of this
  one, so that it can make inputs and permutations while the model is busy.
- The commit of a batch runs while the next one is computed; at most one batch is computed for a
  round after it was stopped, reached its deadline or gave the range to another GPU.
- Redis may go away at any time: commits wait for it, and repeating one does no harm.
- Draining ends the running range after the batch at hand and gives the rest back.
- Only ranges that were given to this very worker, for the model it has deployed, are searched.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from pocqueue.engine.base import Engine
from pocqueue.errors import (
    EngineUnavailable,
    PocqueueError,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from pocqueue.poc.batch import Batch
from pocqueue.poc.nonces import nonces_of
from pocqueue.poc.scheme import ProofScheme
from pocqueue.rounds.latency import Latency
from pocqueue.rounds.pool import shape_key
from pocqueue.rounds.records import CommitResult, Outcome, OutstandingRange, RoundStatus
from pocqueue.rounds.store import RoundStore

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Between two tries to reach Redis.
RETRY_S = 0.25
#: Engine failures in a row after which the worker gives up on itself.
MAX_FAILURES = 3


@dataclass
class RunnerStats:
    """What a runner did; read by the heartbeat, written under the runner's own lock."""

    checked: int = 0
    busy_s: float = 0.0
    #: Seconds that the forward pass at hand has run; 0 between two.
    pass_s: float = 0.0
    rates: dict[str, float] = field(default_factory=dict)
    #: The best rate of each shape so far.
    best_rates: dict[str, float] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    last_error: str = ""
    failures: int = 0
    #: How long commits took, from the first try to the answer.
    commits: Latency = field(default_factory=Latency)
    #: How long the engine was idle between two ranges of which the second one was here already.
    gaps: Latency = field(default_factory=Latency)


def single_thread(name: str) -> ThreadPoolExecutor:
    """Return an executor of one thread."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)


class _Pending(NamedTuple):
    """A commit under way, and of how many nonces."""

    future: Future[CommitResult]
    size: int


class _Opened(NamedTuple):
    """A range that waits for the engine, or has it."""

    status: RoundStatus
    out: OutstandingRange
    since: float

    def first_batch(self) -> Batch | None:
        """Return the batch that its search begins with; None where there is nothing left."""
        return _batch_at(self.status, self.out, self.out.done)


class _Searched(NamedTuple):
    """How a search ended, what counted so far, and the last commit where it is under way."""

    ended: str
    counted: int
    pending: _Pending | None


class RangeRunner:
    """The ranges of one GPU.

    Args:
        engine: the deployed model; used by one thread at a time.
        store: where ranges come from and batches go to.
        worker: id of this worker process in the pool; ranges of another one are left alone.
        on_broken: called once with a reason when the engine failed MAX_FAILURES times in a row.
        clock: monotonic seconds.
        engine_thread: an executor of one thread, the one that loaded the engine; None: make one.
            Each thread that enters torch's CPU kernels gets a team of helper threads of its own, and
            once there are more of those than cores, libgomp has them all sleep between kernels
            instead of spin: with two calling threads the engine ran at half its speed.
    """

    def __init__(
        self,
        engine: Engine,
        store: RoundStore,
        worker: str,
        on_broken: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        engine_thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._worker = worker
        self._on_broken = on_broken
        self._clock = clock
        self._engine_thread = engine_thread or single_thread("engine")
        self._stats_lock = threading.Lock()
        self._stats = RunnerStats()
        self._busy_since: float | None = None
        self._pass_since: float | None = None
        self._draining = threading.Event()
        #: The last rounds whose end was noticed; of the engine thread. What waited for the engine
        #: need not find out again, with a batch of its own.
        self._ended: deque[str] = deque(maxlen=16)
        #: Ranges in the order in which the engine gets them; the lock keeps the executor in step.
        self._waiting: deque[_Opened] = deque()
        self._waiting_lock = threading.Lock()
        self._pass_ended = -math.inf  # of the engine thread
        self._committer = single_thread("commit")

    def run(self, round_id: str, range_id: int) -> str:
        """Search a range to its end, or as far as it is wanted; return one line about it.

        Never raises for what Redis, the round or the engine do: such a range goes back, or is no
        longer wanted.
        """
        key = f"{round_id}:{range_id}"
        with self._hold(key) as first:
            if not first:
                return "delivered twice; already at work on it"
            opened = self._retry(lambda: self._store.open_range(round_id, range_id))
            if opened is None:
                return "no longer wanted"
            status, out = opened
            if out.worker != self._worker:
                # Left in the queue by a worker that died; the scheduler gives the range to others.
                return "given to another worker"
            if not self._serves(status):
                self._give_back(out, failed=False)
                return "of another model"
            deadline = self._clock() + status.remaining_s
            try:
                last = self._enqueue(status, out, deadline).result()
                # The engine has the next range by now; this one's last commit is on its way.
                counted = self._settle(out, last)
            except StoreError as exc:
                # Refused, not just away: nothing of this range can be counted now.
                self._give_back(out, failed=False)
                return f"not counted: {exc}"
            except Exception as exc:  # noqa: BLE001 - any runtime may raise anything
                self._engine_failed(out, exc)
                return f"failed: {exc}"
        return f"{counted} of {out.left} nonces"

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

    def note_rate(self, seq_len: int, batch_size: int, rate: float) -> None:
        """Set the rate of a shape, measured outside of ranges (by a warm-up)."""
        shape = shape_key(seq_len, batch_size)
        with self._stats_lock:
            self._stats.rates[shape] = rate
            self._stats.best_rates[shape] = rate

    def stats(self) -> RunnerStats:
        """Return a copy of the counters; busy time includes the range that runs now."""
        with self._stats_lock:
            stats, now = self._stats, self._clock()
            running = now - self._busy_since if self._busy_since is not None else 0.0
            return RunnerStats(
                checked=stats.checked,
                busy_s=stats.busy_s + running,
                pass_s=now - self._pass_since if self._pass_since is not None else 0.0,
                rates=dict(stats.rates),
                best_rates=dict(stats.best_rates),
                held=set(stats.held),
                last_error=stats.last_error,
                failures=stats.failures,
                commits=stats.commits,
                gaps=stats.gaps,
            )

    def _enqueue(
        self, status: RoundStatus, out: OutstandingRange, deadline: float
    ) -> Future[_Searched]:
        """Have a range searched once the engine is free."""
        with self._waiting_lock:
            self._waiting.append(_Opened(status, out, self._clock()))
            return self._engine_thread.submit(self._search, deadline)

    def _search(self, deadline: float) -> _Searched:
        """Search the next range in the engine thread; its last commit may be under way at the end."""
        with self._waiting_lock:
            status, out, since = self._waiting.popleft()
        if out.round_id in self._ended:
            return _Searched("closed", 0, None)
        with self._busy():
            return self._search_on(status, out, deadline, waited=since < self._pass_ended)

    def _search_on(
        self, status: RoundStatus, out: OutstandingRange, deadline: float, *, waited: bool
    ) -> _Searched:
        """Search batch by batch from `out.done` on; `waited`: since before the engine was free."""
        spec = status.spec
        position, counted, computed = out.done, 0, 0
        batch_s = self._batch_seconds(spec.seq_len, spec.batch_size)
        began = self._clock()
        # It may have waited for the engine since it was opened: look again while it begins.
        pending: _Pending | None = _Pending(self._reopen(out), 0)
        try:
            while True:
                ended = self._why_end(position, out.stop, deadline - batch_s)
                if ended == "finished":
                    return _Searched(ended, counted, pending)
                if not ended:
                    nonces = _nonces_at(status, out, position)
                    stop = position + len(nonces)
                    upcoming = self._upcoming(status, out, stop)
                    batch_began = self._clock()
                    if waited:
                        waited = False
                        self._note_gap(batch_began - self._pass_ended)
                    with self._passing(batch_began):
                        values = self._engine.values(Batch.of(spec, nonces), upcoming)
                    self._pass_ended = self._clock()
                    took_s = self._pass_ended - batch_began
                    batch_s = min(batch_s or took_s, took_s)
                    computed += len(nonces)
                if pending is not None:
                    result, size = pending.future.result(), pending.size
                    pending = None
                    if result.outcome is Outcome.COMMITTED:
                        counted += size
                    elif not result.outcome.goes_on:
                        if result.outcome.ends_round:
                            self._ended.append(out.round_id)
                        return _Searched(result.outcome, counted, None)
                    elif result.done != position:
                        # The store stands elsewhere (it lost its last second, or the range was
                        # searched before): what was computed just now does not join on.
                        position = result.done
                        continue
                if ended:
                    return _Searched(ended, counted, None)
                future = self._commit(out, position, stop, nonces, values, spec.proof)
                pending = _Pending(future, stop - position)
                position = stop
        except BaseException:
            # The engine or Redis failed with a commit under way: see it through.
            if pending is not None and not pending.future.exception():
                counted += (
                    pending.size if pending.future.result().outcome is Outcome.COMMITTED else 0
                )
            with self._stats_lock:
                self._stats.checked += counted
            raise
        finally:
            self._note_rate(spec.seq_len, spec.batch_size, computed, self._clock() - began)

    def _upcoming(self, status: RoundStatus, out: OutstandingRange, position: int) -> Batch | None:
        """Return the batch behind the present one, of this range or of the one that waits."""
        batch = _batch_at(status, out, position)
        if batch is None:
            with self._waiting_lock:
                batch = self._waiting[0].first_batch() if self._waiting else None
        return batch

    def _settle(self, out: OutstandingRange, last: _Searched) -> int:
        """Wait for a range's last commit, give back what is left; return how many nonces counted."""
        counted, left = last.counted, last.ended in {"draining", "late"}
        try:
            if last.pending is not None:
                result = last.pending.future.result()
                if result.outcome is Outcome.COMMITTED:
                    counted += last.pending.size
                else:
                    # Not this worker's any more, or the store stands elsewhere: others go on there.
                    left = result.outcome.goes_on and result.done != out.stop
        finally:
            # Also where that commit was refused: those before it counted.
            with self._stats_lock:
                self._stats.checked += counted
        if left:
            self._give_back(out, failed=False)
        return counted

    def _serves(self, status: RoundStatus) -> bool:
        """Say whether a round is searched with the model that this worker has deployed."""
        return status.spec.is_served_by(self._engine.info)

    def _batch_seconds(self, seq_len: int, batch_size: int) -> float:
        """Return how long a batch of this shape takes at the least; 0 where none was run.

        Not how long it took lately: after a stall no batch would ever seem to fit again.
        """
        with self._stats_lock:
            rate = self._stats.best_rates.get(shape_key(seq_len, batch_size), 0.0)
        return batch_size / rate if rate > 0 else 0.0

    def _why_end(self, position: int, stop: int, last_start: float) -> str:
        """Say why no further batch is to begin; empty where one is."""
        if position >= stop:
            return "finished"
        if self._draining.is_set():
            return "draining"
        return "late" if self._clock() >= last_start else ""

    def _commit(
        self,
        out: OutstandingRange,
        start: int,
        stop: int,
        nonces: Sequence[int],
        values: Sequence[Any],
        proof: ProofScheme,
    ) -> Future[CommitResult]:
        valid, broken = proof.sift(nonces, values)

        def commit() -> CommitResult:
            began = self._clock()
            result = self._retry(
                lambda: self._store.commit_batch(
                    out.round_id,
                    out.range_id,
                    start,
                    stop,
                    valid,
                    broken,
                )
            )
            if result is not None:
                took_s = self._clock() - began
                with self._stats_lock:
                    self._stats.commits = self._stats.commits.add(took_s)
            return result or CommitResult(Outcome.CLOSED, 0)

        return self._committer.submit(commit)

    def _reopen(self, out: OutstandingRange) -> Future[CommitResult]:
        """Look whether a range is still this worker's, as the commit of no nonces would."""

        def look() -> CommitResult:
            opened = self._retry(lambda: self._store.open_range(out.round_id, out.range_id))
            if opened is None or opened[1].worker != self._worker:
                return CommitResult(Outcome.REASSIGNED, 0)
            return CommitResult(Outcome.REPEATED, opened[1].done)

        return self._committer.submit(look)

    def _give_back(self, out: OutstandingRange, *, failed: bool) -> None:
        num = self._retry(
            lambda: self._store.release_range(out.round_id, out.range_id, failed=failed)
        )
        if num:
            logger.info("Round %s: handed %d nonces back.", out.round_id, num)

    def _engine_failed(self, out: OutstandingRange, exc: Exception) -> None:
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
            self._stats.failures += not refused
            self._stats.last_error = f"{type(exc).__name__}: {exc}"[:200]
            broken = self._stats.failures == MAX_FAILURES and not refused
        if broken:
            self._on_broken(f"the engine failed {MAX_FAILURES} times in a row, last with {exc!r}")

    def _note_rate(self, seq_len: int, batch_size: int, computed: int, seconds: float) -> None:
        with self._stats_lock:
            if computed == 0 or seconds <= 0:
                return
            self._stats.failures = 0
            shape, rate = shape_key(seq_len, batch_size), computed / seconds
            known = self._stats.rates.pop(shape, rate)
            # Last in the dict: `Gpu.rate` estimates unknown shapes from the first, the warm-up's.
            self._stats.rates[shape] = (known + rate) / 2
            self._stats.best_rates[shape] = max(rate, self._stats.best_rates.get(shape, 0.0))

    def _note_gap(self, seconds: float) -> None:
        with self._stats_lock:
            self._stats.gaps = self._stats.gaps.add(seconds)

    def _retry(self, call: Callable[[], T]) -> T | None:
        """Call until Redis answers; None once draining, as nobody waits for the result then."""
        warned = False
        while True:
            try:
                return call()
            except (StoreUnavailable, StoreFull) as exc:
                if self._draining.is_set():
                    return None
                if not warned:
                    warned = True
                    logger.warning("Waiting for Redis: %s", exc)
                self._draining.wait(RETRY_S)

    @contextmanager
    def _hold(self, key: str) -> Iterator[bool]:
        with self._stats_lock:
            first = key not in self._stats.held
            self._stats.held.add(key)
        try:
            yield first
        finally:
            if first:
                with self._stats_lock:
                    self._stats.held.discard(key)

    @contextmanager
    def _passing(self, began: float) -> Iterator[None]:
        """Keep when the forward pass at hand began, for who wonders whether it hangs."""
        with self._stats_lock:
            self._pass_since = began
        try:
            yield
        finally:
            with self._stats_lock:
                self._pass_since = None

    @contextmanager
    def _busy(self) -> Iterator[None]:
        with self._stats_lock:
            self._busy_since = self._clock()
        try:
            yield
        finally:
            with self._stats_lock:
                assert self._busy_since is not None
                self._stats.busy_s += self._clock() - self._busy_since
                self._busy_since = None


def _batch_at(status: RoundStatus, out: OutstandingRange, position: int) -> Batch | None:
    """Return the batch of a range that begins at this index; None behind its end."""
    if position >= out.stop:
        return None
    return Batch.of(status.spec, _nonces_at(status, out, position))


def _nonces_at(status: RoundStatus, out: OutstandingRange, position: int) -> range:
    """Return the nonces of the batch of a range that begins at this index."""
    spec = status.spec
    stop = min(position + spec.batch_size, out.stop)
    return nonces_of(position, stop, spec.node_id, spec.node_count)
