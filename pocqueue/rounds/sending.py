"""Sending tasks to workers by Celery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery
from kombu.exceptions import BatchPublishError, OperationalError  # type: ignore[attr-defined]

from pocqueue.errors import StoreUnavailable
from pocqueue.rounds.records import AssignedRange, RoundStatus
from pocqueue.rounds.task_names import DELIVER_PROOFS, IO_QUEUE, RUN_RANGE


class CelerySender:
    """A `Sender` of the scheduler, over one Celery application."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def send_callback(self, round_id: str, token: str) -> None:
        """Put a task that delivers a round's proofs on the io queue.

        Raises:
            StoreUnavailable: Redis did not take it.
        """
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

    def send_ranges(self, sent: Sequence[tuple[str, RoundStatus, AssignedRange]]) -> None:
        """Put a task for each (queue, round, range) on its queue, all of them in one round trip.

        Raises:
            StoreUnavailable: Redis did not take them, also when asked a second time.
        """
        for last in (False, True):
            try:
                self._publish(sent)
            except (BatchPublishError, OperationalError) as exc:
                # The first failure may only say that the connection was closed while idle. Some of the
                # messages may have arrived: a range that is delivered twice is run once.
                if last:
                    # The ranges stay assigned; those whose message did not arrive are found lost.
                    raise StoreUnavailable(f"Celery cannot send to the GPU queues: {exc}") from exc
            else:
                return

    def _publish(self, sent: Sequence[tuple[str, RoundStatus, AssignedRange]]) -> None:
        producer: Any
        with self._app.producer_or_acquire() as producer, producer.batch():
            for queue, status, out in sent:
                self._app.send_task(
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
