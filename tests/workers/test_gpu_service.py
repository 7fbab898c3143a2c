"""A GPU in the pool from load to drain, without Celery: several of them fit into one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from pydantic import SecretStr

from pocqueue.engine import Engine, OnProgress
from pocqueue.errors import EngineError, QueueTaken, StoreUnavailable
from pocqueue.rounds.backend import Backend
from pocqueue.settings import Settings
from tests.support.factories import make_gpu, make_spec
from tests.support.fake_engine import FakeEngine
from tests.support.fixtures import SettingsFactory
from tests.support.rounds import assign, check_books
from tests.support.waiting import wait_until
from workers.gpu_service import WARM_UP_BATCH, GpuService


def loader(engine: Engine) -> Callable[[OnProgress], Engine]:
    """Load this engine."""

    def load(on_progress: OnProgress) -> Engine:
        on_progress("Loading")
        return engine

    return load


@pytest.fixture
def settings(settings_for: SettingsFactory) -> Settings:
    return settings_for(host_name="here")


def test_several_gpus_of_any_name_live_in_one_process(settings: Settings, backend: Backend) -> None:
    """Each is a member of the pool with its own engine and ranges, and leaves it when it stops."""
    engines = [FakeEngine() for _ in range(3)]
    names = ["relay-7", "relay-8", "gpu0"]
    services = [
        GpuService(name, settings, print, load=loader(engine))
        for name, engine in zip(names, engines, strict=True)
    ]
    for service in services:
        service.start()
    gpus = {gpu.queue: gpu for gpu in backend.pool.live()}
    assert sorted(gpus) == sorted(names)
    assert {gpu.host for gpu in gpus.values()} == {"here"}
    assert all(list(gpu.rates) == [f"256x{WARM_UP_BATCH}"] for gpu in gpus.values())
    round_id = backend.store.create(make_spec(max_nonces=60))
    for name, service in zip(names, services, strict=True):
        out = assign(backend.store, round_id, 20, name, gpus[name].worker)
        assert service.run(round_id, out.range_id) == "20 of 20 nonces"
    assert [len(engine.batches) for engine in engines] == [2, 2, 2]
    assert check_books(backend.store, round_id).checked == 60
    for service in services:
        service.drain()
        service.stop()
    assert backend.pool.all() == []
    assert all(engine.closed for engine in engines)


def test_draining_is_told_to_the_pool_at_once(settings: Settings, backend: Backend) -> None:
    """The scheduler is to send nothing more."""
    service = GpuService("gpu0", settings, print, load=loader(FakeEngine()))
    service.start()
    service.drain()
    (gpu,) = backend.pool.all()
    assert gpu.draining
    service.stop()


def test_a_queue_that_is_lost_to_another_worker_ends_the_service(
    settings: Settings, backend: Backend
) -> None:
    """Its owner is told why; it can be stopped and leaves the queue to the other."""
    broken: list[str] = []
    service = GpuService("gpu0", settings, broken.append, load=loader(FakeEngine()))
    service.start()
    (gpu,) = backend.pool.all()
    backend.pool.leave("gpu0", gpu.worker)
    backend.pool.beat(make_gpu(worker="other", host="elsewhere", ttl_ms=60_000))
    wait_until(lambda: broken, message="it noticed")
    assert "host elsewhere" in broken[0]
    service.stop()
    assert [gpu.worker for gpu in backend.pool.all()] == ["other"]


def test_nothing_is_loaded_for_a_queue_that_is_served(settings: Settings, backend: Backend) -> None:
    """The other one's GPU has no room for a second engine, and whoever started it learns why at once."""
    there = GpuService("gpu0", settings, print, load=loader(FakeEngine()))
    there.start()
    second, loaded = FakeEngine(), list[str]()

    def load(on_progress: OnProgress) -> Engine:
        loaded.append("loaded")
        return second

    service = GpuService("gpu0", settings, print, load=load)
    with pytest.raises(QueueTaken, match=r"Queue gpu0 is served by .*\(host here, process \d+\)"):
        service.start()
    assert not loaded
    service.stop()
    there.stop()


def test_a_worker_that_drains_is_waited_for_and_followed(
    settings: Settings, backend: Backend
) -> None:
    """Who restarts a worker while a batch runs gets the new one, and not a refusal that a supervisor takes as final."""
    old = GpuService("gpu0", settings, print, load=loader(FakeEngine()))
    old.start()
    old.drain()
    beats = {gpu.seen_ms for gpu in backend.pool.live()}
    loaded = list[str]()

    def load(on_progress: OnProgress) -> Engine:
        loaded.extend(gpu.worker for gpu in backend.pool.all())
        return FakeEngine()

    def is_stopping() -> bool:
        """Let the old one go once it was seen to be alive for two more heartbeats."""
        beats.update(gpu.seen_ms for gpu in backend.pool.live())
        if len(beats) == 3:
            old.stop()
        return False

    service = GpuService("gpu0", settings, print, is_stopping, load)
    service.start()
    assert len(beats) >= 3
    assert not loaded
    assert len(backend.pool.live()) == 1
    service.stop()


def test_an_engine_is_loaded_once_a_killed_worker_counts_as_dead(
    settings: Settings, backend: Backend
) -> None:
    """Its record alone is nobody."""
    backend.pool.beat(make_gpu(worker="killed", ttl_ms=300))
    service = GpuService("gpu0", settings, print, load=loader(FakeEngine()))
    service.start()
    (gpu,) = backend.pool.live()
    assert gpu.worker != "killed"
    service.stop()


def test_a_service_that_is_stopped_while_it_loads_gives_up(settings: Settings) -> None:
    """At the next line that the loading engine says."""
    service = GpuService("gpu0", settings, print, lambda: True, loader(FakeEngine()))
    with pytest.raises(EngineError, match="gpu0 was stopped while it loaded its engine"):
        service.start()
    service.stop()


def test_a_service_waits_for_redis_until_it_is_stopped(settings_for: SettingsFactory) -> None:
    """A worker that starts before Redis is not lost."""
    away = settings_for(redis_url=SecretStr("redis://127.0.0.1:1/0"))
    asked: list[bool] = []

    def is_stopping(tries: int) -> bool:
        asked.append(True)
        return len(asked) >= tries

    service = GpuService("gpu0", away, print, partial(is_stopping, 3), loader(FakeEngine()))
    with pytest.raises(StoreUnavailable):
        service.start()
    assert len(asked) == 3
