"""The GPU queues: `celery -A pocqueue worker -Q gpu0` turns one process into one GPU's worker.

The queue says which CUDA device. A boot step loads the engine before anything is consumed and puts
the worker into the pool; the task only hands its range to the runner.
"""

from __future__ import annotations

import logging
import sys
import time
import uuid
from typing import Any

from celery import bootsteps, signals
from celery.worker import state as celery_state
from typing_extensions import override

from pocqueue.app import app
from pocqueue.engine.queue_names import parse_queue
from pocqueue.errors import EngineError, PocqueueError, StoreUnavailable
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.pool import Gpu
from pocqueue.rounds.task_names import RUN_RANGE
from pocqueue.settings import Settings, settings
from workers.heartbeat import Heartbeat
from workers.range_runner import RETRY_S, RangeRunner, single_thread

logger = logging.getLogger(__name__)

#: Shape of the warm-up pass, the default one of a round; its rate sizes the first range.
WARM_UP_BATCH, WARM_UP_SEQ_LEN = 32, 256
#: How long a stopping worker waits for its batch at hand; Docker's and systemd's patience is longer.
DRAIN_TIMEOUT_S = 25.0


class GpuService:
    """One GPU's engine, runner and heartbeat, from load to drain."""

    def __init__(self, queue: str, settings: Settings) -> None:
        self._settings = settings
        self._queue = queue
        self._backend: Backend | None = None
        self._heartbeat: Heartbeat | None = None
        self.runner: RangeRunner | None = None

    def start(self) -> None:
        """Load the engine, warm it up and join the pool.

        Raises:
            PocqueueError: what stands in the way, in one sentence.
        """
        from pocqueue.engine.local import load_queue_engine

        opts = self._settings
        self._backend = _open_when_there(opts)
        # Loading, warming up and searching share one thread: see RangeRunner.
        engine_thread = single_thread("engine")
        self._engine = engine_thread.submit(
            load_queue_engine, self._queue, opts, on_progress=self._tell
        ).result()
        worker = uuid.uuid4().hex[:12]
        self.runner = RangeRunner(
            self._engine,
            self._backend.store,
            worker,
            self._broken,
            engine_thread=engine_thread,
        )
        engine_thread.submit(self._warm_up, self.runner).result()
        self._heartbeat = Heartbeat(
            self._backend.pool,
            worker,
            self._queue,
            opts.host_name,
            self._engine.info,
            self.runner,
            on_taken=self._taken,
        )
        self._heartbeat.start()
        info = self._engine.info
        logger.info(
            "%s is in the pool: model %s (%s) on %s, %s.",
            self._queue,
            info.model,
            info.fingerprint[:12],
            info.device,
            info.device_name,
        )

    def drain(self) -> None:
        """Take nothing new and hand back what is not done."""
        if self.runner is not None:
            self.runner.drain()
        if self._heartbeat is not None:
            self._heartbeat.now()

    def stop(self) -> None:
        """Leave the pool once nothing is held, and free the engine."""
        if self.runner is not None and not self.runner.wait_idle(DRAIN_TIMEOUT_S):
            logger.warning("A batch still runs; its range goes to another GPU.")
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self.runner is not None:
            self.runner.close()
            self._engine.close()
        if self._backend is not None:
            self._backend.client.close()

    def _warm_up(self, runner: RangeRunner) -> None:
        seq_len = min(WARM_UP_SEQ_LEN, self._engine.info.max_seq_len)
        # The first pass pays for allocations and code generation, the second is measured.
        for _ in range(2):
            began = time.monotonic()
            self._engine.warm_up(WARM_UP_BATCH, seq_len)
            seconds = time.monotonic() - began
        runner.note_rate(seq_len, WARM_UP_BATCH, WARM_UP_BATCH / max(seconds, 1e-6))

    def _tell(self, text: str) -> None:
        """Log a line of the loading engine, or end it where this worker is to stop.

        Raises:
            EngineError: the worker is stopping.
        """
        if _is_stopping():
            raise EngineError(f"{self._queue} was stopped while it loaded its engine.")
        logger.info("%s: %s", self._queue, text)

    def _broken(self, reason: str) -> None:
        logger.critical("%s stops: %s.", self._queue, reason)
        _stop_worker(1)

    def _taken(self, other: Gpu) -> None:
        logger.critical(
            "%s stops: host %s, process %d serves this queue by now, as this worker was silent for "
            "too long.",
            self._queue,
            other.host,
            other.pid,
        )
        _stop_worker(1)


