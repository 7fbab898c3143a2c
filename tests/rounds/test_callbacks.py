"""The callbacks on a real Redis: what is due, under a lease, from the first unconfirmed proof on."""

from __future__ import annotations

from typing import Any

import pytest

from pocqueue.poc.backoff import Backoff
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.callbacks import Callbacks, CallbackTimings
from pocqueue.rounds.spec import RoundState
from pocqueue.rounds.store import START, Keys
from tests.support.factories import make_spec
from tests.support.rounds import find, pass_deadline, redis_ms, round_with_proofs
from tests.support.waiting import wait_until

GRACE_S = 60.0


def _round(backend: Backend, num_valid: int = 1) -> str:
    return round_with_proofs(backend, num_valid, callback_url="http://receiver/")


def _cursors(backend: Backend, round_id: str) -> list[str]:
    return [e.cursor for e in backend.store.iter_proofs(backend.store.status(round_id))]


def _claim(backend: Backend) -> tuple[str, str]:
    (claimed,) = backend.callbacks.claim_due(GRACE_S)
    return claimed


def _waiting(backend: Backend) -> set[str]:
    members: Any = backend.client.smembers(Keys.CALLBACKS)
    return set(members)


def test_a_round_with_proofs_is_claimed_once(backend: Backend) -> None:
    """While one task holds the lease, no other gets it."""
    round_id = _round(backend)
    claimed_id, token = _claim(backend)
    assert claimed_id == round_id
    assert backend.callbacks.progress(round_id).lease == token
    assert backend.callbacks.claim_due(GRACE_S) == []


def test_rounds_without_url_or_without_proofs_are_not_claimed(backend: Backend) -> None:
    """There is nothing to send, yet or ever."""
    backend.store.create(make_spec())
    quiet = _round(backend, num_valid=0)
    assert backend.callbacks.claim_due(GRACE_S) == []
    assert _waiting(backend) == {quiet}


def test_the_cursor_moves_only_with_what_the_receiver_took(backend: Backend) -> None:
    """A failure leaves it where it was."""
    round_id = _round(backend, num_valid=3)
    cursors = _cursors(backend, round_id)
    _, token = _claim(backend)
    assert backend.callbacks.progress(round_id).cursor == START
    assert backend.callbacks.delivered(round_id, token, cursors[1], 2)
    progress = backend.callbacks.progress(round_id)
    assert (progress.cursor, progress.delivered) == (cursors[1], 2)
    assert backend.callbacks.failed(round_id, token, 0, "HTTP 503")
    progress = backend.callbacks.progress(round_id)
    assert (progress.cursor, progress.delivered) == (cursors[1], 2)
    assert (progress.attempts, progress.error, progress.lease) == (1, "HTTP 503", "")


def test_a_success_noted_twice_counts_once(backend: Backend) -> None:
    """A lost reply must not make us believe that all is delivered."""
    round_id = _round(backend, num_valid=4)
    cursors = _cursors(backend, round_id)
    _, token = _claim(backend)
    for _ in range(2):
        assert backend.callbacks.delivered(round_id, token, cursors[1], 2)
    assert backend.callbacks.progress(round_id).delivered == 2
    assert backend.callbacks.delivered(round_id, token, cursors[3], 2)
    assert backend.callbacks.progress(round_id).delivered == 4


def test_the_cursor_does_not_go_back(backend: Backend) -> None:
    """Stream ids are pairs of numbers, and what lies before the cursor is counted."""
    round_id = _round(backend)
    _, token = _claim(backend)
    for cursor, is_new in (("5-9", 1), ("5-10", 1), ("5-9", 0), ("4-11", 0), ("10-0", 1)):
        before = backend.callbacks.progress(round_id)
        assert backend.callbacks.delivered(round_id, token, cursor, 1)
        after = backend.callbacks.progress(round_id)
        assert after.delivered == before.delivered + is_new
        assert after.cursor == (cursor if is_new else before.cursor)


