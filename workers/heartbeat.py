"""Keeps a GPU worker in the pool: one thread that tells Redis every second what it is and does."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from pocqueue.engine.base import EngineInfo
from pocqueue.errors import QueueTaken, StoreError
from pocqueue.rounds.pool import HEARTBEAT_S, HEARTBEAT_TTL_S, Gpu, Pool
from workers.range_runner import RangeRunner, RunnerStats

logger = logging.getLogger(__name__)


class Heartbeat:
    """The heartbeat of one GPU queue.

    Args:
        pool: where to say it.
        worker: id of this worker process; a restarted worker has another.
        queue: the GPU queue, such as ``gpu0``.
        host: name of this machine.
        info: the deployed model.
        runner: whose rates, load and ranges are told.
        on_taken: called with the other worker if the queue is lost to it.
        interval_s: seconds between two beats.
        ttl_s: seconds of silence after which this worker counts as dead.
    """

    def __init__(
        self,
        pool: Pool,
        worker: str,
        queue: str,
        host: str,
        info: EngineInfo,
        runner: RangeRunner,
        *,
        on_taken: Callable[[Gpu], None],
        interval_s: float = HEARTBEAT_S,
        ttl_s: float = HEARTBEAT_TTL_S,
    ) -> None:
        self._pool = pool
        self.worker = worker
        self._queue = queue
        self._host = host
        self._info = info
        self._runner = runner
        self._interval_s = interval_s
        self._ttl_s = ttl_s
        self._on_taken = on_taken
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._last_busy_s = 0.0
        self._last_beat = time.monotonic()

    def start(self) -> None:
        """Take the queue and go on beating in the background.

        A worker that was killed holds its queue until its time to live is over; wait that long.

        Raises:
            QueueTaken: another live worker serves this queue.
        """
        patience = time.monotonic() + self._ttl_s + 2 * self._interval_s
        while (other := self._beat()) is not None:
            if time.monotonic() > patience:
                raise QueueTaken(
                    f"Queue {self._queue} is served by a live worker already (host {other.host}, "
                    f"process {other.pid}): stop that one, or serve another queue with -Q. On "
                    "several hosts, name queues HOST.gpu0."
                )
            time.sleep(min(0.2, self._interval_s))
        self._thread.start()

    def stop(self) -> None:
        """Stop beating and leave the pool."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        try:
            self._pool.leave(self._queue, self.worker)
        except StoreError as exc:
            logger.warning("Could not leave the pool, it will notice by itself: %s", exc)

    def now(self) -> None:
        """Beat once, out of turn: something changed that the scheduler should know."""
        try:
            self._beat()
        except StoreError as exc:
            logger.debug("No heartbeat: %s", exc)

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
                logger.info("Redis is back; %s is in the pool again.", self._queue)
            if other is not None:
                self._on_taken(other)
                return

    def _beat(self) -> Gpu | None:
        stats = self._runner.stats()
        gpu = Gpu(
            queue=self._queue,
            worker=self.worker,
            host=self._host,
            pid=os.getpid(),
            info=self._info,
            ttl_ms=round(self._ttl_s * 1000),
            rates=stats.rates,
            best_rates=stats.best_rates,
            held=tuple(sorted(stats.held)),
            load=self._load(stats),
            pass_s=round(stats.pass_s, 3),
            checked=stats.checked,
            draining=self._runner.draining,
            last_error=stats.last_error,
            commits=stats.commits,
            gaps=stats.gaps,
        )
        return self._pool.beat(gpu)

    def _load(self, stats: RunnerStats) -> float:
        now = time.monotonic()
        busy_s, passed_s = stats.busy_s - self._last_busy_s, now - self._last_beat
        self._last_busy_s, self._last_beat = stats.busy_s, now
        return round(min(1.0, max(0.0, busy_s / passed_s)), 3) if passed_s > 0 else 0.0
