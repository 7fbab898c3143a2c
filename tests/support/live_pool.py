"""A pool in threads: a scheduler and GPUs whose engines are in memory, on a real Redis without Celery."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence

from pocqueue.engine.base import Engine
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.records import AssignedRange, RoundStatus
from pocqueue.rounds.scheduler import Scheduler, SchedulerTimings
from tests.support.factories import make_gpu
from workers.range_runner import RangeRunner


class _Messages:
    """Brings ranges to the threads of their GPUs."""

    def __init__(self, names: Sequence[str]) -> None:
        self.queues: dict[str, queue.Queue[tuple[str, int] | None]] = {
            name: queue.Queue() for name in names
        }

    def send_ranges(self, sent: Sequence[tuple[str, RoundStatus, AssignedRange]]) -> None:
        for name, status, out in sent:
            self.queues[name].put((status.round_id, out.range_id))

    def send_callback(self, round_id: str, token: str) -> None:
        """Nobody delivers here."""

    def send_sweep(self) -> None:
        """There are no gateways."""


@contextlib.contextmanager
def live_pool(backend: Backend, *engines: Engine, range_s: float = 0.1) -> Iterator[None]:
    """Run a scheduler and one GPU for each engine until left."""
    gpus = [make_gpu(f"gpu{i}", ttl_ms=600_000, info=e.info) for i, e in enumerate(engines)]
    messages, stop = _Messages([gpu.queue for gpu in gpus]), threading.Event()
    broken: list[str] = []
    runners = [
        RangeRunner(engine, backend.store, gpu.worker, broken.append, retry_s=0.01)
        for engine, gpu in zip(engines, gpus, strict=True)
    ]

    def work(name: str, runner: RangeRunner) -> None:
        while (message := messages.queues[name].get()) is not None:
            runner.run(*message)

    timings = SchedulerTimings(range_s=range_s, settle_s=0.0, idle_s=0.05)
    scheduler = Scheduler(backend, messages, timings)
    threads = [threading.Thread(target=scheduler.run, args=(stop,))]
    for gpu, runner in zip(gpus, runners, strict=True):
        backend.pool.beat(gpu)
        threads.append(threading.Thread(target=work, args=(gpu.queue, runner)))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for waiting in messages.queues.values():
            waiting.put(None)
        for thread in threads:
            thread.join(timeout=120)
        for runner in runners:
            runner.close()
        assert not any(thread.is_alive() for thread in threads)
        assert not broken
