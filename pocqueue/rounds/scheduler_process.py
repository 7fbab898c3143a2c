"""A scheduler process: the scheduler on Redis and Celery, and its metrics."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

from celery import Celery
from kombu.exceptions import BatchPublishError, OperationalError  # type: ignore[attr-defined]
from prometheus_client import ProcessCollector
from typing_extensions import override

from pocqueue.errors import StoreUnavailable
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.metrics import PoolCollector, serving
from pocqueue.rounds.records import AssignedRange, RoundStatus
from pocqueue.rounds.scheduler import Scheduler, SchedulerTimings, Sender, Stop
from pocqueue.rounds.task_names import (
    DELIVER_PROOFS,
    HOSTS_QUEUE,
    IO_QUEUE,
    RUN_RANGE,
    SWEEP_EXPIRES_S,
    SWEEP_HOSTS,
)
from pocqueue.settings import Settings

logger = logging.getLogger(__name__)


def run_scheduler(settings: Settings, app: Celery, stop: Stop, timings: SchedulerTimings) -> None:
    """Schedule until `stop` is set; wait for a Redis that is away, and start the bundled one."""

    def backend() -> Backend:
        return at_end.enter_context(Backend.open(settings, service=True))

    with contextlib.ExitStack() as at_end:
        scheduler = Scheduler(backend(), CelerySender(app), timings=timings)
        if settings.metrics_port is not None:
            # A client of its own: a scrape never waits for the scheduler, nor the other way round.
            collectors = (PoolCollector(backend()), ProcessCollector(registry=None))
            port = at_end.enter_context(
                serving(settings.metrics_address, settings.metrics_port, *collectors)
            )
            logger.info("Metrics: http://%s:%d/metrics", settings.metrics_address, port)
        scheduler.run(stop)


class CelerySender(Sender):
    """Sends tasks to workers over one Celery application."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    @override
    def send_callback(self, round_id: str, token: str) -> None:
        try:
            self._app.send_task(
                DELIVER_PROOFS,
                kwargs={"round_id": round_id, "token": token},
                queue=IO_QUEUE,
                kwargsrepr=f"proofs of round {round_id}",
                ignore_result=True,
            )
        except OperationalError as exc:
            raise StoreUnavailable(f"Celery cannot send to {IO_QUEUE}: {exc}") from exc

    @override
    def send_sweep(self) -> None:
        try:
            self._app.send_task(
                SWEEP_HOSTS, queue=HOSTS_QUEUE, ignore_result=True, expires=SWEEP_EXPIRES_S
            )
        except OperationalError as exc:
            raise StoreUnavailable(f"Celery cannot send to {HOSTS_QUEUE}: {exc}") from exc

    @override
    def send_ranges(self, sent: Sequence[tuple[str, RoundStatus, AssignedRange]]) -> None:
        try:
            self._publish(sent)
        except (BatchPublishError, OperationalError):
            # It may only say that the connection was closed while idle. Some of the messages may have
            # arrived: a range that is delivered twice is run once.
            try:
                self._publish(sent)
            except (BatchPublishError, OperationalError) as exc:
                # The ranges stay assigned; those whose message did not arrive are found lost.
                raise StoreUnavailable(f"Celery cannot send to the GPU queues: {exc}") from exc

    def _publish(self, sent: Sequence[tuple[str, RoundStatus, AssignedRange]]) -> None:
        """Send all of it in one round trip."""
        producer: Any
        with self._app.producer_or_acquire() as producer, producer.batch():
            for queue, status, out in sent:
                self._app.send_task(
                    RUN_RANGE,
                    kwargs={"round_id": status.round_id, **out._asdict()},
                    queue=queue,
                    # What people look for first: Flower cuts long texts.
                    kwargsrepr=_words(status, out),
                    ignore_result=True,
                    producer=producer,
                    # Its worker declares the queue; on Redis that costs as much here as the message itself.
                    declare=(),
                    # The batch is what is tried again.
                    retry=False,
                )


def _words(status: RoundStatus, out: AssignedRange) -> str:
    words = f"{out.start}..{out.stop - 1} of round {status.round_id}"
    asked_by = status.spec.asked_by
    return words if asked_by is None else f"{words} for {asked_by}"
