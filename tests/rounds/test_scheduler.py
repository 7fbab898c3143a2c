"""The scheduler on a real Redis, with a message channel in memory instead of Celery."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from pocqueue.errors import StoreUnavailable
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.planner import DEPTH
from pocqueue.rounds.records import AssignedRange, RoundStatus
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.relays import TTL_MS, Relays
from pocqueue.rounds.scheduler import (
    BUSY_STEP_S,
    MAX_BUSY_STEP_S,
    Scheduler,
    SchedulerTimings,
    busy_pause_s,
)
from pocqueue.rounds.spec import RoundState
from pocqueue.rounds.store import MAX_ATTEMPTS, Keys
from tests.support.factories import OTHER_FINGERPRINT, make_gpu, make_info, make_spec
from tests.support.rounds import assign, check_books, commit, keys_of, pass_deadline
from tests.support.waiting import Clock, wait_until


@dataclass
class Channel:
    """Takes what a scheduler sends, in order; may break."""

    ranges: list[tuple[str, str, AssignedRange]] = field(default_factory=list)
    callbacks: list[tuple[str, str]] = field(default_factory=list)
    sweeps: int = 0
    broken: bool = False

    def send_ranges(self, sent: Sequence[tuple[str, RoundStatus, AssignedRange]]) -> None:
        if self.broken:
            raise StoreUnavailable("the broker is away")
        self.ranges += [(queue, status.round_id, assigned) for queue, status, assigned in sent]

    def send_callback(self, round_id: str, token: str) -> None:
        self.callbacks.append((round_id, token))

    def send_sweep(self) -> None:
        self.sweeps += 1

    def take(self, queue: str) -> list[tuple[str, AssignedRange]]:
        """Take everything that waits on a queue."""
        taken = [(round_id, out) for name, round_id, out in self.ranges if name == queue]
        self.ranges = [sent for sent in self.ranges if sent[0] != queue]
        return taken


def _scheduler(
    backend: Backend,
    channel: Channel,
    clock: Callable[[], float] = time.monotonic,
    **changes: float,
) -> Scheduler:
    timings = SchedulerTimings(**({"settle_s": 0.0} | changes))
    return Scheduler(backend, channel, timings, clock)


@contextlib.contextmanager
def _running(*schedulers: Scheduler) -> Iterator[list[threading.Event]]:
    """Run schedulers in threads; stop them in the end."""
    stops = [threading.Event() for _ in schedulers]
    threads = [
        threading.Thread(target=one.run, args=(stop,))
        for one, stop in zip(schedulers, stops, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        yield stops
    finally:
        for stop in stops:
            stop.set()
        for thread in threads:
            thread.join(timeout=120)
        assert not any(thread.is_alive() for thread in threads)


@pytest.fixture
def channel() -> Channel:
    """An empty channel."""
    return Channel()


def _work(backend: Backend, round_id: str, out: AssignedRange) -> None:
    """Do a whole range, one valid nonce in it."""
    commit(backend.store, round_id, out.range_id, out.start, out.stop, [out.start])


# Steps


def test_gateways_of_gpu_hosts_are_told_to_sweep(backend: Backend, channel: Channel) -> None:
    """Every few seconds, and only where one is there: else nobody would ever take the messages."""
    clock = Clock()
    scheduler = _scheduler(backend, channel, clock)
    relays = Relays(backend.client, backend.url)
    scheduler.step()
    assert (relays.live(), channel.sweeps) == ([], 0)
    relays.beat("b")
    relays.beat("a")
    assert relays.live() == ["a", "b"]
    scheduler.step()
    assert channel.sweeps == 0  # not yet
    clock.now_s += 5
    scheduler.step()
    scheduler.step()
    assert channel.sweeps == 1
    clock.now_s += 5
    scheduler.step()
    assert channel.sweeps == 2
    relays.leave("a")
    # The other one was killed: it says nothing any more.
    backend.client.zincrby(Keys.HOSTS_RELAYS, -TTL_MS - 1, "b")
    clock.now_s += 5
    scheduler.step()
    assert (relays.live(), channel.sweeps) == ([], 2)


def test_a_step_fills_every_gpu_and_the_next_one_adds_nothing(
    backend: Backend, channel: Channel
) -> None:
    """Two ranges a GPU, of a second each by its rate; a finished one is replaced."""
    scheduler = _scheduler(backend, channel)
    backend.pool.beat(make_gpu("gpu0", rate=100.0))
    backend.pool.beat(make_gpu("gpu1", rate=20.0))
    round_id = backend.store.create(make_spec())
    assert scheduler.step()
    sent = [(queue, out.stop - out.start) for queue, _, out in channel.ranges]
    assert sent == [("gpu0", 100), ("gpu1", 20), ("gpu0", 100), ("gpu1", 20)]
    assert scheduler.step()
    assert len(channel.ranges) == 2 * DEPTH
    first = channel.take("gpu1")[0]
    _work(backend, *first)
    scheduler.step()
    assert [queue for queue, _, _ in channel.ranges] == ["gpu0", "gpu0", "gpu1"]
    assert len(backend.store.outstanding([round_id])) == 4


def test_slow_steps_are_further_apart() -> None:
    """As many as a tenth of a core can do, and never so far apart that a GPU's second range runs out."""
    assert busy_pause_s(0.001) == BUSY_STEP_S
    assert busy_pause_s(0.02) == pytest.approx(0.16)
    assert busy_pause_s(1.0) == MAX_BUSY_STEP_S < 0.5


