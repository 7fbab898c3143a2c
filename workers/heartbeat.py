"""Keeps a GPU worker in the pool: one thread that tells Redis every second what it is and does."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from pocqueue.errors import QueueTaken, StoreError, StoreUnavailable
from pocqueue.rounds.pool import HEARTBEAT_S, Gpu, Pool
from workers.range_runner import RETRY_S, RangeRunner
from workers.runner_stats import Member

#: How often a queue that another worker holds is looked at.
_LOOK_S = 0.2

logger = logging.getLogger(__name__)


def check_free(pool: Pool, queue: str, is_stopping: Callable[[], bool] = lambda: False) -> None:
    """Return unless a live worker serves a queue: before an engine is loaded in vain, and beside the one that is there.

    The record of a worker that was killed looks alive until its time to live is over; one that is alive beats meanwhile. One that
    drains is waited for: it was told to end, and whoever started this one means it to take over. A Redis that does not answer has
    it left to `Heartbeat.start`.

    Args:
        pool: of the queues.
        queue: its name.
        is_stopping: whether to give up.

    Raises:
        QueueTaken: another live worker serves this queue.
        StoreError: Redis refuses for good.
    """
    first: Gpu | None = None
    told = False
    while not is_stopping():
        try:
            other = next((gpu for gpu in pool.live() if gpu.queue == queue), None)
        except StoreUnavailable:
            return
        if other is None:
            return
        if other.draining:
            if not told:
                told = True
                logger.info(
                    "%s waits for its worker of before (host %s, process %d), which finishes what it holds.",
                    queue,
                    other.host,
                    other.pid,
                )
        else:
            first = first or other
            if other.seen_ms != first.seen_ms:
                raise _refusal(other)
        time.sleep(_LOOK_S)


def _refusal(other: Gpu) -> QueueTaken:
    return QueueTaken(
        f"Queue {other.queue} is served by a live worker already (host {other.host}, process {other.pid}): stop that one, "
        "or serve another queue with -Q. On several hosts, name queues HOST.gpu0."
    )


class Heartbeat:
    """The heartbeat of one GPU queue.

    Args:
        pool: gets the heartbeats.
        member: makes the records; says which queue and worker this is.
        runner: whose rates, load and ranges are told.
        on_taken: called with the other worker if the queue is lost to it.
        interval_s: seconds between two beats.
    """

    def __init__(
        self,
        pool: Pool,
        member: Member,
        runner: RangeRunner,
        *,
        on_taken: Callable[[Gpu], None],
        interval_s: float = HEARTBEAT_S,
    ) -> None:
        self._pool, self._member, self._runner = pool, member, runner
        self._on_taken, self._interval_s = on_taken, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self, is_stopping: Callable[[], bool] = lambda: False) -> None:
        """Take the queue and go on beating in the background.

        Waits for a Redis that is away or refuses for now, and for a worker of before as `check_free` does.

        Args:
            is_stopping: whether to give up on a Redis that is still away, or on a queue that is not free yet.

        Raises:
            QueueTaken: another live worker serves this queue.
            StoreError: Redis refuses for good, or is away and this is to stop.
        """
        while (other := self._first_beat(is_stopping)) is not None:
            if is_stopping():
                raise _refusal(other)
            check_free(self._pool, other.queue, is_stopping)
        self._thread.start()

    def stop(self) -> None:
        """Stop beating and leave the pool."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        try:
            self._pool.leave(self._member.gpu.queue, self._member.gpu.worker)
        except StoreError as exc:
            logger.warning("Could not leave the pool, it will notice by itself: %s", exc)

    def now(self) -> None:
        """Send a heartbeat now: something changed that the scheduler should know."""
        try:
            self._beat()
        except StoreError as exc:
            logger.debug("No heartbeat: %s", exc)

    def _first_beat(self, is_stopping: Callable[[], bool]) -> Gpu | None:
        told = False
        while True:
            try:
                return self._beat()
            except StoreUnavailable as exc:
                if is_stopping():
                    raise
                if not told:
                    told = True
                    logger.warning("%s waits: %s", self._member.gpu.queue, exc)
                time.sleep(min(RETRY_S, self._interval_s))

    def _run(self) -> None:
        lost = False
        while not self._stop.wait(self._interval_s):
            try:
                other = self._beat()
            except StoreError as exc:
                if not lost:
                    lost = True
                    logger.warning("No heartbeat while Redis is away: %s", exc)
                continue
            if lost:
                lost = False
                logger.info("Redis is back; %s is in the pool again.", self._member.gpu.queue)
            if other is not None:
                self._on_taken(other)
                return

    def _beat(self) -> Gpu | None:
        draining = self._runner.draining
        return self._pool.beat(self._member.record(self._runner.stats(), draining=draining))