def _open_when_there(settings: Settings) -> Backend:
    """Connect to Redis; wait for one that is away, as the rest of a Celery worker would.

    Raises:
        StoreError: it is there but will not do: too old, or it refuses the password.
    """
    told = False
    while True:
        try:
            return Backend.open(settings, start=True)
        except StoreUnavailable as exc:
            if not told:
                told = True
                logger.warning("Waiting: %s", exc)
            if _is_stopping():
                raise
            time.sleep(RETRY_S)


def _is_stopping() -> bool:
    return celery_state.should_stop is not None or celery_state.should_terminate is not None


def _stop_worker(code: int) -> None:
    """Begin a warm shutdown of this worker process, from any thread."""
    # The consumer looks at this flag between messages, as the signal handlers of Celery rely on.
    setattr(celery_state, "should_stop", code)  # noqa: B010 - typed as None


_service: GpuService | None = None


def gpu_queue(queues: object) -> str | None:
    """Return the GPU queue among a worker's queues.

    Args:
        queues: what `-Q` gave: a list, a comma-separated text or None.

    Raises:
        PocqueueError: there is a second queue beside it; a GPU worker serves exactly one.
    """
    names = queues.split(",") if isinstance(queues, str) else list(queues or [])  # type: ignore[call-overload]
    found = [name for name in names if parse_queue(name) is not None]
    if not found:
        return None
    if len(names) > 1:
        raise PocqueueError(
            f"-Q names {', '.join(names)}; a GPU worker serves one queue. Start one worker for "
            "each: `celery -A pocqueue worker -Q gpu0`, `celery -A pocqueue worker -Q gpu1`."
        )
    return str(found[0])


@signals.celeryd_init.connect
def _name_worker(instance: Any, options: dict[str, Any], **_: Any) -> None:
    """Give workers of one host different names without `-n`: ``gpu0@host``, ``io@host``."""
    name, _at, host = instance.hostname.partition("@")
    queues = options.get("queues") or []
    names = queues.split(",") if isinstance(queues, str) else list(queues)
    if name == "celery" and names:
        instance.hostname = f"{names[0]}@{host}"


@signals.worker_init.connect
def _mind_own_business(sender: Any, **_: Any) -> None:
    """Spare workers each other's events: with hundreds of GPUs they would cost more than the work.

    Mingle also delays every start by a second. Nothing of ours needs either.
    """
    sender.options.update(without_mingle=True, without_gossip=True)


class GpuStep(bootsteps.StartStopStep):
    """Boot step of a worker on a GPU queue; starts before, stops after, the consumer."""

    requires = ("celery.worker.components:Pool",)

    @override
    def include_if(self, parent: Any) -> bool:
        try:
            self.queue = gpu_queue(list(parent.app.amqp.queues.consume_from))
        except PocqueueError as exc:
            _refuse(exc)
        return self.queue is not None

    @override
    def start(self, parent: Any) -> None:
        global _service
        assert self.queue is not None
        _service = GpuService(self.queue, settings())
        try:
            _service.start()
        except PocqueueError as exc:
            _refuse(exc)

    @override
    def close(self, parent: Any) -> None:
        if _service is not None:
            _service.drain()

    @override
    def stop(self, parent: Any) -> None:
        if _service is not None:
            _service.stop()

    terminate = stop


def _refuse(exc: PocqueueError) -> None:
    """End this worker with one sentence."""
    sys.__stderr__.write(f"pocqueue: {exc}\n")  # type: ignore[union-attr]
    raise SystemExit(2) from exc


assert app.steps is not None
app.steps["worker"].add(GpuStep)


@app.task(name=RUN_RANGE)
def run_range(*, round_id: str, range_id: int, start: int, stop: int) -> str:
    """Search one nonce range; `start` and `stop` are for the eyes of Flower, the store decides."""
    assert _service is not None
    assert _service.runner is not None
    return _service.runner.run(round_id, range_id)
