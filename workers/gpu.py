"""The GPU queues: `celery -A pocqueue worker -Q gpu0` turns one process into one GPU's worker.

The queue says which CUDA device. A boot step loads the engine before anything is consumed and puts
the worker into the pool; the task only hands its range to the runner.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import Any

from celery import bootsteps
from celery.worker import state as celery_state
from typing_extensions import override

from pocqueue.app import app
from pocqueue.engine.devices import parse_queue
from pocqueue.errors import DeviceNotFound, PocqueueError
from pocqueue.rounds.task_names import RUN_RANGE
from pocqueue.settings import settings
from workers.boot import StoreStep, is_stopping, refuse
from workers.gpu_service import GpuService

logger = logging.getLogger(__name__)


def _end(queue: str, reason: str) -> None:
    """Begin a warm shutdown of this worker process, from any thread."""
    logger.critical("%s stops: %s.", queue, reason)
    # The consumer looks at this flag between messages, as the signal handlers of Celery rely on.
    setattr(celery_state, "should_stop", 1)  # noqa: B010 - typed as None


#: One GPU a process, so that a GPU that fails takes no other with it.
_service: GpuService | None = None


def gpu_queue(names: list[str]) -> str | None:
    """Return the GPU queue among a worker's queues; None: there is none.

    Raises:
        PocqueueError: there is a second queue beside it; a GPU worker serves exactly one.
    """
    found = [name for name in names if parse_queue(name) is not None]
    if found and len(names) > 1:
        raise PocqueueError(
            f"-Q names {', '.join(names)}; a GPU worker serves one queue. Start one worker for "
            "each: `celery -A pocqueue worker -Q gpu0`, `celery -A pocqueue worker -Q gpu1`."
        )
    return found[0] if found else None


class GpuStep(bootsteps.StartStopStep):
    """Boot step of a worker on a GPU queue; starts before, stops after, the consumer."""

    requires = (StoreStep,)

    @override
    def include_if(self, parent: Any) -> bool:
        try:
            self.queue = gpu_queue(list(parent.app.amqp.queues.consume_from))
        except PocqueueError as exc:
            refuse(exc)
        return self.queue is not None

    @override
    def start(self, parent: Any) -> None:
        global _service
        assert self.queue is not None
        _service = GpuService(self.queue, settings(), partial(_end, self.queue), is_stopping)
        try:
            _service.start()
        except PocqueueError as exc:
            if is_stopping():
                raise SystemExit(0) from exc  # it gave up because it was told to
            # Under systemd, as after a boot, a driver may be on its way: it is there at a later start.
            is_early = isinstance(exc, DeviceNotFound) and "INVOCATION_ID" in os.environ
            refuse(exc, 1 if is_early else 2)

    @override
    def close(self, parent: Any) -> None:
        if _service is not None:
            _service.drain()

    @override
    def stop(self, parent: Any) -> None:
        if _service is not None:
            _service.stop()

    terminate = stop


assert app.steps is not None
app.steps["worker"].add(GpuStep)


@app.task(name=RUN_RANGE)
def run_range(*, round_id: str, range_id: int, start: int, stop: int) -> str:
    """Search one nonce range; `start` and `stop` are for the eyes of Flower, the store decides."""
    assert _service is not None
    return _service.run(round_id, range_id)
