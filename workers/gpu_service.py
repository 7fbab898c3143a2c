"""One GPU's engine, runner and heartbeat, from load to drain.

Knows nothing of Celery: whatever runs it says when to stop, and several may live in one process.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from pocqueue.engine import WORKER_PATIENCE_S, Engine, OnProgress, load_local_engine
from pocqueue.engine.memory import measured_pass_tokens
from pocqueue.errors import EngineError
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.pool import Gpu
from pocqueue.settings import Settings
from workers.heartbeat import Heartbeat, check_free
from workers.range_runner import RangeRunner, single_thread
from workers.runner_stats import Member

logger = logging.getLogger(__name__)

#: Shape of the warm-up pass, the default one of a round; its rate sizes the first range.
WARM_UP_BATCH, WARM_UP_SEQ_LEN = 32, 256
#: How long a stopping worker waits for its batch at hand; Docker's and systemd's patience is longer.
DRAIN_TIMEOUT_S = 25.0


class GpuService:
    """One member of the pool. Its ranges come by `run`, from any thread.

    Args:
        queue: its name in the pool; also names the device, unless `load` knows better.
        settings: of the store and, for the default `load`, the engine.
        on_broken: called with a reason, from any thread, when it cannot go on; it is to be stopped then.
        is_stopping: whether it is to be stopped; while it loads, it gives up then.
        load: loads the engine; called in the engine's own thread.
    """

    def __init__(
        self,
        queue: str,
        settings: Settings,
        on_broken: Callable[[str], None],
        is_stopping: Callable[[], bool] = lambda: False,
        load: Callable[[OnProgress], Engine] | None = None,
    ) -> None:
        self._queue = queue
        self._settings = settings
        self._on_broken = on_broken
        self._is_stopping = is_stopping
        self._load = load or partial(
            load_local_engine, settings, None, queue=queue, patience_s=WORKER_PATIENCE_S
        )
        self._at_end = ExitStack()
        self._runner: RangeRunner | None = None
        self._heartbeat: Heartbeat | None = None

    def start(self) -> None:
        """Load the engine, warm it up and join the pool, once Redis takes that; a queue that another worker serves is refused
        before that.

        Raises:
            PocqueueError: what stands in the way, in one sentence.
        """
        backend = self._at_end.enter_context(Backend.open(self._settings, service=True))
        check_free(backend.pool, self._queue, self._is_stopping)
        # Loading, warming up and searching share one thread: see RangeRunner.
        engine_thread = single_thread("engine")
        engine = engine_thread.submit(self._load, self._tell).result()
        self._at_end.callback(engine.close)
        worker = uuid.uuid4().hex[:12]
        runner = self._runner = RangeRunner(
            engine, backend.store, worker, self._on_broken, engine_thread=engine_thread
        )
        self._at_end.callback(runner.close)
        tokens = engine_thread.submit(_warm_up, engine, runner).result()
        # What the engine's configuration says goes before an estimate.
        info = replace(engine.info, max_pass_tokens=engine.info.max_pass_tokens or tokens)
        self._heartbeat = Heartbeat(
            backend.pool,
            Member(Gpu(self._queue, worker, self._settings.host_name, os.getpid(), info)),
            runner,
            on_taken=self._taken,
        )
        self._at_end.callback(self._heartbeat.stop)
        self._heartbeat.start(self._is_stopping)
        logger.info(
            "%s is in the pool: model %s (%s) on %s, %s.",
            self._queue,
            info.model,
            info.fingerprint[:12],
            info.device,
            info.device_name,
        )

    def run(self, round_id: str, range_id: int) -> str:
        """Search a range; see `RangeRunner.run`."""
        assert self._runner is not None
        return self._runner.run(round_id, range_id)

    def drain(self) -> None:
        """Take nothing new and hand back what is not done."""
        if self._runner is not None:
            self._runner.drain()
        if self._heartbeat is not None:
            self._heartbeat.now()

    def stop(self) -> None:
        """Leave the pool once nothing is held, and free the engine."""
        if self._runner is not None and not self._runner.wait_idle(DRAIN_TIMEOUT_S):
            logger.warning("A batch still runs; its range goes to another GPU.")
        self._at_end.close()

    def _tell(self, text: str) -> None:
        """Log a line of the loading engine, or give up if this is to stop.

        Raises:
            EngineError: it is to stop.
        """
        if self._is_stopping():
            raise EngineError(f"{self._queue} was stopped while it loaded its engine.")
        logger.info("%s: %s", self._queue, text)

    def _taken(self, other: Gpu) -> None:
        self._on_broken(
            f"host {other.host}, process {other.pid} serves this queue by now, as this worker was "
            "silent for too long"
        )


def _warm_up(engine: Engine, runner: RangeRunner) -> int:
    """Run passes, the last of which tells the first rate; return how many tokens one can have, 0 if unknown."""
    seq_len = min(WARM_UP_SEQ_LEN, engine.info.max_seq_len)
    # Pays for code generation, and for whatever else does not grow with tokens.
    engine.warm_up(1, seq_len)
    began = time.monotonic()
    tokens = measured_pass_tokens(engine, WARM_UP_BATCH, seq_len)
    if engine.info.device != "cpu":
        # A GPU chooses its kernels at the first pass of a shape. On a CPU a second one tells nothing new, and takes seconds.
        began = time.monotonic()
        engine.warm_up(WARM_UP_BATCH, seq_len)
    runner.set_rate(seq_len, WARM_UP_BATCH, WARM_UP_BATCH / max(time.monotonic() - began, 1e-6))
    return tokens