def test_a_step_without_rounds_is_idle(backend: Backend, channel: Channel) -> None:
    """It says so, and sends nothing."""
    backend.pool.beat(make_gpu())
    assert not _scheduler(backend, channel).step()
    assert channel.ranges == []


def test_a_gpu_that_joins_gets_work_with_the_next_step(backend: Backend, channel: Channel) -> None:
    """Whether the round or the GPU came first."""
    scheduler = _scheduler(backend, channel)
    backend.store.create(make_spec())
    assert scheduler.step()
    assert channel.ranges == []
    backend.pool.beat(make_gpu())
    scheduler.step()
    assert len(channel.ranges) == DEPTH


def test_a_gpu_with_another_model_gets_nothing(backend: Backend, channel: Channel) -> None:
    """Through store and pool as in the plan."""
    backend.store.create(make_spec(model_fingerprint=OTHER_FINGERPRINT))
    backend.pool.beat(make_gpu())
    _scheduler(backend, channel).step()
    assert channel.ranges == []


def test_a_round_that_no_gpu_can_hold_has_failed(backend: Backend, channel: Channel) -> None:
    """Where they found that out after its start; one that could hold it gets it."""
    limited = make_info(max_pass_tokens=79)
    backend.pool.beat(make_gpu("gpu0", info=limited))
    round_id = backend.store.create(make_spec())
    scheduler = _scheduler(backend, channel)
    scheduler.step()
    status = backend.store.status(round_id)
    assert status.state is RoundState.FAILED
    assert "no GPU of its model can hold one of its batches" in status.reason
    backend.pool.beat(make_gpu("gpu1"))
    backend.store.create(make_spec())
    scheduler.step()
    assert {queue for queue, *_ in channel.ranges} == {"gpu1"}


def test_ranges_of_a_dead_worker_go_to_another(backend: Backend, channel: Channel) -> None:
    """What it had committed stays, the rest is done by the other: all counted, each once."""
    scheduler = _scheduler(backend, channel)
    backend.pool.beat(make_gpu("gpu0", ttl_ms=60_000))
    round_id = backend.store.create(make_spec(max_nonces=300))
    scheduler.step()
    (_, first), (_, second) = channel.take("gpu0")
    assert (second.start, second.stop) == (100, 200)
    commit(backend.store, round_id, first.range_id, 0, 30, [3])
    backend.pool.beat(make_gpu("gpu1", ttl_ms=60_000))

    def done() -> bool:
        scheduler.step()
        for _, out in channel.take("gpu1"):
            _work(backend, round_id, out)
        return not backend.store.status(round_id).state.is_active

    scheduler.step()
    assert backend.store.status(round_id).ranges_returned == 0, "it is not silent for long enough"
    backend.client.zincrby(Keys.HEARTBEATS, -60_000, "gpu0")
    # Dead by now; with four seconds of silence by default, one is left of the five promised.
    wait_until(done, message="the other GPU did it all")
    status = check_books(backend.store, round_id)
    assert (status.state, status.checked) == (RoundState.COMPLETED, 300)
    assert status.ranges_returned == 2
    late = commit(backend.store, round_id, second.range_id, 100, 110)
    assert late.outcome == "closed"


def test_ranges_of_a_restarted_worker_are_sent_to_it_again(
    backend: Backend, channel: Channel
) -> None:
    """The new process behind the queue does not know of them."""
    scheduler = _scheduler(backend, channel)
    backend.pool.beat(make_gpu("gpu0", worker="before"))
    round_id = backend.store.create(make_spec())
    scheduler.step()
    backend.pool.leave("gpu0", "before")
    backend.pool.beat(make_gpu("gpu0", worker="after"))
    scheduler.step()
    spans = [(out.start, out.stop) for _, _, out in channel.ranges]
    assert sorted(spans) == [(0, 100), (0, 100), (100, 200), (100, 200)]
    held = backend.store.outstanding([round_id])
    assert {(out.worker, out.attempts) for out in held} == {("after", 1)}


