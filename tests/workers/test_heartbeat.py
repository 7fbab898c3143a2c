"""A worker's heartbeat with a real pool: one live worker a queue, and what it says of itself."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

import pytest
from typing_extensions import override

from pocqueue.errors import QueueTaken, StoreUnavailable
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.pool import Gpu, Pool
from tests.support.factories import make_gpu, make_info, make_spec
from tests.support.fake_engine import FakeEngine
from tests.support.rounds import assign
from tests.support.waiting import PATIENCE_S, wait_until
from workers.heartbeat import Heartbeat
from workers.range_runner import RangeRunner
from workers.runner_stats import Member


class BreakablePool(Pool):
    """A pool whose connection can be cut."""

    cut = False

    @override
    def beat(self, gpu: Gpu) -> Gpu | None:
        if self.cut:
            raise StoreUnavailable("the connection broke")
        return super().beat(gpu)


class Beats:
    """Makes heartbeats on one pool, each with a runner; stops them in the end."""

    def __init__(self, backend: Backend) -> None:
        self.pool = backend.pool
        self.taken: list[Gpu] = []
        self.engine = FakeEngine()
        self.runner = RangeRunner(self.engine, backend.store, "w0", lambda _: None)
        self._made: list[Heartbeat] = []

    def make(
        self,
        *,
        pool: Pool | None = None,
        host: str = "here",
        interval_s: float = 0.02,
        ttl_s: float = 60.0,
        queue: str = "gpu0",
    ) -> Heartbeat:
        """Make a heartbeat that is not started yet."""
        worker = f"w{len(self._made)}"
        heartbeat = Heartbeat(
            pool or self.pool,
            Member(Gpu(queue, worker, host, os.getpid(), make_info(), round(1000 * ttl_s))),
            self.runner,
            interval_s=interval_s,
            on_taken=self.taken.append,
        )
        self._made.append(heartbeat)
        return heartbeat

    def the_gpu(self) -> Gpu:
        """Return the only GPU of the pool."""
        (gpu,) = self.pool.all()
        return gpu

    def close(self) -> None:
        for heartbeat in self._made:
            heartbeat.stop()
        self.runner.close()


@pytest.fixture
def beats(backend: Backend) -> Iterator[Beats]:
    """Heartbeats on an empty pool."""
    beats = Beats(backend)
    yield beats
    beats.close()


def test_a_worker_joins_once_redis_is_back(beats: Beats) -> None:
    """It went away while the model was loaded, and comes back at the third look."""
    pool = BreakablePool(beats.pool.client, beats.pool.url)
    pool.cut = True
    looks: list[bool] = []

    def is_stopping() -> bool:
        looks.append(True)
        pool.cut = len(looks) < 3
        return False

    beats.make(pool=pool).start(is_stopping)
    assert len(looks) == 3
    assert beats.the_gpu().is_live


def test_a_worker_joins_with_all_there_is_to_know_of_it(beats: Beats) -> None:
    """It is in the pool when `start` returns."""
    heartbeat = beats.make(queue="host-7.gpu3", ttl_s=4.0)
    beats.runner.set_rate(256, 32, 64.0)
    heartbeat.start()
    gpu = beats.the_gpu()
    assert gpu.is_live
    assert (gpu.queue, gpu.worker, gpu.host) == ("host-7.gpu3", "w0", "here")
    assert (gpu.pid, gpu.info, gpu.ttl_ms) == (os.getpid(), make_info(), 4000)
    assert gpu.rates == {"256x32": 64.0}
    assert not gpu.draining


def test_the_time_that_commits_took_is_told(beats: Beats, backend: Backend) -> None:
    """For `pocqueue_gpu_commit_seconds`: one endpoint has the figures of every worker."""
    round_id = backend.store.create(make_spec(max_nonces=20))
    assign(backend.store, round_id, 20)
    beats.runner.run(round_id, 1)
    beats.make().start()
    commits = beats.the_gpu().commits
    assert sum(commits.counts) == 2
    assert commits == beats.runner.stats().commits


def test_it_goes_on_beating(beats: Beats) -> None:
    """Much longer than its time to live."""
    beats.make(ttl_s=0.4).start()
    first_ms = beats.the_gpu().seen_ms
    wait_until(lambda: beats.the_gpu().seen_ms - first_ms > 800, message="it beats for 0.8 s")
    wait_until(lambda: beats.the_gpu().is_live)


def test_it_leaves_the_pool_when_it_stops(beats: Beats) -> None:
    """At once, and stopping twice is fine."""
    heartbeat = beats.make()
    heartbeat.start()
    heartbeat.stop()
    assert beats.pool.all() == []
    heartbeat.stop()


def test_a_second_worker_on_a_live_queue_is_refused(beats: Beats) -> None:
    """By host and process of the one that has it, which goes on as if nothing had been."""
    first = beats.make(host="there")
    first.start()
    second = beats.make(ttl_s=0.05)
    with pytest.raises(QueueTaken) as caught:
        second.start()
    message = str(caught.value)
    assert "Queue gpu0 is served by a live worker already" in message
    assert "host there" in message
    assert f"process {os.getpid()}" in message
    assert "-Q" in message
    assert beats.the_gpu().worker == "w0"
    second.stop()
    assert beats.the_gpu().worker == "w0"
    assert beats.taken == []


def test_a_worker_that_is_stopped_while_a_queue_is_held_gives_up(beats: Beats) -> None:
    """It does not wait for the end of a dead one's time to live."""
    beats.pool.beat(make_gpu(worker="killed", ttl_ms=3_600_000))
    with pytest.raises(QueueTaken):
        beats.make().start(lambda: True)
    assert beats.the_gpu().worker == "killed"


