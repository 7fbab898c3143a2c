"""The composition root of a scheduler process: the service, wired to Redis and to Celery."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from pocqueue.errors import StoreUnavailable
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.lease import LeaderLease
from pocqueue.rounds.records import AssignedRange, RoundStatus
from pocqueue.rounds.service import SchedulerService
from pocqueue.rounds.task_names import DELIVER_PROOFS, IO_QUEUE, RUN_RANGE
from pocqueue.settings import Settings


@contextmanager
def scheduler_service(settings: Settings, app: Celery) -> Iterator[SchedulerService]:
    """Wire a scheduler; it waits for a Redis that is away, and starts the bundled one."""

    def send(name: str, queue: str, shown: str, kwargs: dict[str, Any]) -> None:
        try:
            app.send_task(name, kwargs=kwargs, queue=queue, kwargsrepr=shown, ignore_result=True)
        except OperationalError as exc:
            # The range stays assigned; if its message really did not arrive, it is found lost.
            raise StoreUnavailable(f"Celery cannot send to {queue}: {exc}") from exc

    def send_range(queue: str, status: RoundStatus, out: AssignedRange) -> None:
        kwargs = {
            "round_id": status.round_id,
            "range_id": out.range_id,
            "start": out.start,
            "stop": out.stop,
        }
        # What people look for first: Flower cuts long texts.
        shown = f"{out.start}..{out.stop - 1} of round {status.round_id}"
        send(RUN_RANGE, queue, shown, kwargs)

    def send_callback(round_id: str, token: str) -> None:
        shown = f"proofs of round {round_id}"
        send(DELIVER_PROOFS, IO_QUEUE, shown, {"round_id": round_id, "token": token})

    with Backend.open(settings, start=True, check=False) as backend:
        yield SchedulerService(
            backend.store,
            backend.pool,
            LeaderLease(backend.client, backend.url),
            backend.outbox,
            send_range,
            send_callback,
            range_s=settings.range_seconds,
            settle_s=settings.heartbeat_ttl_s,
            grace_s=settings.callback_grace_seconds,
        )