def test_nonces_that_kill_every_worker_are_given_up(backend: Backend, channel: Channel) -> None:
    """After five of them; the round goes on with the others."""
    scheduler = _scheduler(backend, channel)
    round_id = backend.store.create(make_spec())
    first = assign(backend.store, round_id, 10)
    _work(backend, round_id, first)
    for life in range(MAX_ATTEMPTS + 1):
        backend.pool.beat(make_gpu("gpu0", worker=f"life-{life}"))
        scheduler.step()
        backend.pool.leave("gpu0", f"life-{life}")
    status = backend.store.status(round_id)
    assert (status.state, status.abandoned) == (RoundState.ACTIVE, 200)
    (out, _) = sorted(backend.store.outstanding([round_id]), key=lambda o: o.start)
    assert (out.start, out.attempts) == (210, 0)


def test_a_round_that_kills_every_worker_from_the_start_has_failed(
    backend: Backend, channel: Channel
) -> None:
    """After five of them, with nothing counted; the scheduler goes on with other rounds."""
    scheduler = _scheduler(backend, channel)
    round_id = backend.store.create(make_spec())
    for life in range(MAX_ATTEMPTS + 1):
        backend.pool.beat(make_gpu("gpu0", worker=f"life-{life}"))
        scheduler.step()
        backend.pool.leave("gpu0", f"life-{life}")
    status = backend.store.status(round_id)
    assert status.state is RoundState.FAILED
    assert "5 times in a row" in status.reason
    assert backend.store.outstanding([round_id]) == []
    channel.ranges.clear()
    other = backend.store.create(make_spec())
    backend.pool.beat(make_gpu("gpu0", worker="well"))
    scheduler.step()
    assert [name for _, name, _ in channel.ranges] == [other] * DEPTH


def test_ranges_of_a_hanging_gpu_go_to_another(backend: Backend, channel: Channel) -> None:
    """Its heartbeat goes on, but its forward pass does not end: it gets nothing more."""
    scheduler = _scheduler(backend, channel)
    round_id = backend.store.create(make_spec())
    backend.pool.beat(make_gpu("gpu0"))
    scheduler.step()
    keys = tuple(f"{round_id}:{out.range_id}" for _, out in channel.take("gpu0"))
    backend.pool.beat(make_gpu("gpu0", held=keys, pass_s=119.0))
    backend.pool.beat(make_gpu("gpu1"))
    scheduler.step()
    assert {out.start for _, out in channel.take("gpu1")} == {200, 300}
    for out in backend.store.outstanding([round_id]):
        if out.queue == "gpu1":
            commit(backend.store, round_id, out.range_id, out.start, out.stop)
    backend.pool.beat(make_gpu("gpu0", held=keys, pass_s=121.0))
    scheduler.step()
    assert {out.start for _, out in channel.take("gpu1")} == {0, 100}
    assert channel.ranges == []
    assert {out.attempts for out in backend.store.outstanding([round_id])} == {1}


def test_a_range_whose_message_was_lost_is_sent_again(backend: Backend, channel: Channel) -> None:
    """The worker lives and does not have it; that is no failure of the nonces."""
    scheduler = _scheduler(backend, channel)
    backend.pool.beat(make_gpu())
    round_id = backend.store.create(make_spec())
    channel.broken = True
    with pytest.raises(StoreUnavailable):
        scheduler.step()
    channel.broken = False
    assert len(backend.store.outstanding([round_id])) == DEPTH
    scheduler.step()
    assert channel.ranges == [], "they count as on their way at first"
    scheduler = _scheduler(backend, channel, delivery_s=0.1)

    def again() -> list[int]:
        backend.pool.beat(make_gpu())
        scheduler.step()
        found = sorted(out.start for _, _, out in channel.ranges)
        # One of them may have been assigned a little earlier.
        return found if len(found) == DEPTH else []

    assert wait_until(again, message="the lost ranges are sent again") == [0, 100]
    held = {out.start: out.attempts for out in backend.store.outstanding([round_id])}
    assert held == {0: 0, 100: 0}


def test_a_due_round_is_closed_and_a_vanished_one_cleaned_up(
    backend: Backend, channel: Channel
) -> None:
    """The scheduler leaves no active round behind that is not."""
    due, vanished = backend.store.create(make_spec()), backend.store.create(make_spec())
    pass_deadline(backend, due)
    backend.client.delete(Keys.of_round(vanished, "round"))
    assert not _scheduler(backend, channel).step()
    assert backend.store.active_ids() == []
    assert backend.store.status(due).state is RoundState.EXPIRED
    assert keys_of(backend, vanished) == {}