def test_only_one_run_of_a_task_takes_its_lease(backend: Backend) -> None:
    """That one as often as it asks; and not one whose lease was given to another task."""
    round_id = _round(backend)
    _, token = _claim(backend)
    assert [backend.callbacks.take(round_id, token, own) for own in ("a", "b", "a")] == [1, 0, 1]
    assert not backend.callbacks.finish(round_id, token)
    assert backend.callbacks.finish(round_id, "a")
    for task in (token, "a", ""):
        assert not backend.callbacks.take(round_id, task, "a")
    assert not backend.callbacks.take("never claimed", "", "a")


def test_without_the_lease_nothing_is_noted(backend: Backend) -> None:
    """A task that was too slow cannot move the cursor of the one that took over."""
    round_id = _round(backend)
    (cursor,) = _cursors(backend, round_id)
    _claim(backend)
    before = backend.callbacks.progress(round_id)
    assert not backend.callbacks.delivered(round_id, "stale", cursor, 1)
    assert not backend.callbacks.failed(round_id, "stale", 0, "late")
    assert not backend.callbacks.finish(round_id, "stale")
    assert not backend.callbacks.finish("never claimed", "stale")
    assert backend.callbacks.progress(round_id) == before


def test_a_lease_that_is_not_renewed_goes_to_another_task(backend: Backend) -> None:
    """The io worker died; the next one begins at the first unconfirmed proof."""
    callbacks = Callbacks(backend.client, backend.url, backend.store, CallbackTimings(lease_ms=100))
    round_id = _round(backend, num_valid=2)
    first = _cursors(backend, round_id)[0]
    [(_, dead)] = callbacks.claim_due(GRACE_S)
    callbacks.delivered(round_id, dead, first, 1)
    claimed = wait_until(lambda: callbacks.claim_due(GRACE_S), message="the lease ran out")
    assert claimed[0][0] == round_id
    assert claimed[0][1] != dead
    assert callbacks.progress(round_id).cursor == first
    assert not callbacks.finish(round_id, dead)


def test_every_success_renews_the_lease(backend: Backend) -> None:
    """A long delivery is not taken away while it gets on."""
    callbacks = Callbacks(
        backend.client, backend.url, backend.store, CallbackTimings(lease_ms=30_000)
    )
    round_id = _round(backend, num_valid=2)
    _, token = _claim(backend)
    key = Keys.of_round(round_id, "callback")
    backend.client.hset(key, "lease_ms", str(redis_ms(backend) + 5))
    callbacks.delivered(round_id, token, _cursors(backend, round_id)[0], 1)
    left_ms = callbacks.progress(round_id).lease_ms - redis_ms(backend)
    assert 25_000 < left_ms <= 30_000


def test_after_a_failure_it_is_due_again_when_the_backoff_is_over(backend: Backend) -> None:
    """Not before, and by itself."""
    callbacks = Callbacks(backend.client, backend.url, backend.store, CallbackTimings(first_ms=300))
    round_id = _round(backend)
    [(_, token)] = callbacks.claim_due(GRACE_S)
    failed_ms = redis_ms(backend)
    callbacks.failed(round_id, token, 0, "no")
    assert wait_until(lambda: callbacks.claim_due(GRACE_S), message="it is due again")
    assert redis_ms(backend) - failed_ms >= 299


@pytest.mark.parametrize(
    ("attempts", "wait_ms"),
    [(0, 500), (1, 1000), (2, 2000), (4, 8000), (5, 15_000), (9000, 15_000)],
)
def test_the_backoff_doubles_up_to_its_limit(backend: Backend, attempts: int, wait_ms: int) -> None:
    """From half a second to fifteen."""
    assert CallbackTimings().pause_ms(attempts) == wait_ms


