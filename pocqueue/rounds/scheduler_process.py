"""The composition root of a scheduler process: the scheduler on Redis and Celery, and its metrics."""

from __future__ import annotations

import contextlib
import logging

from celery import Celery

from pocqueue.rounds.backend import Backend
from pocqueue.rounds.metrics import PoolCollector, process_collector, serving
from pocqueue.rounds.scheduler import Scheduler, SchedulerTimings, Stop
from pocqueue.rounds.sending import CelerySender
from pocqueue.settings import Settings

logger = logging.getLogger(__name__)


def run_scheduler(settings: Settings, app: Celery, stop: Stop, timings: SchedulerTimings) -> None:
    """Schedule until `stop` is set; wait for a Redis that is away, and start the bundled one."""

    def backend() -> Backend:
        return at_end.enter_context(Backend.open(settings, start=True, check=False))

    with contextlib.ExitStack() as at_end:
        scheduler = Scheduler(backend(), CelerySender(app), timings=timings)
        if settings.metrics_port is not None:
            # A client of its own: a scrape never waits for the scheduler, nor the other way round.
            collectors = (PoolCollector(backend()), process_collector())
            port = at_end.enter_context(
                serving(settings.metrics_address, settings.metrics_port, *collectors)
            )
            logger.info("Metrics: http://%s:%d/metrics", settings.metrics_address, port)
        scheduler.run(stop)
