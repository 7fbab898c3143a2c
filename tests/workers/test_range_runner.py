"""The runner with a real store: every nonce once, and an end within one batch."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from typing_extensions import override

from pocqueue.engine.base import Engine
from pocqueue.errors import (
    EngineError,
    EngineUnavailable,
    PassTooLarge,
    StoreError,
    StoreForbidden,
    StoreReadOnly,
    StoreUnavailable,
)
from pocqueue.poc.batch import Batch
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.pool import shape_key
from pocqueue.rounds.records import BatchCommit, CommitResult
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.spec import RoundState
from pocqueue.rounds.store import MAX_ATTEMPTS, RoundStore
from tests.support.factories import OTHER_FINGERPRINT, make_gpu, make_info, make_spec
from tests.support.fake_engine import FakeEngine, valid_below
from tests.support.rounds import assign, check_books, commit, pass_deadline, proofs
from tests.support.waiting import PATIENCE_S, wait_until
from workers.range_runner import MAX_FAILURES, RangeRunner
from workers.runner_stats import Member

SHAPE = shape_key(8, 10)  # of make_spec


class Clock:
    """Monotonic seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def add(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


class Bench:
    """A runner, its engine and its store."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.store = backend.store
        self.engine = FakeEngine()
        self.clock = Clock()
        self.broken: list[str] = []
        self._runners: list[RangeRunner] = []
        self.runner = self.new_runner()

    def new_runner(
        self, *, store: RoundStore | None = None, engine: Engine | None = None
    ) -> RangeRunner:
        """Make another runner; it is closed with the bench."""
        runner = RangeRunner(
            engine or self.engine,
            store or self.store,
            "w0",
            self.broken.append,
            self.clock,
            retry_s=0.01,
        )
        self._runners.append(runner)
        return runner

    def wait_for_one_that_waits(self) -> None:
        """Wait until a range is open and behind the one that runs: from then on it is the next."""
        wait_until(lambda: self.runner._waiting, message="a range that waits")

    def start(self, num_nonces: int = 100, **changes: Any) -> str:
        """Make a round that is to check so many nonces, all of them in range 1; return its id."""
        round_id = self.store.create(make_spec(**({"max_nonces": num_nonces} | changes)))
        assign(self.store, round_id, num_nonces)
        return round_id

    def close(self) -> None:
        for runner in self._runners:
            runner.close()


@pytest.fixture
def bench(backend: Backend) -> Iterator[Bench]:
    """A bench on an empty Redis, with quick retries."""
    bench = Bench(backend)
    yield bench
    bench.close()


def _check_complete(bench: Bench, round_id: str, num_nonces: int) -> None:
    """Check that exactly the nonces 0 … N-1 were counted, and the valid ones kept, each once."""
    status = check_books(bench.store, round_id)
    assert (status.state, status.checked) == (RoundState.COMPLETED, num_nonces)
    assert bench.store.coverage(round_id) == [(0, num_nonces)]
    assert proofs(bench.store, round_id) == valid_below(1.0, range(num_nonces))


# A range


def test_a_range_is_counted_once_to_its_end(bench: Bench) -> None:
    """Batch by batch, in order, each nonce computed once; the valid ones are kept."""
    round_id = bench.start(100)
    assert bench.runner.run(round_id, 1) == "100 of 100 nonces"
    assert bench.engine.batches == [list(range(i, i + 10)) for i in range(0, 100, 10)]
    _check_complete(bench, round_id, 100)
    assert bench.runner.stats().checked == 100


def test_the_time_that_commits_take_is_measured(bench: Bench) -> None:
    """Each batch once, from its first try to Redis's answer, waiting for Redis included."""

    class Slow(RoundStore):
        tries = 0

        @override
        def commit_batch(self, batch: BatchCommit) -> CommitResult:
            self.tries += 1
            if self.tries == 1:
                bench.clock.add(3.0)
                raise StoreUnavailable("the connection broke")
            return super().commit_batch(batch)

    round_id = bench.start(30)
    runner = bench.new_runner(store=Slow(bench.store.client, bench.store.url))
    assert runner.run(round_id, 1) == "30 of 30 nonces"
    commits = runner.stats().commits
    assert sum(commits.counts) == 3
    assert commits.sum_s == 3.0
    _check_complete(bench, round_id, 30)


def test_the_last_batch_may_be_short(bench: Bench) -> None:
    """The engine gets what there is."""
    round_id = bench.start(23)
    bench.runner.run(round_id, 1)
    assert [len(batch) for batch in bench.engine.batches] == [10, 10, 3]
    _check_complete(bench, round_id, 23)


def test_nonces_are_those_of_the_node(bench: Bench) -> None:
    """Index k of node 2 of 5 is nonce 2 + 5k, for the engine and in the proofs."""
    round_id = bench.start(20, node_id=2, node_count=5)
    bench.runner.run(round_id, 1)
    mine = list(range(2, 102, 5))
    assert [nonce for batch in bench.engine.batches for nonce in batch] == mine
    assert proofs(bench.store, round_id) == valid_below(1.0, mine)


def test_a_range_goes_on_where_it_stands(bench: Bench) -> None:
    """What was committed before it was delivered again is not computed again."""
    round_id = bench.start(50)
    commit(bench.store, round_id, 1, 0, 30, valid_below(1.0, range(30)))
    assert bench.runner.run(round_id, 1) == "20 of 20 nonces"
    assert bench.engine.batches[0][0] == 30
    _check_complete(bench, round_id, 50)


def test_a_range_that_is_done_gone_or_unknown_is_left_alone(bench: Bench) -> None:
    """A message that comes late or twice costs nothing."""
    round_id = bench.start(20)
    bench.runner.run(round_id, 1)
    for name, range_id in [(round_id, 1), (round_id, 99), ("unknown", 1)]:
        assert bench.runner.run(name, range_id) == "no longer wanted"
    assert len(bench.engine.batches) == 2
    assert bench.runner.stats().held == set()


def test_a_range_of_another_worker_is_left_alone(bench: Bench) -> None:
    """Its message outlived a restart of the worker: the scheduler will give the range to others."""
    round_id = bench.store.create(make_spec())
    out = assign(bench.store, round_id, 100, worker="w-before")
    assert bench.runner.run(round_id, out.range_id) == "given to another worker"
    assert bench.engine.batches == []
    (held,) = bench.store.outstanding([round_id])
    assert (held.worker, held.done) == ("w-before", 0)
    assert bench.store.status(round_id).ranges_returned == 0
    assert bench.runner.stats().held == set()


@pytest.mark.parametrize(
    "changes", [{"model_fingerprint": OTHER_FINGERPRINT}, {"model_dtype": "bfloat16"}]
)
def test_a_range_of_another_model_is_given_back(bench: Bench, changes: dict[str, str]) -> None:
    """Other distances than the round's would be wrong proofs. The nonces did not fail."""
    round_id = bench.start(100, **changes)
    assert bench.runner.run(round_id, 1) == "of another model"
    assert bench.engine.batches == []
    assert bench.store.outstanding([round_id]) == []
    assert bench.store.status(round_id).ranges_returned == 1
    assign(bench.store, round_id, 100)
    (out,) = bench.store.outstanding([round_id])
    assert (out.start, out.stop, out.attempts) == (0, 100, 0)


def test_a_range_of_this_model_and_arithmetic_is_searched(bench: Bench) -> None:
    """Whether the round asks for an arithmetic or not."""
    round_id = bench.start(20, model_dtype="float32")
    assert bench.runner.run(round_id, 1) == "20 of 20 nonces"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_distance_that_is_no_number_never_makes_a_valid_nonce(bench: Bench, bad: float) -> None:
    """Such a nonce is counted as checked, and as what it is."""
    engine = FakeEngine(lambda nonce: bad if nonce % 4 == 0 else 0.5)
    round_id = bench.start(40)
    bench.new_runner(engine=engine).run(round_id, 1)
    status = check_books(bench.store, round_id)
    assert (status.checked, status.nonfinite, status.valid) == (40, 10, 30)
    assert all(nonce % 4 for nonce in proofs(bench.store, round_id))


def test_a_distance_equal_to_the_target_is_not_valid(bench: Bench) -> None:
    """Only what is below it is."""
    engine = FakeEngine(lambda nonce: 1.0 if nonce % 2 else math.nextafter(1.0, 0.0))
    round_id = bench.start(10)
    bench.new_runner(engine=engine).run(round_id, 1)
    assert proofs(bench.store, round_id) == [0, 2, 4, 6, 8]


# The end, within one batch


def _stop_in_batch(bench: Bench, round_id: str, number: int) -> None:
    """Stop the round during a forward pass, when all batches before it are committed."""

    def stop(batch: int) -> None:
        if batch == number:
            wait_until(lambda: bench.store.status(round_id).batches == number - 1)
            bench.store.close(round_id, RoundState.STOPPED, "")

    bench.engine.on_batch = stop


def test_at_most_one_batch_is_computed_after_a_stop(bench: Bench) -> None:
    """The round is stopped during the third; there may be a fourth, and no more."""
    round_id = bench.start(1000)
    _stop_in_batch(bench, round_id, 3)
    assert bench.runner.run(round_id, 1) == "20 of 1000 nonces"
    assert 3 <= len(bench.engine.batches) <= 4
    assert check_books(bench.store, round_id).checked == 20


def _run_behind(bench: Bench, first: tuple[str, int], second: tuple[str, int]) -> None:
    """Run two ranges in two threads; the second is opened and waits once batch 2 begins."""
    on_batch = bench.engine.on_batch

    def wait_for_second(batch: int) -> None:
        if batch == 2:
            bench.wait_for_one_that_waits()
        on_batch(batch)

    bench.engine.on_batch = wait_for_second
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(bench.runner.run, *first)
        wait_until(lambda: bench.engine.batches, message="the first runs")
        waiting = threads.submit(bench.runner.run, *second)
        running.result(timeout=120)
        waiting.result(timeout=120)


def test_the_range_that_waits_does_not_add_a_batch_after_a_stop(bench: Bench) -> None:
    """Two ranges of a round, one running, one waiting: still one batch at most."""
    round_id = bench.start(1000, max_nonces=None)
    assign(bench.store, round_id, 1000)
    _stop_in_batch(bench, round_id, 3)
    _run_behind(bench, (round_id, 1), (round_id, 2))
    assert 3 <= len(bench.engine.batches) <= 4
    assert check_books(bench.store, round_id).checked == 20


@pytest.mark.parametrize("stop", [True, False], ids=["stopped", "taken back"])
def test_a_range_that_went_while_it_waited_gets_one_batch_at_most(bench: Bench, stop: bool) -> None:
    """The engine was busy with another round when its own was stopped, or it was given away."""
    busy, waits = bench.start(100), bench.start(1000)

    def take_away(batch: int) -> None:
        if batch == 9 and stop:
            bench.store.close(waits, RoundState.STOPPED, "")
        elif batch == 9:
            bench.store.release_range(waits, 1, failed=True)

    bench.engine.on_batch = take_away
    _run_behind(bench, (busy, 1), (waits, 1))
    assert len(bench.engine.batches) <= 11
    _check_complete(bench, busy, 100)
    assert check_books(bench.store, waits).checked == 0


def test_at_most_one_batch_is_computed_after_the_deadline(bench: Bench) -> None:
    """By Redis's clock, which decides; what was computed too late is dropped."""
    round_id = bench.start(1000)

    def expire(batch: int) -> None:
        if batch == 3:
            wait_until(lambda: bench.store.status(round_id).batches == 2)
            pass_deadline(bench.backend, round_id)

    bench.engine.on_batch = expire
    assert bench.runner.run(round_id, 1) == "20 of 1000 nonces"
    assert 3 <= len(bench.engine.batches) <= 4
    status = check_books(bench.store, round_id)
    assert (status.state, status.checked, status.late_batches) == (RoundState.EXPIRED, 20, 1)


def test_no_batch_begins_that_would_end_after_the_deadline(bench: Bench) -> None:
    """By the worker's own clock: a window of 25 s has time for two batches of 10 s, not for three."""
    round_id = bench.start(1000, window_s=25)
    bench.engine.on_batch = lambda _: bench.clock.add(10)
    assert bench.runner.run(round_id, 1) == "20 of 1000 nonces"
    assert len(bench.engine.batches) == 2
    assert check_books(bench.store, round_id).checked == 20
    assert bench.store.outstanding([round_id]) == []
    rest = assign(bench.store, round_id, 1000)
    assert (rest.start, rest.stop) == (20, 1000), "a faster GPU may still do it"


def test_a_range_whose_first_batch_would_be_late_is_given_back_unbegun(bench: Bench) -> None:
    """How long a batch takes is known from the ranges before."""
    bench.runner.set_rate(8, 10, 0.3)  # 33 s a batch
    round_id = bench.start(100, window_s=25)
    assert bench.runner.run(round_id, 1) == "0 of 100 nonces"
    assert bench.engine.batches == []
    assert bench.store.status(round_id).ranges_returned == 1
    assign(bench.store, round_id, 100)
    assert bench.store.outstanding([round_id])[0].attempts == 0


def test_a_range_given_to_another_gpu_is_left_within_one_batch(bench: Bench) -> None:
    """This worker was thought dead; the other one counts on."""
    round_id = bench.start(200)

    def take_away(batch: int) -> None:
        if batch == 3:
            wait_until(lambda: bench.store.status(round_id).batches == 2)
            bench.store.release_range(round_id, 1, failed=True)
            assign(bench.store, round_id, 200, queue="gpu1")

    bench.engine.on_batch = take_away
    assert bench.runner.run(round_id, 1) == "20 of 200 nonces"
    assert len(bench.engine.batches) <= 4
    bench.engine.on_batch = lambda _: None
    bench.new_runner().run(round_id, 2)
    _check_complete(bench, round_id, 200)


# Draining


def test_draining_commits_what_is_computed_and_hands_the_rest_back(bench: Bench) -> None:
    """Another worker takes it from there, and nothing is computed twice."""
    round_id = bench.start(100)

    def drain(batch: int) -> None:
        if batch == 3:
            bench.runner.drain()

    bench.engine.on_batch = drain
    assert bench.runner.run(round_id, 1) == "30 of 100 nonces"
    assert bench.runner.draining
    assert bench.runner.wait_idle(0.0)
    assert bench.store.outstanding([round_id]) == []
    status = check_books(bench.store, round_id)
    assert (status.checked, status.ranges_returned) == (30, 1)
    rest = assign(bench.store, round_id, 100)
    assert (rest.start, rest.stop) == (30, 100)
    bench.new_runner().run(round_id, rest.range_id)
    assert len(bench.engine.batches) == 10
    _check_complete(bench, round_id, 100)


def test_a_draining_runner_hands_back_what_it_is_given(bench: Bench) -> None:
    """A message that was on its way is not lost, nor is it a failure of its nonces."""
    round_id = bench.start(100)
    bench.runner.drain()
    assert bench.runner.run(round_id, 1) == "0 of 100 nonces"
    assert bench.engine.batches == []
    for _ in range(2 * MAX_ATTEMPTS):
        out = assign(bench.store, round_id, 100)
        assert (out.start, out.stop) == (0, 100)
        bench.runner.run(round_id, out.range_id)
    assert bench.store.status(round_id).abandoned == 0


@contextmanager
def _running(bench: Bench, round_id: str) -> Iterator[Future[str]]:
    """Run range 1 in another thread, from its first batch on."""
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(bench.runner.run, round_id, 1)
        wait_until(lambda: bench.engine.batches)
        yield running


def test_wait_idle_says_whether_the_work_is_done(bench: Bench) -> None:
    """It waits for the batch at hand, for as long as it may."""
    round_id = bench.start(100)
    go_on = threading.Event()
    bench.engine.on_batch = lambda _: _wait_for(go_on)
    with _running(bench, round_id) as running:
        assert not bench.runner.wait_idle(0.02)
        bench.runner.drain()
        go_on.set()
        assert bench.runner.wait_idle(PATIENCE_S)
        running.result(timeout=120)
    assert check_books(bench.store, round_id).checked in {0, 10}


def _wait_for(event: threading.Event) -> None:
    """Wait for an event that has to come."""
    assert event.wait(PATIENCE_S)


# Redis goes away


class LosingStore(RoundStore):
    """A store whose way back fails: chosen commits are done, or not, and the reply is lost."""

    def __init__(self, inner: RoundStore) -> None:
        super().__init__(inner.client, inner.url)
        self.calls = 0
        #: Calls by number: True loses the reply of what was done, False the call itself.
        self.lost: dict[int, bool] = {}
        self.refuse: Exception | None = None
        self.failure: Exception = StoreUnavailable("the connection broke")

    @override
    def commit_batch(self, batch: BatchCommit) -> CommitResult:
        self.calls += 1
        if self.refuse is not None:
            raise self.refuse
        done = self.lost.get(self.calls)
        if done is None:
            return super().commit_batch(batch)
        if done:
            super().commit_batch(batch)
        raise self.failure


@pytest.mark.parametrize("failure", [StoreReadOnly("full"), StoreForbidden("no rights")])
def test_commits_wait_for_a_redis_that_refuses(bench: Bench, failure: StoreError) -> None:
    """Also where an operator has to mend it: the model stays loaded and nothing is lost."""
    store = LosingStore(bench.store)
    store.failure, store.lost = failure, dict.fromkeys((2, 3, 4), False)
    round_id = bench.start(30)
    assert bench.new_runner(store=store).run(round_id, 1) == "30 of 30 nonces"
    _check_complete(bench, round_id, 30)


@pytest.mark.parametrize(
    "lost",
    [{1: True}, {4: True}, {10: True}, {1: False}, {4: False}, {3: True, 4: False, 5: True}],
    ids=[
        "first reply",
        "middle reply",
        "last reply",
        "first call",
        "middle call",
        "again and again",
    ],
)
def test_a_lost_connection_neither_loses_nor_repeats_a_batch(
    bench: Bench, lost: dict[int, bool]
) -> None:
    """The commit is repeated until Redis answers; if it was done already, it does not count twice."""
    store = LosingStore(bench.store)
    store.lost = lost
    round_id = bench.start(100)
    bench.new_runner(store=store).run(round_id, 1)
    assert store.calls == 10 + len(lost)
    _check_complete(bench, round_id, 100)
    assert [batch[0] for batch in bench.engine.batches] == list(range(0, 100, 10))


def test_what_redis_forgot_in_a_power_cut_is_computed_again(bench: Bench) -> None:
    """It lost its last second: the runner goes back to where the store stands."""
    round_id = bench.start(100)
    saved: dict[bytes, bytes] = {}
    with redis.Redis.from_url(bench.backend.url) as plain:

        def cut_power(batch: int) -> None:
            if batch == 3:
                wait_until(lambda: bench.store.status(round_id).batches == 2)
                saved.update({key: plain.dump(key) for key in plain.keys("*")})
            if batch == 6:
                wait_until(lambda: bench.store.status(round_id).batches == 5)
                for key in plain.keys("*"):
                    plain.delete(key)
                for key, value in saved.items():
                    plain.restore(key, 0, value)

        bench.engine.on_batch = cut_power
        bench.runner.run(round_id, 1)
    starts = [batch[0] for batch in bench.engine.batches]
    assert starts[:6] == [0, 10, 20, 30, 40, 50]
    assert 20 in starts[6:8], "it went back at once"
    assert starts[-1] == 90
    _check_complete(bench, round_id, 100)


def test_a_refused_commit_gives_the_range_back(bench: Bench) -> None:
    """Redis is there and says no: nothing to wait for, and no failure of the engine."""
    store = LosingStore(bench.store)
    store.refuse = StoreError("WRONGTYPE")
    round_id = bench.start(100)
    said = bench.new_runner(store=store).run(round_id, 1)
    assert said == "not counted: WRONGTYPE"
    assert bench.store.outstanding([round_id]) == []
    assert (bench.store.status(round_id).ranges_returned, bench.broken) == (1, [])
    bench.runner.run(round_id, assign(bench.store, round_id, 100).range_id)
    _check_complete(bench, round_id, 100)


def test_a_refused_last_commit_leaves_what_was_counted_before(bench: Bench) -> None:
    """The range goes back from there on, and the worker's count has the rest."""
    store = LosingStore(bench.store)
    round_id = bench.start(100)

    def refuse_last(batch: int) -> None:
        if batch == 10:
            wait_until(lambda: bench.store.status(round_id).batches == 9)
            store.refuse = StoreError("WRONGTYPE")

    bench.engine.on_batch = refuse_last
    runner = bench.new_runner(store=store)
    assert runner.run(round_id, 1) == "not counted: WRONGTYPE"
    assert check_books(bench.store, round_id).checked == 90
    assert runner.stats().checked == 90
    rest = assign(bench.store, round_id, 100)
    assert (rest.start, rest.stop) == (90, 100)


class SlowStore(RoundStore):
    """A store whose last commit of range 1 waits until it is let go."""

    def __init__(self, inner: RoundStore, last: int) -> None:
        super().__init__(inner.client, inner.url)
        self.waits, self.go_on = threading.Event(), threading.Event()
        self._last = last

    @override
    def commit_batch(self, batch: BatchCommit) -> CommitResult:
        if batch.range_id == 1 and batch.stop == self._last:
            self.waits.set()
            _wait_for(self.go_on)
        return super().commit_batch(batch)


def test_the_engine_goes_on_with_the_next_range_while_the_last_commit_is_under_way(
    bench: Bench,
) -> None:
    """It does not stand idle for a slow Redis; the range is held until that commit is done."""
    store = SlowStore(bench.store, 20)
    runner = bench.new_runner(store=store)
    round_id = bench.start(20, max_nonces=50)
    assign(bench.store, round_id, 30)
    with ThreadPoolExecutor(2) as threads:
        try:
            first = threads.submit(runner.run, round_id, 1)
            assert store.waits.wait(PATIENCE_S)
            second = threads.submit(runner.run, round_id, 2)
            wait_until(lambda: len(bench.engine.batches) == 3, message="the next range begins")
            assert bench.engine.batches[2][0] == 20
            assert not first.done()
            assert runner.stats().held == {f"{round_id}:1", f"{round_id}:2"}
            assert bench.store.status(round_id).checked == 10
        finally:
            store.go_on.set()
        assert first.result(timeout=120) == "20 of 20 nonces"
        assert second.result(timeout=120) == "30 of 30 nonces"
    assert not bench.engine.overlapped
    assert runner.stats().checked == 50
    assert bench.store.coverage(round_id) == [(0, 50)]
    assert bench.store.status(round_id).state is RoundState.COMPLETED


def test_a_range_taken_back_before_its_last_commit_counts_without_it(bench: Bench) -> None:
    """Another GPU does the rest; nothing is counted twice, and nothing given back twice."""
    store = SlowStore(bench.store, 20)
    runner = bench.new_runner(store=store)
    round_id = bench.start(20)
    with ThreadPoolExecutor(1) as threads:
        try:
            running = threads.submit(runner.run, round_id, 1)
            assert store.waits.wait(PATIENCE_S)
            bench.store.release_range(round_id, 1, failed=True)
            other = assign(bench.store, round_id, 20)
            assert (other.start, other.stop) == (10, 20)
        finally:
            store.go_on.set()
        assert running.result(timeout=120) == "10 of 20 nonces"
    assert runner.stats().checked == 10
    (out,) = bench.store.outstanding([round_id])
    assert out.range_id == other.range_id
    bench.runner.run(round_id, other.range_id)
    assert check_books(bench.store, round_id).checked == 20


def test_a_range_outlasts_a_restart_of_redis(own_backend: Backend, own_redis: RedisServer) -> None:
    """Stopped in the middle of a range: the runner waits, and goes on when it is back."""
    bench = Bench(own_backend)
    round_id = bench.start(100)
    with ThreadPoolExecutor(1) as threads:

        def restart(batch: int) -> None:
            if batch == 4:
                wait_until(lambda: bench.store.status(round_id).batches == 3)
                own_redis.stop()
            if batch == 5:
                # The commit of the fourth fails meanwhile.
                threads.submit(own_redis.ensure).result(timeout=120)

        bench.engine.on_batch = restart
        bench.runner.run(round_id, 1)
    _check_complete(bench, round_id, 100)
    bench.close()


def test_draining_does_not_wait_for_a_redis_that_is_away(
    own_backend: Backend, own_redis: RedisServer
) -> None:
    """SIGTERM during an outage ends the worker; the scheduler finds its range when Redis is back."""
    bench = Bench(own_backend)
    round_id = bench.start(100)

    def stop_and_drain(batch: int) -> None:
        if batch == 3:
            wait_until(lambda: bench.store.status(round_id).batches == 2)
            own_redis.stop()
            bench.runner.drain()

    bench.engine.on_batch = stop_and_drain
    bench.runner.run(round_id, 1)
    assert bench.runner.wait_idle(0.0)
    assert len(bench.engine.batches) <= 4
    own_redis.ensure()
    (out,) = bench.store.outstanding([round_id])
    assert out.done == 20
    assert check_books(bench.store, round_id).checked == 20
    bench.close()


# The engine fails


def _fail(message: str) -> Callable[[int], None]:
    def fail(_: int) -> None:
        raise RuntimeError(message)

    return fail


def test_a_failing_engine_gives_the_range_back_as_failed(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """With what was computed before committed and counted, and the error for `pocqueue gpus`."""
    round_id = bench.start(100)

    def fail_third(batch: int) -> None:
        if batch == 3:
            raise RuntimeError("CUDA error: out of memory")

    bench.engine.on_batch = fail_third
    with caplog.at_level(logging.ERROR):
        assert bench.runner.run(round_id, 1) == "failed: CUDA error: out of memory"
    assert "CUDA error" in caplog.text
    stats = bench.runner.stats()
    assert stats.last_error == "RuntimeError: CUDA error: out of memory"
    assert (stats.checked, stats.failures, stats.held) == (20, 1, set())
    assert check_books(bench.store, round_id).checked == 20
    rest = assign(bench.store, round_id, 100)
    assert rest.start == 20
    (out,) = bench.store.outstanding([round_id])
    assert out.attempts == 1
    bench.runner.run(round_id, rest.range_id)
    _check_complete(bench, round_id, 100)


def test_after_three_failures_in_a_row_the_worker_is_told_once(bench: Bench) -> None:
    """And the nonces are given up after their own limit."""
    round_id = bench.start(100)
    bench.engine.on_batch = _fail("broken")
    for attempt in range(MAX_ATTEMPTS):
        range_id = 1 if attempt == 0 else assign(bench.store, round_id, 100).range_id
        bench.runner.run(round_id, range_id)
        assert len(bench.broken) == (attempt >= MAX_FAILURES - 1)
    assert "failed 3 times in a row" in bench.broken[0]
    assert "broken" in bench.broken[0]
    status = bench.store.status(round_id)
    assert (status.abandoned, status.checked) == (100, 0)
    assert status.state is RoundState.FAILED


def test_an_engine_that_says_what_it_cannot_do_is_not_broken(bench: Bench) -> None:
    """A round that asks for too much does not end the worker; it is told, and does not count."""

    def refuse(_: int) -> None:
        raise EngineError("a batch of 10 does not fit")

    def run() -> str:
        return bench.runner.run(bench.start(100), 1)

    bench.engine.on_batch = refuse
    for _ in range(2 * MAX_FAILURES):
        assert run() == "failed: a batch of 10 does not fit"
    stats = bench.runner.stats()
    assert (stats.failures, bench.broken) == (0, [])
    assert stats.last_error == "EngineError: a batch of 10 does not fit"
    for count in range(1, MAX_FAILURES):
        bench.engine.on_batch = _fail("broken")
        run()
        bench.engine.on_batch = refuse
        run()
        assert (bench.runner.stats().failures, bench.broken) == (count, [])
    bench.engine.on_batch = _fail("broken")
    run()
    assert len(bench.broken) == 1
    bench.engine.on_batch = refuse
    run()
    assert len(bench.broken) == 1, "it is told once"


def test_a_pass_that_does_not_fit_is_learned(bench: Bench) -> None:
    """The next may have half as many tokens at most, and the heartbeat says so."""

    def full(_: int) -> None:
        raise PassTooLarge("a batch of 10 x 8 does not fit")

    bench.engine.on_batch = full
    member = Member(make_gpu(info=make_info(max_pass_tokens=1000)))
    assert member.record(bench.runner.stats()).info.max_pass_tokens == 1000
    bench.runner.run(bench.start(100), 1)
    assert member.record(bench.runner.stats()).info.max_pass_tokens == 40
    bench.runner.run(bench.start(100, batch_size=100), 1)
    assert member.record(bench.runner.stats()).info.max_pass_tokens == 40
    assert bench.broken == []


def test_a_server_that_is_away_costs_the_worker_not_the_nonces(bench: Bench) -> None:
    """Its ranges go back unharmed however often; a worker whose server stays away ends."""

    def away(_: int) -> None:
        raise EngineUnavailable("the server does not answer")

    round_id = bench.start(100)
    bench.engine.on_batch = away
    for attempt in range(2 * MAX_ATTEMPTS):
        range_id = 1 if attempt == 0 else assign(bench.store, round_id, 100).range_id
        bench.runner.run(round_id, range_id)
    assert len(bench.broken) == 1
    status = bench.store.status(round_id)
    assert (status.abandoned, status.state) == (0, RoundState.ACTIVE)
    bench.engine.on_batch = lambda _: None
    bench.runner.run(round_id, assign(bench.store, round_id, 100).range_id)
    _check_complete(bench, round_id, 100)


def test_a_success_in_between_starts_the_count_of_failures_anew(bench: Bench) -> None:
    """Only failures in a row mean that the device is gone."""
    round_id = bench.start(10, max_nonces=None)
    for _ in range(3):
        for _ in range(MAX_FAILURES - 1):
            bench.engine.on_batch = _fail("now and then")
            bench.runner.run(round_id, bench.store.outstanding([round_id])[0].range_id)
            assign(bench.store, round_id, 10)
        bench.engine.on_batch = lambda _: bench.clock.add(0.1)
        bench.runner.run(round_id, bench.store.outstanding([round_id])[0].range_id)
        assign(bench.store, round_id, 10)
    assert bench.broken == []


def test_an_engine_that_returns_too_few_distances_has_failed(bench: Bench) -> None:
    """Nothing of such a batch is counted."""

    class Short(FakeEngine):
        @override
        def values(self, batch: Batch, upcoming: Batch | None = None) -> list[Any]:
            return super().values(batch, upcoming)[:-1]

    round_id = bench.start(100)
    said = bench.new_runner(engine=Short()).run(round_id, 1)
    assert said.startswith("failed: ")
    assert check_books(bench.store, round_id).checked == 0
    assert bench.store.status(round_id).ranges_returned == 1


# Two threads


def test_a_range_delivered_twice_at_once_is_searched_once(bench: Bench) -> None:
    """The second delivery ends at once; the first goes on."""
    round_id = bench.start(50)
    go_on = threading.Event()
    bench.engine.on_batch = lambda _: _wait_for(go_on)
    with _running(bench, round_id) as first:
        assert bench.runner.run(round_id, 1) == "delivered twice; already at work on it"
        assert bench.runner.stats().held == {f"{round_id}:1"}
        go_on.set()
        assert first.result(timeout=120) == "50 of 50 nonces"
    assert len(bench.engine.batches) == 5
    _check_complete(bench, round_id, 50)


def test_two_workers_with_the_same_range_count_it_once(bench: Bench) -> None:
    """A message that two processes got: whoever is behind goes on from the other's mark."""
    round_id = bench.start(300)
    engines = [FakeEngine(), FakeEngine()]
    runners = [bench.new_runner(engine=engine) for engine in engines]
    with ThreadPoolExecutor(2) as threads:
        for future in [threads.submit(runner.run, round_id, 1) for runner in runners]:
            future.result(timeout=120)
    _check_complete(bench, round_id, 300)


def test_threads_share_the_engine_one_pass_at_a_time(bench: Bench) -> None:
    """Two task threads, eight ranges: never two forward passes at once, everything counted."""
    round_id = bench.store.create(make_spec(max_nonces=800))
    ids = [assign(bench.store, round_id, 100).range_id for _ in range(8)]
    with ThreadPoolExecutor(2) as threads:
        said = list(threads.map(lambda range_id: bench.runner.run(round_id, range_id), ids))
    assert said == ["100 of 100 nonces"] * 8
    assert not bench.engine.overlapped
    status = check_books(bench.store, round_id)
    assert (status.state, status.checked) == (RoundState.COMPLETED, 800)
    assert sorted(proofs(bench.store, round_id)) == valid_below(1.0, range(800))


def test_both_ranges_of_a_worker_are_held(bench: Bench) -> None:
    """The one that runs and the one that waits, as the heartbeat tells the scheduler."""
    round_id = bench.store.create(make_spec(max_nonces=200))
    for _ in range(2):
        assign(bench.store, round_id, 100)
    go_on = threading.Event()
    bench.engine.on_batch = lambda _: _wait_for(go_on)
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(bench.runner.run, round_id, i) for i in (1, 2)]
        wait_until(lambda: bench.runner.stats().held == {f"{round_id}:1", f"{round_id}:2"})
        go_on.set()
        for future in futures:
            future.result(timeout=120)
    assert bench.runner.stats().held == set()
    assert check_books(bench.store, round_id).checked == 200


def test_the_engine_is_told_what_comes_next(bench: Bench) -> None:
    """Batch by batch, across the border to a range that waits; nothing where nothing waits."""
    round_id = bench.store.create(make_spec(max_nonces=45))
    for size in (20, 25):
        assign(bench.store, round_id, size)
    go_on = threading.Event()
    bench.engine.on_batch = lambda _: _wait_for(go_on)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(bench.runner.run, round_id, 1)
        wait_until(lambda: bench.engine.batches)
        second = threads.submit(bench.runner.run, round_id, 2)
        bench.wait_for_one_that_waits()
        go_on.set()
        for future in (first, second):
            future.result(timeout=120)
    told = [list(batch.nonces) if batch else None for batch in bench.engine.upcoming]
    assert told == [*bench.engine.batches[1:], None]
    batch = bench.engine.upcoming[0]
    assert batch is not None
    spec = make_spec()
    assert (batch.block_hash, batch.public_key) == (spec.block_hash, spec.public_key)
    assert (batch.batch_size, batch.seq_len) == (spec.batch_size, spec.seq_len)


def test_the_gap_between_two_ranges_is_measured(bench: Bench) -> None:
    """Where the second one waited; what the scheduler took to send one is none of it."""
    round_id = bench.store.create(make_spec(max_nonces=60))
    for _ in range(3):
        assign(bench.store, round_id, 20)
    go_on = threading.Event()

    def on_batch(_number: int) -> None:
        bench.clock.add(1)
        _wait_for(go_on)

    bench.engine.on_batch = on_batch
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(bench.runner.run, round_id, 1)
        wait_until(lambda: bench.engine.batches)
        second = threads.submit(bench.runner.run, round_id, 2)
        bench.wait_for_one_that_waits()
        go_on.set()
        for future in (first, second):
            future.result(timeout=120)
    bench.clock.add(100)
    bench.runner.run(round_id, 3)
    gaps = bench.runner.stats().gaps
    assert (sum(gaps.counts), gaps.sum_s) == (1, 0)


# Rates and load


def test_the_rate_of_a_shape_is_measured_and_smoothed(bench: Bench) -> None:
    """Nonces over seconds; each range counts as much as all before it."""
    round_id = bench.store.create(make_spec(window_s=3600))

    def take(seconds: float) -> None:
        bench.engine.on_batch = lambda _: bench.clock.add(seconds)
        bench.runner.run(round_id, assign(bench.store, round_id, 100).range_id)

    take(0.5)
    assert bench.runner.stats().rates == {SHAPE: pytest.approx(20.0)}
    take(0.25)
    assert bench.runner.stats().rates == {SHAPE: pytest.approx(30.0)}


def test_a_warm_up_sets_the_rate_that_other_shapes_are_estimated_from(bench: Bench) -> None:
    """It stays first among the rates, whatever is measured later."""
    bench.runner.set_rate(256, 32, 64.0)
    bench.engine.on_batch = lambda _: bench.clock.add(1)
    bench.runner.run(bench.start(20), 1)
    assert list(bench.runner.stats().rates) == [shape_key(256, 32), SHAPE]


def test_busy_time_is_that_of_the_engine_and_includes_what_runs(bench: Bench) -> None:
    """The heartbeat makes the load of it."""
    seen: list[float] = []

    def pass_time(_: int) -> None:
        bench.clock.add(2)
        seen.append(bench.runner.stats().busy_s)

    bench.engine.on_batch = pass_time
    bench.runner.run(bench.start(30), 1)
    assert seen == [2.0, 4.0, 6.0]
    bench.clock.add(100)
    assert bench.runner.stats().busy_s == 6.0


def test_the_time_of_the_forward_pass_at_hand_is_known(bench: Bench) -> None:
    """From its own beginning on, and nothing between two, also after one that failed."""
    seen: list[float] = []

    def pass_time(batch: int) -> None:
        assert bench.runner.stats().pass_s == 0.0
        bench.clock.add(batch)
        seen.append(bench.runner.stats().pass_s)
        if batch == 3:
            raise RuntimeError("broken")

    bench.engine.on_batch = pass_time
    assert bench.runner.stats().pass_s == 0.0
    bench.runner.run(bench.start(100), 1)
    assert seen == [1.0, 2.0, 3.0]
    bench.clock.add(100)
    assert bench.runner.stats().pass_s == 0.0


def test_stats_are_a_copy(bench: Bench) -> None:
    """Reading them changes nothing."""
    stats = bench.runner.stats()
    stats.held.add("x")
    stats.rates["y"] = 1.0
    assert bench.runner.stats().held == set()
    assert bench.runner.stats().rates == {}