def test_unsent_proofs_are_given_to_an_io_worker_once(backend: Backend, channel: Channel) -> None:
    """Also of a round that is over, and not again while that one is at it."""
    scheduler = _scheduler(backend, channel)
    round_id = backend.store.create(make_spec(callback_url="http://receiver/"))
    backend.pool.beat(make_gpu())
    scheduler.step()
    assert channel.callbacks == []
    _work(backend, *channel.take("gpu0")[0])
    backend.store.close(round_id, RoundState.STOPPED, "")
    scheduler.step()
    scheduler.step()
    assert [name for name, _ in channel.callbacks] == [round_id]
    assert backend.callbacks.progress(round_id).lease == channel.callbacks[0][1]


# As a process


def test_a_new_round_wakes_an_idle_scheduler(backend: Backend, channel: Channel) -> None:
    """It does not sit out its idle time."""
    backend.pool.beat(make_gpu(ttl_ms=60_000))
    with _running(_scheduler(backend, channel, idle_s=120.0)):
        wait_until(
            lambda: int(backend.client.info("clients")["blocked_clients"]) == 1,
            message="the scheduler waits for work",
        )
        backend.store.create(make_spec())
        wait_until(lambda: len(channel.ranges) == DEPTH, 60.0, "ranges are sent")


def test_of_two_schedulers_one_works_and_the_other_takes_over_when_it_stops(
    backend: Backend, channel: Channel
) -> None:
    """A scheduler that ends resigns, so the next one leads without waiting for the lease."""
    other = Channel()
    backend.pool.beat(make_gpu(ttl_ms=60_000))
    first, second = (_scheduler(backend, to, lease_s=60.0) for to in (channel, other))
    with _running(first) as (stop_first,):
        round_id = backend.store.create(make_spec())
        wait_until(lambda: len(channel.ranges) == DEPTH, message="the first schedules")
        with _running(second):
            _work(backend, *channel.take("gpu0")[0])
            wait_until(lambda: len(channel.ranges) == 1, message="the first goes on")
            assert other.ranges == []
            leader = backend.client.get(Keys.LEADER)
            stop_first.set()
            wait_until(
                lambda: backend.client.get(Keys.LEADER) not in {None, leader},
                5.0,
                "the second leads",
            )
            _work(backend, round_id, channel.take("gpu0")[0][1])
            wait_until(lambda: other.ranges, message="the second schedules")


def test_the_lead_of_a_killed_scheduler_is_taken_over_within_five_seconds(
    backend: Backend, channel: Channel
) -> None:
    """It held the lead and is gone without a word."""
    assert backend.store.lead("killed", SchedulerTimings().lease_s)
    backend.pool.beat(make_gpu(ttl_ms=60_000))
    backend.store.create(make_spec())
    with _running(_scheduler(backend, channel)):
        wait_until(lambda: channel.ranges, message="the next scheduler leads")


def test_scheduling_goes_on_when_redis_comes_back(
    own_redis: RedisServer, own_backend: Backend, channel: Channel
) -> None:
    """Redis is stopped and started in the middle of a round: nothing is lost or done twice."""
    backend = own_backend
    backend.pool.beat(make_gpu(ttl_ms=120_000))
    round_id = backend.store.create(make_spec(max_nonces=600, window_s=600))
    with _running(_scheduler(backend, channel)):
        wait_until(lambda: len(channel.ranges) == DEPTH, message="ranges before")
        own_redis.stop()
        with pytest.raises(StoreUnavailable):
            backend.store.status(round_id)
        own_redis.ensure()

        def done() -> bool:
            for _, out in channel.take("gpu0"):
                _work(backend, round_id, out)
            return backend.store.status(round_id).state is RoundState.COMPLETED

        wait_until(done, message="the round completes")
    status = check_books(backend.store, round_id)
    assert (status.checked, status.ranges_made) == (600, 6)


