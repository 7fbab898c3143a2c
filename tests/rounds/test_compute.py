"""Given nonces, computed by a pool ahead of what it searches, and nothing left behind."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pocqueue.errors import InvalidRound, NoLiveGpu
from pocqueue.poc.artifact.data import encode
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.compute import Computation
from pocqueue.rounds.spec import MAX_GIVEN, RoundState
from tests.support.factories import make_spec
from tests.support.fake_engine import FakeEngine
from tests.support.live_pool import live_pool
from tests.support.rounds import compute
from tests.support.waiting import wait_until

SEARCH: dict[str, Any] = {
    "scheme": "artifact",
    "block_hash": "block-1",
    "public_key": "key-1",
    "seq_len": 8,
    "batch_size": 10,
    "k_dim": 4,
}
HOW: dict[str, Any] = SEARCH | {"asked_by": "a test", "timeout_s": 60.0}


def artifact_of(nonce: int) -> str:
    """Return the artifact that the engine makes for a nonce."""
    [text] = encode([[nonce % 7, nonce % 11, nonce % 13, 1.0]])
    return text


def some_nonces(num: int) -> list[int]:
    """Return nonces of all sizes in no order, the largest that there is among them."""
    found = random.Random(num).sample(range(2**31 - 1), num - 1)  # noqa: S311 - it is to repeat
    return [*found[: num // 2], 2**31 - 1, *found[num // 2 :]]


def test_given_nonces_are_computed_and_no_others(backend: Backend) -> None:
    """By two GPUs, each nonce once, with the values of an engine; the round is over, and says who asked."""
    nonces, engines = some_nonces(205), [FakeEngine(artifact_of), FakeEngine(artifact_of)]
    with live_pool(backend, *engines):
        values, missing = compute(backend, nonces, **HOW)
    assert values == {nonce: artifact_of(nonce) for nonce in nonces}
    assert missing == ""
    done = [nonce for engine in engines for batch in engine.batches for nonce in batch]
    assert sorted(done) == sorted(nonces)
    [round_id] = backend.store.list_ids()
    status = backend.store.status(round_id)
    assert (status.state, status.checked, status.valid) == (RoundState.COMPLETED, 205, 205)
    assert status.spec.asked_by == "a test"
    assert backend.store.outstanding([round_id]) == []


def test_a_nonce_whose_value_is_broken_is_missing(backend: Backend) -> None:
    """The others are there, and nothing else is wrong."""
    engine = FakeEngine(lambda nonce: None if nonce == 5 else artifact_of(nonce))
    with live_pool(backend, engine):
        found = compute(backend, [7, 5, 6], **HOW)
    assert found == ({7: artifact_of(7), 6: artifact_of(6)}, "")


def test_what_is_given_goes_before_what_is_searched(backend: Backend) -> None:
    """A round that searches goes on meanwhile, and gets no batch between those of the given nonces."""
    begun = threading.Event()
    engine = FakeEngine(artifact_of, on_batch=lambda _: begun.set())
    search = make_spec().model_dump() | SEARCH | {"window_s": 600.0}
    del search["r_target"]
    with live_pool(backend, engine):
        searching = backend.store.create(type(make_spec()).build(**search))
        assert begun.wait(60)
        given = list(range(10**6, 10**6 + 200))
        found = compute(backend, given, **HOW)
        backend.store.close(searching, RoundState.STOPPED, "end of test")
    assert found.values.keys() == set(given)
    is_given = [batch[0] >= 10**6 for batch in engine.batches]
    first, last = is_given.index(True), len(is_given) - is_given[::-1].index(True)
    assert sum(is_given) == 20
    # Ranges here are of one batch; the search may have had one on its way.
    assert is_given[first:last].count(False) <= 2
    assert backend.store.status(searching).checked > 0


def test_a_stop_ends_it_at_once(backend: Backend) -> None:
    """What was computed by then is returned, and said to be not all."""
    release = threading.Event()

    def hang(number: int) -> None:
        if number > 2:
            release.wait(60)

    with live_pool(backend, FakeEngine(artifact_of, hang)), ThreadPoolExecutor() as pool:
        computation = Computation.start(backend, range(100), **HOW)
        waiting = pool.submit(computation.wait)
        wait_until(lambda: backend.store.status(computation.round_id).checked >= 20)
        computation.stop()
        found = waiting.result(60)
        release.set()
    assert found.values == {nonce: artifact_of(nonce) for nonce in range(20)}
    assert found.missing == "the round is stopped (not wanted any more)"
    assert backend.store.active_ids() == []


def test_an_exception_ends_it(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is: nobody waits for the round any more."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Computation, "wait", interrupted)
    with live_pool(backend, FakeEngine(artifact_of)), pytest.raises(KeyboardInterrupt):
        compute(backend, [1], **HOW)
    assert backend.store.active_ids() == []


def test_it_ends_at_its_deadline(backend: Backend) -> None:
    """Also where no worker ever answers; it says why."""
    release = threading.Event()

    def hang(_: int) -> None:
        release.wait(60)

    with live_pool(backend, FakeEngine(artifact_of, hang)):
        found = compute(backend, range(30), **HOW | {"timeout_s": 1.0})
        release.set()
    assert found.values == {}
    assert found.missing.startswith("its time was over")
    assert backend.store.active_ids() == []


def test_another_process_may_wait_for_it(backend: Backend) -> None:
    """By its id; asked for again it is not computed again."""
    engine = FakeEngine(artifact_of)
    round_id = "11111111-2222-4333-8444-555555555555"
    with live_pool(backend, engine):
        for _ in range(2):
            started = Computation.start(backend, [3, 1, 2], round_id=round_id, **HOW)
            assert started.round_id == round_id
            found = Computation(backend, round_id, 60.0).wait()
            assert found == ({n: artifact_of(n) for n in (1, 2, 3)}, "")
    assert engine.batches == [[3, 1, 2]]


def test_what_cannot_be_computed_is_refused_before_anything_is_started(backend: Backend) -> None:
    """No GPU, or nonces that cannot be."""
    with pytest.raises(NoLiveGpu):
        compute(backend, [1], **HOW)
    with live_pool(backend, FakeEngine(artifact_of)):
        for bad in ([], [1, 2, 1], [-1], [2**31], range(MAX_GIVEN + 1)):
            with pytest.raises(InvalidRound, match=r"^given_nonces is "):
                compute(backend, bad, **HOW)
    assert backend.store.list_ids() == []
