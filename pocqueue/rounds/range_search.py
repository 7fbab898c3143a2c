"""The search of one nonce range as a state machine, without threads, clock or Redis.

A driver asks it what to compute and what to commit, and tells it what came of both, with the time. Threads
drive it in a worker (`workers/range_runner.py`), an event loop does in the fleet simulation:

    search.begin(now)                     the driver reads the range once more meanwhile; it may have waited
    search.next(now)                      -> a batch to compute, the end, or None: first what is under way
    search.computed(values, began, ended) of that batch
    search.to_commit()                    -> a batch to commit; None while another one is under way
    search.committed(result)              of that commit, or of the second look at the range
    search.gives_back                     once all of that is done: whether to release the range

Promises:
- Batches are handed out and committed in order, from where the store stands.
- At most one batch is computed after the store said that the range is lost or the round over.
- If the store stands elsewhere than expected (another worker was there, or Redis lost its last second), the
  search goes on from there; what was computed elsewhere is dropped.
- No batch begins that would end after the round's deadline.
- Draining, or the deadline, ends the search after the batches at hand; these still count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Any, Protocol

from pocqueue.poc.batch import Batch
from pocqueue.rounds.records import BatchCommit, CommitResult, OpenedRange, Outcome


class RangeBook(Protocol):
    """Who has the ranges and counts their batches: the store, or whatever forwards to it.

    Each call may raise `StoreUnavailable`, and is then repeated, or another `StoreError`.
    """

    def open_range(self, round_id: str, range_id: int) -> OpenedRange | None:
        """Read a range and its round; None if there is nothing left to do."""
        ...

    def commit_batch(self, batch: BatchCommit) -> CommitResult:
        """Count a batch and keep its proofs, exactly once however often it is called."""
        ...

    def release_range(self, round_id: str, range_id: int, *, failed: bool) -> int:
        """Return what is left of a range to the round; return how many nonces."""
        ...


class End(Enum):
    """Why no further batch of a range is computed."""

    FINISHED = "finished"
    DRAINING = "draining"
    LATE = "late"  #: the deadline is over, or a batch would not end before it
    CLOSED = "closed"  #: the round is over
    REASSIGNED = "reassigned"  #: the range is another worker's


_LOST = {Outcome.LATE: End.LATE, Outcome.CLOSED: End.CLOSED, Outcome.REASSIGNED: End.REASSIGNED}


class RangeSearch:
    """The search of one range, from where it stands to its end or as far as it is wanted.

    Args:
        opened: the range and its round, as they were read at `now`.
        now: monotonic seconds.

    Attributes:
        opened_at: `now`.
        counted: nonces that count so far.
        end: why it ended; None: it has not.
        gap_s: how long the engine waited for the first batch of a range that was there already; None: the
            range came later.
    """

    def __init__(self, opened: OpenedRange, now: float) -> None:
        self.status, self.out = opened
        self.opened_at = now
        self.counted = 0
        self.gap_s: float | None = None
        self._deadline = now + self.status.remaining_s
        self.end: End | None = None
        self._position = self.out.done  #: first index that was not handed out
        self._expected = self.out.done  #: where the next batch to be committed begins
        self._stands = self.out.done  #: where the store stands once the commit under way is done
        self._computing: tuple[int, Batch] | None = None  #: first index and batch handed out
        self._computed: BatchCommit | None = None  #: the batch that waits to be committed
        self._committing: int | None = None  #: nonces of the commit under way; 0: the second look
        self._last_made: tuple[int, Batch] | None = None
        self._began: float | None = None
        self._free_since = -math.inf
        self._batch_s = 0.0
        self._num_computed = 0

    def begin(self, now: float, *, batch_s: float = 0.0, free_since: float = -math.inf) -> None:
        """Begin to search; the driver looks at the range again and tells `committed` what it found.

        Args:
            now: monotonic seconds.
            batch_s: seconds that a batch of this shape takes at the least; 0: not known.
            free_since: when the engine became free.
        """
        self._began = now
        self._batch_s = batch_s
        self._free_since = free_since
        self._committing = 0

    def skip(self) -> None:
        """End before the beginning: the round is known to be over."""
        self.end = End.CLOSED

    def next(self, now: float, *, draining: bool = False) -> Batch | End | None:
        """Return the next batch to compute, or why there is none; None: hand in what is under way first."""
        if self.end is not None or self._computing is not None or self._computed is not None:
            return self.end
        self.end = self._why_end(now, draining=draining)
        if self.end is not None:
            return self.end
        batch = self._batch_at(self._position)
        self._computing = self._position, batch
        self._position += len(batch.nonces)
        return batch

    def upcoming(self) -> Batch | None:
        """Return the batch behind the last one that was handed out; None at the end of the range."""
        if self._position >= self.out.stop:
            return None
        return self._batch_at(self._position)

    def computed(self, values: Sequence[Any], began: float, ended: float) -> None:
        """Take the values of the batch that was handed out.

        Args:
            values: one a nonce.
            began: when its computation began, in monotonic seconds.
            ended: when it ended.

        Raises:
            ValueError: there is not one value for each nonce.
        """
        assert self._computing is not None
        (start, batch), self._computing = self._computing, None
        took_s = ended - began
        self._batch_s = min(self._batch_s or took_s, took_s)
        if not self._num_computed and self.opened_at < self._free_since:
            self.gap_s = began - self._free_since
        self._num_computed += len(batch.nonces)
        valid, num_broken = self.status.spec.proof.sift(batch.nonces, values)
        if start == self._expected:
            stop = self._expected = start + len(batch.nonces)
            name = self.out.round_id, self.out.range_id
            self._computed = BatchCommit(*name, start, stop, valid, num_broken)

    def to_commit(self) -> BatchCommit | None:
        """Return the next batch to commit; None: none is ready, or another one is under way."""
        if self._committing is not None or self.end is not None or self._computed is None:
            return None
        batch, self._computed = self._computed, None
        self._committing = batch.stop - batch.start
        self._stands = batch.stop
        return batch

    def committed(self, result: CommitResult) -> None:
        """Take what became of the commit under way, or what the second look at the range found."""
        size, self._committing = self._committing or 0, None
        if result.outcome is Outcome.COMMITTED:
            self.counted += size
        elif not result.outcome.goes_on:
            self.end = _LOST[result.outcome]
        elif result.done != self._stands:
            # What was computed meanwhile does not join on.
            self._position = self._expected = self._stands = result.done
            self._computed = None

    @property
    def round_is_over(self) -> bool:
        """Whether no other range of the round needs to begin."""
        return self.end in {End.CLOSED, End.LATE}

    @property
    def gives_back(self) -> bool:
        """Whether others should have what is left of the range."""
        if self.end is End.FINISHED:
            return self._position < self.out.stop
        return self.end in {End.DRAINING, End.LATE}

    def rate(self, now: float) -> float | None:
        """Return nonces computed per second since the beginning; None if none were."""
        if self._began is None or now <= self._began or not self._num_computed:
            return None
        return self._num_computed / (now - self._began)

    def _why_end(self, now: float, *, draining: bool) -> End | None:
        if self._position >= self.out.stop:
            return End.FINISHED
        if draining:
            return End.DRAINING
        return End.LATE if now >= self._deadline - self._batch_s else None

    def _batch_at(self, position: int) -> Batch:
        """Return the batch that begins at an index; it is asked for twice, as the upcoming one first."""
        if self._last_made is None or self._last_made[0] != position:
            spec = self.status.spec
            stop = min(position + spec.batch_size, self.out.stop)
            self._last_made = position, Batch.of(spec, spec.nonces(position, stop))
        return self._last_made[1]


def second_look(opened: OpenedRange | None, worker: str) -> CommitResult:
    """Turn what a second look at a range found into the result of a commit of no nonces.

    Args:
        opened: as the book has it by now.
        worker: whose range it was.
    """
    if opened is None or opened.out.worker != worker:
        return CommitResult(Outcome.REASSIGNED, 0)
    return CommitResult(Outcome.REPEATED, opened.out.done)