def test_a_success_forgets_the_failures_before_it(backend: Backend) -> None:
    """The next failure waits the shortest time again."""
    round_id = _round(backend)
    for attempts in range(3):
        backend.client.hset(Keys.of_round(round_id, "callback"), "next_ms", "0")
        _, token = _claim(backend)
        backend.callbacks.failed(round_id, token, attempts, "no")
    assert backend.callbacks.progress(round_id).attempts == 3
    backend.client.hset(Keys.of_round(round_id, "callback"), "next_ms", "0")
    _, token = _claim(backend)
    backend.callbacks.delivered(round_id, token, _cursors(backend, round_id)[0], 1)
    progress = backend.callbacks.progress(round_id)
    assert (progress.attempts, progress.error) == (0, "")


def test_a_finished_delivery_is_due_again_with_the_next_proof(backend: Backend) -> None:
    """The round goes on, and so do its callbacks, at once."""
    round_id = _round(backend)
    _, token = _claim(backend)
    backend.callbacks.delivered(round_id, token, _cursors(backend, round_id)[0], 1)
    assert backend.callbacks.finish(round_id, token)
    assert backend.callbacks.claim_due(GRACE_S) == []
    assert _waiting(backend) == {round_id}
    find(backend, round_id, 1, 1)
    assert _claim(backend)[0] == round_id


def test_an_ended_round_is_not_looked_at_again_once_all_is_delivered(backend: Backend) -> None:
    """And not before."""
    round_id = _round(backend)
    pass_deadline(backend, round_id)
    _, token = _claim(backend)
    assert _waiting(backend) == {round_id}
    backend.callbacks.delivered(round_id, token, _cursors(backend, round_id)[0], 1)
    backend.callbacks.finish(round_id, token)
    assert backend.callbacks.claim_due(GRACE_S) == []
    assert _waiting(backend) == set()


def test_after_its_grace_time_a_round_is_given_up(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver that is gone for good does not keep a round for ever; what that costs is said once, and counted."""
    round_id = _round(backend)
    backend.store.close(round_id, RoundState.STOPPED, "")
    key = Keys.of_round(round_id, "round")
    backend.client.hset(key, "ended_ms", str(redis_ms(backend) - 59_000))
    _, token = _claim(backend)
    backend.client.hset(key, "ended_ms", str(redis_ms(backend) - 61_000))
    # A task is at work.
    assert backend.callbacks.claim_due(GRACE_S) == []
    assert _waiting(backend) == {round_id}
    backend.callbacks.failed(round_id, token, 0, "HTTP 503")
    for _ in range(2):
        assert backend.callbacks.claim_due(GRACE_S) == []
    assert _waiting(backend) == set()
    said = f"Round {round_id}: 1 nonce not taken by the callback receiver in time, and not sent any more: HTTP 503"
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        said
    ]
    assert backend.client.hget(Keys.METRICS, "callbacks_given_up") == "1"


def test_what_is_put_aside_is_tried_before_its_time_is_over(backend: Backend) -> None:
    """Once, whatever pause it is in."""
    timings = CallbackTimings(refusals=Backoff(600, 600))
    callbacks = Callbacks(backend.client, backend.url, backend.store, timings)
    round_id = _round(backend)
    _, token = _claim(backend)
    assert callbacks.put_aside(round_id, token, _cursors(backend, round_id)[0], 1)
    callbacks.finish(round_id, token)
    backend.store.close(round_id, RoundState.STOPPED, "")
    assert callbacks.claim_due(GRACE_S) == []
    key = Keys.of_round(round_id, "round")
    backend.client.hset(key, "ended_ms", str(redis_ms(backend) - 50_000))
    [(_, token)] = callbacks.claim_due(GRACE_S)
    [batch] = callbacks.due_again(round_id, 10)
    assert callbacks.refused_again(round_id, token, batch)
    callbacks.finish(round_id, token)
    assert callbacks.due_again(round_id, 10) == []
    assert callbacks.claim_due(GRACE_S) == []
    assert _waiting(backend) == {round_id}


def test_a_vanished_round_is_not_looked_at_again(backend: Backend) -> None:
    """Its record expired; the others are claimed all the same."""
    gone, there = _round(backend), _round(backend)
    backend.client.delete(Keys.of_round(gone, "round"))
    assert _claim(backend)[0] == there
    assert _waiting(backend) == {there}