def test_callbacks_have_their_time_after_an_outage(
    backend: Backend, channel: Channel, seconds: _Seconds
) -> None:
    """However long ago their round ended; a scheduler that just took the lead cannot know better."""
    round_id = backend.store.create(make_spec(callback_url="http://callback.test"))
    _work(backend, round_id, assign(backend.store, round_id, 10))
    backend.store.close(round_id, RoundState.STOPPED, "")
    backend.client.hincrby(Keys.of_round(round_id, "round"), "ended_ms", -300_000)
    scheduler = _scheduler(backend, channel, seconds, grace_s=60.0)
    with _running(scheduler):
        wait_until(lambda: channel.callbacks, message="a task for it")
        assert round_id in backend.callbacks.progress_of_all()
        seconds.now_s += 61.0
        # A step that read the clock before may still look at leases.
        wait_until(lambda: seconds.read_s == seconds.now_s, message="a step at this time")
        # Its worker's lease, 30 s, is over as well.
        backend.client.hincrby(Keys.of_round(round_id, "callback"), "lease_ms", -30_000)
        wait_until(lambda: not backend.callbacks.progress_of_all(), message="its end")
    assert [sent for sent, _ in channel.callbacks] == [round_id]


class _Seconds:
    """A scheduler's clock: seconds that the test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.read_s = 0.0  #: what it showed last

    def __call__(self) -> float:
        self.read_s = self.now_s
        return self.read_s


@pytest.fixture
def seconds() -> _Seconds:
    return _Seconds()


def _see_another_step(backend: Backend, channel: Channel, queue: str) -> None:
    """Let a new GPU join, and wait until it is given its ranges."""
    backend.pool.beat(make_gpu(queue, ttl_ms=120_000))
    wait_until(
        lambda: sum(name == queue for name, _, _ in channel.ranges) == DEPTH,
        message=f"a step with {queue}",
    )


def _check_settling(
    backend: Backend, channel: Channel, seconds: _Seconds, round_id: str, settle_s: float
) -> None:
    """Check that gpu0, which is silent, has its ranges until `settle_s` are over."""
    _see_another_step(backend, channel, "gpu1")
    seconds.now_s += 0.9 * settle_s
    _see_another_step(backend, channel, "gpu2")
    if settle_s > 0:
        held = [o for o in backend.store.outstanding([round_id]) if o.queue == "gpu0"]
        assert len(held) == DEPTH
        assert backend.store.status(round_id).ranges_returned == 0
    seconds.now_s += settle_s
    wait_until(
        lambda: backend.store.status(round_id).ranges_returned == DEPTH,
        message="the ranges come back",
    )


@pytest.mark.parametrize("settle_s", [60.0, 0.0])
def test_after_an_outage_silence_is_no_death_at_first(
    own_redis: RedisServer,
    own_backend: Backend,
    channel: Channel,
    seconds: _Seconds,
    caplog: pytest.LogCaptureFixture,
    settle_s: float,
) -> None:
    """Nobody could be heard while Redis was away: workers have time to be heard again."""
    backend = own_backend
    backend.pool.beat(make_gpu("gpu0", ttl_ms=60_000))
    round_id = backend.store.create(make_spec(window_s=600))
    with _running(_scheduler(backend, channel, seconds, settle_s=settle_s)):
        wait_until(lambda: len(channel.ranges) == DEPTH, message="ranges before")
        seconds.now_s += 2 * settle_s  # it has led for long
        own_redis.stop()
        wait_until(lambda: "Scheduling waits" in caplog.text, message="it noticed the outage")
        own_redis.ensure()
        backend.client.zincrby(Keys.HEARTBEATS, -60_000, "gpu0")
        _check_settling(backend, channel, seconds, round_id, settle_s)


@pytest.mark.parametrize("settle_s", [60.0, 0.0])
def test_a_new_leader_does_not_take_silence_for_death_at_first(
    backend: Backend, channel: Channel, seconds: _Seconds, settle_s: float
) -> None:
    """Redis may have been away just before it took the lead."""
    round_id = backend.store.create(make_spec(window_s=600))
    backend.pool.beat(make_gpu("gpu0", ttl_ms=60_000))
    for _ in range(DEPTH):
        assign(backend.store, round_id, 100, worker="worker-of-gpu0")
    backend.client.zincrby(Keys.HEARTBEATS, -60_000, "gpu0")
    with _running(_scheduler(backend, channel, seconds, settle_s=settle_s)):
        _check_settling(backend, channel, seconds, round_id, settle_s)


def test_a_broken_channel_is_survived(backend: Backend, channel: Channel) -> None:
    """Others get their ranges once it works again; the scheduler does not end."""
    channel.broken = True
    backend.pool.beat(replace(make_gpu("gpu0"), ttl_ms=60_000))
    round_id = backend.store.create(make_spec())
    with _running(_scheduler(backend, channel)):
        wait_until(lambda: backend.store.outstanding([round_id]), message="ranges are given")
        channel.broken = False
        backend.pool.beat(replace(make_gpu("gpu1"), ttl_ms=60_000))
        wait_until(lambda: channel.ranges, message="the next ones are sent")
