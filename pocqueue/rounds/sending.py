"""The composition root of a scheduler process: the service, wired to Redis and to Celery."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from celery import Celery
from kombu.exceptions import BatchPublishError, OperationalError  # type: ignore[attr-defined]

from pocqueue.errors import StoreUnavailable
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.lease import LeaderLease
from pocqueue.rounds.records import AssignedRange, RoundStatus
from pocqueue.rounds.scheduler import SchedulerService
from pocqueue.rounds.task_names import DELIVER_PROOFS, IO_QUEUE, RUN_RANGE
from pocqueue.settings import Settings


@contextmanager
def scheduler_service(
    settings: Settings, app: Celery, **timings: float
) -> Iterator[SchedulerService]:
    """Wire a scheduler; it waits for a Redis that is away, and starts the bundled one. `timings` are its own."""

    def send_callback(round_id: str, token: str) -> None:
        shown, kwargs = f"proofs of round {round_id}", {"round_id": round_id, "token": token}
        try:
            app.send_task(
                DELIVER_PROOFS, kwargs=kwargs, queue=IO_QUEUE, kwargsrepr=shown, ignore_result=True
            )
        except OperationalError as exc:
            raise StoreUnavailable(f"Celery cannot send to {IO_QUEUE}: {exc}") from exc

    with Backend.open(settings, start=True, check=False) as backend:
        yield SchedulerService(
            backend.store,
            backend.pool,
            LeaderLease(backend.client, backend.url),
            backend.callbacks,
            functools.partial(send_ranges, app),
            send_callback,
            **timings,
        )


def send_ranges(app: Celery, sent: Sequence[tuple[str, RoundStatus, AssignedRange]]) -> None:
    """Put a task for each (queue, round, range) on its queue, all of them in one round trip.

    Raises:
        StoreUnavailable: Redis did not take them, also when asked a second time.
    """
    for last in (False, True):
        try:
            _publish_ranges(app, sent)
        except (BatchPublishError, OperationalError) as exc:
            # The first failure may only say that the connection was closed while idle. Some of the
            # messages may have arrived: a range that is delivered twice is run once.
            if last:
                # The ranges stay assigned; where a message really did not arrive they are found lost.
                raise StoreUnavailable(f"Celery cannot send to the GPU queues: {exc}") from exc
        else:
            return


def _publish_ranges(app: Celery, sent: Sequence[tuple[str, RoundStatus, AssignedRange]]) -> None:
    producer: Any
    with app.producer_or_acquire() as producer, producer.batch():
        for queue, status, out in sent:
            app.send_task(
                RUN_RANGE,
                kwargs={
                    "round_id": status.round_id,
                    "range_id": out.range_id,
                    "start": out.start,
                    "stop": out.stop,
                },
                queue=queue,
                # What people look for first: Flower cuts long texts.
                kwargsrepr=f"{out.start}..{out.stop - 1} of round {status.round_id}",
                ignore_result=True,
                producer=producer,
                # Its worker declares the queue; on Redis that costs as much here as the message itself.
                declare=(),
                # The batch is what is tried again.
                retry=False,
            )