def test_the_queue_of_a_killed_worker_is_taken_over(beats: Beats) -> None:
    """The new one waits until the dead one's time to live is over."""
    beats.pool.beat(make_gpu(worker="killed", ttl_ms=300))
    heartbeat = beats.make(ttl_s=5.0)
    heartbeat.start()
    assert beats.the_gpu().worker == "w0"


def test_a_worker_that_lost_its_queue_is_told_by_whom(beats: Beats, backend: Backend) -> None:
    """It was cut off for so long that another took the queue; it beats no more."""
    pool = BreakablePool(backend.client, backend.url)
    heartbeat = beats.make(pool=pool, ttl_s=0.1)
    heartbeat.start()
    pool.cut = True
    other = make_gpu(worker="other", host="elsewhere", ttl_ms=60_000)
    wait_until(lambda: beats.pool.beat(other) is None, message="the other took the queue")
    pool.cut = False
    wait_until(lambda: beats.taken, message="it noticed")
    assert [gpu.host for gpu in beats.taken] == ["elsewhere"]
    heartbeat.stop()
    assert beats.the_gpu().worker == "other"


def test_a_short_outage_of_redis_is_survived(beats: Beats, backend: Backend) -> None:
    """It comes back to its own queue by itself."""
    pool = BreakablePool(backend.client, backend.url)
    beats.make(pool=pool, ttl_s=0.1).start()
    pool.cut = True
    wait_until(lambda: not beats.the_gpu().is_live, message="it counts as dead")
    pool.cut = False
    wait_until(lambda: beats.the_gpu().is_live, message="it is back")
    assert beats.taken == []


def test_stopping_while_redis_is_away_does_not_fail(beats: Beats, backend: Backend) -> None:
    """The pool will notice by itself."""

    class Gone(BreakablePool):
        @override
        def leave(self, queue: str, worker: str) -> None:
            raise StoreUnavailable("the connection broke")

    pool = Gone(backend.client, backend.url)
    heartbeat = beats.make(pool=pool)
    heartbeat.start()
    pool.cut = True
    heartbeat.now()
    heartbeat.stop()
    assert len(beats.pool.all()) == 1


def test_news_can_be_said_out_of_turn(beats: Beats) -> None:
    """A draining worker does not wait for its next beat."""
    heartbeat = beats.make(interval_s=60.0)
    heartbeat.start()
    assert not beats.the_gpu().draining
    beats.runner.drain()
    assert not beats.the_gpu().draining
    heartbeat.now()
    assert beats.the_gpu().draining


@contextlib.contextmanager
def _in_a_batch(beats: Beats, backend: Backend) -> Iterator[Callable[[], None]]:
    """Be in the middle of a forward pass; gives what lets it end."""
    go_on = threading.Event()
    beats.engine.on_batch = lambda _: _wait_for(go_on)
    round_id = backend.store.create(make_spec(max_nonces=10))
    assign(backend.store, round_id, 10)
    thread = threading.Thread(target=beats.runner.run, args=(round_id, 1))
    thread.start()
    try:
        wait_until(lambda: beats.engine.batches, message="a batch runs")
        yield go_on.set
    finally:
        go_on.set()
        thread.join(timeout=120)


def _wait_for(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S)


def test_what_a_worker_holds_and_does_is_told(beats: Beats, backend: Backend) -> None:
    """Ranges in hand, load and count; free and idle again afterwards."""
    beats.make().start()
    with _in_a_batch(beats, backend) as end_batch:
        gpu = wait_until(lambda: [g for g in beats.pool.all() if g.load > 0.9])[0]
        assert len(gpu.held) == 1
        assert gpu.load <= 1.0
        end_batch()
    gpu = wait_until(lambda: [g for g in beats.pool.all() if not g.held and g.load == 0])[0]
    assert gpu.checked == 10
    assert list(gpu.rates) == ["8x10"]


def test_how_long_a_forward_pass_has_run_is_told(beats: Beats, backend: Backend) -> None:
    """It is how a GPU that hangs is found: the heartbeat itself goes on."""
    beats.make().start()
    with _in_a_batch(beats, backend) as end_batch:
        first = wait_until(lambda: [g for g in beats.pool.all() if g.pass_s > 0])[0]
        longer = wait_until(lambda: [g for g in beats.pool.all() if g.pass_s > first.pass_s + 0.1])
        passed_s = (longer[0].seen_ms - first.seen_ms) / 1000
        assert longer[0].pass_s - first.pass_s == pytest.approx(passed_s, abs=0.05)
        assert not longer[0].hangs
        end_batch()
    assert wait_until(lambda: [g for g in beats.pool.all() if not g.held])[0].pass_s == 0
