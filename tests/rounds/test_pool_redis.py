"""The pool on a real Redis: one live worker a queue, the dead stay visible for a while."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pocqueue.rounds.backend import Backend
from pocqueue.rounds.pool import FORGET_MS, Pool
from pocqueue.rounds.store import Keys
from tests.support.factories import make_gpu
from tests.support.waiting import wait_until


@pytest.fixture
def pool(backend: Backend) -> Pool:
    """An empty pool."""
    return backend.pool


def _silence(pool: Pool, queue: str, ms: int) -> None:
    """Put the last heartbeat of a queue back in time."""
    pool.client.zincrby(Keys.HEARTBEATS, -ms, queue)


def test_a_heartbeat_registers_all_that_a_worker_says(pool: Pool) -> None:
    """And the pool stamps it with Redis's clock."""
    gpu = make_gpu("host.gpu3", held=("r:1",), load=0.75, checked=12, last_error="hot")
    assert pool.beat(gpu) is None
    (found,) = pool.live()
    assert found == replace(gpu, seen_ms=found.seen_ms, now_ms=found.now_ms)
    assert 0 <= found.now_ms - found.seen_ms < 4000
    assert found.is_live


def test_a_later_heartbeat_replaces_the_earlier(pool: Pool) -> None:
    """There is one record a queue."""
    pool.beat(make_gpu(load=0.1))
    pool.beat(make_gpu(load=0.9))
    assert [gpu.load for gpu in pool.all()] == [0.9]


def test_a_queue_belongs_to_one_live_worker(pool: Pool) -> None:
    """The second learns who has it, and changes nothing."""
    pool.beat(make_gpu(worker="first", host="here", pid=7))
    other = pool.beat(make_gpu(worker="second"))
    assert other is not None
    assert (other.worker, other.host, other.pid) == ("first", "here", 7)
    assert [gpu.worker for gpu in pool.live()] == ["first"]


def test_the_queue_of_a_silent_worker_can_be_taken(pool: Pool) -> None:
    """After the time to live that it gave itself, and the old worker is then the second."""
    pool.beat(make_gpu(worker="dead", ttl_ms=5000))
    _silence(pool, "gpu0", 4000)
    assert pool.beat(make_gpu(worker="next")) is not None
    _silence(pool, "gpu0", 1000)
    assert pool.live() == []
    assert [gpu.worker for gpu in pool.all()] == ["dead"]
    assert pool.beat(make_gpu(worker="next")) is None
    other = pool.beat(make_gpu(worker="dead"))
    assert other is not None
    assert other.worker == "next"


def test_a_worker_that_stops_beating_is_dead_after_its_time_to_live(pool: Pool) -> None:
    """In real time."""
    pool.beat(make_gpu(ttl_ms=150))
    assert len(pool.all()) == 1
    wait_until(lambda: not pool.live(), message="the worker is dead")
    assert len(pool.all()) == 1


def test_a_worker_leaves_only_a_queue_that_is_its_own(pool: Pool) -> None:
    """One that lost its queue does not take the new owner out."""
    pool.beat(make_gpu(worker="owner"))
    pool.leave("gpu0", "former owner")
    assert len(pool.live()) == 1
    pool.leave("gpu0", "owner")
    pool.leave("gpu0", "owner")
    assert pool.all() == []
    assert pool.client.zcard(Keys.HEARTBEATS) == 0


def test_gpus_are_listed_in_the_order_of_people(pool: Pool) -> None:
    """gpu2 before gpu10, host by host."""
    queues = ["gpu0", "gpu2", "gpu10", "host-a.gpu9", "host-a.gpu11", "host-b.gpu0"]
    for queue in reversed(queues):
        pool.beat(make_gpu(queue))
    assert [gpu.queue for gpu in pool.all()] == queues


def test_the_dead_are_forgotten_after_an_hour(pool: Pool) -> None:
    """Those of this hour are still shown, and one that came back meanwhile stays."""
    for queue in ("gpu0", "gpu1", "gpu2"):
        pool.beat(make_gpu(queue))
    _silence(pool, "gpu0", FORGET_MS + 1000)
    _silence(pool, "gpu1", FORGET_MS - 60_000)
    _silence(pool, "gpu2", FORGET_MS + 1000)
    seen = pool.all()
    pool.beat(make_gpu("gpu2", worker="came back"))
    pool.forget_dead(seen)
    assert [gpu.queue for gpu in pool.all()] == ["gpu1", "gpu2"]


def test_records_are_read_again_only_after_a_heartbeat(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler asks ten times a second, a worker speaks once; what is shown is as new as ever."""
    for queue in ("gpu0", "gpu1", "gpu2"):
        pool.beat(make_gpu(queue, load=0.1))
    read: list[list[str]] = []
    original = pool.client.hmget

    def hmget(name: str, keys: list[str]) -> object:
        read.append(keys)
        return original(name, keys)

    monkeypatch.setattr(pool.client, "hmget", hmget)

    def known() -> bool:
        del read[:]
        pool.all()
        return not read

    # What was read in the millisecond of its heartbeat is read once more.
    wait_until(known, message="all records are known")
    before = {gpu.queue: gpu for gpu in pool.all()}
    pool.beat(make_gpu("gpu1", load=0.9))
    pool.leave("gpu2", make_gpu("gpu2").worker)
    after = {gpu.queue: gpu for gpu in pool.all()}
    assert read == [["gpu1"]]
    assert {queue: gpu.load for queue, gpu in after.items()} == {"gpu0": 0.1, "gpu1": 0.9}
    assert after["gpu0"].seen_ms == before["gpu0"].seen_ms
    assert after["gpu0"].now_ms >= before["gpu0"].now_ms


def test_a_second_heartbeat_in_the_same_millisecond_is_seen(pool: Pool) -> None:
    """Its stamp is that of the first: a record is not trusted before that millisecond is over."""
    pool.beat(make_gpu(load=0.1))
    later_ms = pool.all()[0].now_ms + 60_000
    pool.client.zadd(Keys.HEARTBEATS, {"gpu0": later_ms})
    assert pool.all()[0].load == 0.1
    pool.client.hset(Keys.GPUS, "gpu0", make_gpu(load=0.9).to_json())
    assert pool.all()[0].load == 0.9
