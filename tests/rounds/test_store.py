"""The store on a real Redis: each batch once, counters like the stream, nothing left behind."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pocqueue.errors import StoreError, UnknownRound
from pocqueue.poc.proofs import Proofs
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.records import AssignedRange, Assignment, BatchCommit, CommitResult, Outcome
from pocqueue.rounds.spec import RoundState
from pocqueue.rounds.store import KEEP_ENDED_MS, MAX_ATTEMPTS, START, Keys, RoundStore
from tests.support.factories import make_spec
from tests.support.rounds import (
    assign,
    assign_range,
    check_books,
    commit,
    keys_of,
    pass_deadline,
    proofs,
    redis_ms,
)
from tests.support.waiting import wait_until


@pytest.fixture
def store(backend: Backend) -> RoundStore:
    """The store of an empty Redis."""
    return backend.store


# Rounds


def test_a_new_round_is_active_with_everything_at_zero(store: RoundStore) -> None:
    """What was asked for is what is read, and the deadline is the window away."""
    spec = make_spec(window_s=12.5, max_nonces=77)
    round_id = store.create(spec)
    status = store.status(round_id)
    assert status.spec == spec
    assert status.state is RoundState.ACTIVE
    assert status.deadline_ms - status.created_ms == 12_500
    assert 0 < status.remaining_s <= 12.5
    counters = (status.checked, status.valid, status.batches, status.next_index, status.abandoned)
    assert counters == (0, 0, 0, 0, 0)
    assert status.vtime is None
    assert store.active_ids() == [round_id]
    assert store.list_ids() == [round_id]
    assert store.coverage(round_id) == []


def test_an_unknown_round_is_named(store: RoundStore) -> None:
    """Reading and closing say so; the rest has nothing to do."""
    with pytest.raises(UnknownRound, match="'nope' is not known"):
        store.status("nope")
    with pytest.raises(UnknownRound, match="'nope' is not known"):
        store.close("nope", RoundState.STOPPED, "")
    assert store.statuses(["nope"]) == []
    assert assign_range(store, "nope", "gpu0", "w", 10) is None
    assert store.open_range("nope", 1) is None
    assert commit(store, "nope", 1, 0, 10) == CommitResult(Outcome.CLOSED, 0)
    assert store.release_range("nope", 1, failed=True) == 0
    store.expire("nope")
    assert list(store.client.scan_iter(match="*nope*")) == []


def test_making_a_round_twice_leaves_the_first_as_it_is(store: RoundStore) -> None:
    """A client that repeats a call whose reply was lost does not reset a running round."""
    round_id = store.create(make_spec(), "the-id")
    out = assign(store, round_id, 10)
    commit(store, round_id, out.range_id, 0, 10, [3])
    before = store.status(round_id)
    assert store.create(make_spec(window_s=1), "the-id") == "the-id"
    after = store.status(round_id)
    assert (after.checked, after.valid, after.deadline_ms) == (10, 1, before.deadline_ms)
    assert assign(store, round_id, 10).start == 10


def test_a_round_is_closed_once(store: RoundStore) -> None:
    """The first end is the one that counts; later ones learn of it."""
    round_id = store.create(make_spec())
    assert store.close(round_id, RoundState.STOPPED, "enough") is RoundState.STOPPED
    ended = store.status(round_id)
    assert (ended.state, ended.reason) == (RoundState.STOPPED, "enough")
    assert ended.ended_ms > 0
    assert store.close(round_id, RoundState.FAILED, "other") is RoundState.STOPPED
    store.expire(round_id)
    assert (store.status(round_id).reason, store.active_ids()) == ("enough", [])


def test_whoever_reads_a_round_past_its_deadline_finds_it_expired(
    backend: Backend, store: RoundStore
) -> None:
    """No scheduler is needed for it, and stopping it then changes nothing."""
    read, stopped = store.create(make_spec()), store.create(make_spec())
    for round_id in (read, stopped):
        pass_deadline(backend, round_id)
    assert store.status(read).state is RoundState.EXPIRED
    assert store.close(stopped, RoundState.STOPPED, "") is RoundState.EXPIRED
    assert store.active_ids() == []


def test_a_round_that_begins_in_the_middle_is_over_when_the_rest_is_searched(
    backend: Backend,
) -> None:
    """What lies before was searched by others, and is not waited for."""
    store = backend.store
    round_id = store.create(make_spec(max_nonces=20), first_index=10)
    out = assign(store, round_id, 100)
    assert (out.start, out.stop) == (10, 20)
    commit(store, round_id, out.range_id, 10, 20, [])
    status = store.status(round_id)
    assert (status.state, status.checked) == (RoundState.COMPLETED, 10)


def test_on_a_full_redis_a_round_past_its_deadline_is_expired_too(own_backend: Backend) -> None:
    """That cannot be written down, but it is so; it is written down once there is room."""
    store, client = own_backend.store, own_backend.client
    due, active, stopped = (store.create(make_spec()) for _ in range(3))
    store.close(stopped, RoundState.STOPPED, "enough")
    pass_deadline(own_backend, due)
    client.config_set("maxmemory", 1)
    status = store.status(due)
    assert (status.state, status.ended_ms) == (RoundState.EXPIRED, status.deadline_ms)
    assert status.remaining_s == 0
    states = [s.state for s in store.statuses([active, due, "nope", stopped])]
    assert states == [RoundState.ACTIVE, RoundState.EXPIRED, RoundState.STOPPED]
    assert due in store.active_ids()
    client.config_set("maxmemory", 0)
    assert store.status(due).state is RoundState.EXPIRED
    assert store.active_ids() == [active]


def test_a_deadline_in_real_time_ends_a_round(store: RoundStore) -> None:
    """A round of 0.2 s is over 0.2 s later by Redis's own clock."""
    round_id = store.create(make_spec(window_s=0.2))
    store.expire(round_id)
    wait_until(lambda: not store.status(round_id).state.is_active)
    status = store.status(round_id)
    assert status.state is RoundState.EXPIRED
    assert status.ended_ms - status.created_ms >= 200


def test_statuses_keep_the_order_that_was_asked_for(store: RoundStore) -> None:
    """And leave out what is not there."""
    a, b = store.create(make_spec()), store.create(make_spec())
    assert [s.round_id for s in store.statuses([b, "nope", a])] == [b, a]
    assert store.statuses([]) == []


# Commits


def test_batches_of_a_range_are_counted_one_after_another(store: RoundStore) -> None:
    """Counters, stream, coverage and the range's own mark move together."""
    round_id = store.create(make_spec(r_target=0.9))
    out = assign(store, round_id, 25, queue="host.gpu3")
    assert (out.range_id, out.start, out.stop) == (1, 0, 25)
    assert commit(store, round_id, 1, 0, 10, [2, 7]) == CommitResult(Outcome.COMMITTED, 10)
    (held,) = store.outstanding([round_id])
    assert (held.start, held.done, held.stop, held.queue) == (0, 10, 25, "host.gpu3")
    assert commit(store, round_id, 1, 10, 20, [], nonfinite=3) == CommitResult(
        Outcome.COMMITTED, 20
    )
    assert commit(store, round_id, 1, 20, 25, [24]) == CommitResult(Outcome.COMMITTED, 25)
    status = check_books(store, round_id)
    assert (status.checked, status.valid, status.batches, status.nonfinite) == (25, 3, 3, 3)
    assert store.coverage(round_id) == [(0, 25)]
    assert store.outstanding([round_id]) == []
    assert proofs(store, round_id) == [2, 7, 24]


def test_a_repeated_batch_does_not_count_again(store: RoundStore) -> None:
    """A commit whose reply was lost is told where the range stands."""
    round_id = store.create(make_spec())
    assign(store, round_id, 30)
    commit(store, round_id, 1, 0, 10, [1])
    commit(store, round_id, 1, 10, 20, [11])
    assert commit(store, round_id, 1, 10, 20, [11]) == CommitResult(Outcome.REPEATED, 20)
    assert commit(store, round_id, 1, 0, 10, [1]) == CommitResult(Outcome.REPEATED, 20)
    assert check_books(store, round_id).checked == 20
    assert proofs(store, round_id) == [1, 11]


def test_a_batch_beyond_the_mark_leaves_a_gap_and_does_not_count(store: RoundStore) -> None:
    """The worker is told from where to go on; also where a batch overlaps the mark."""
    round_id = store.create(make_spec())
    assign(store, round_id, 30)
    commit(store, round_id, 1, 0, 10)
    assert commit(store, round_id, 1, 20, 30, [21]) == CommitResult(Outcome.GAP, 10)
    assert commit(store, round_id, 1, 5, 15, [6]) == CommitResult(Outcome.GAP, 10)
    assert check_books(store, round_id).checked == 10


@pytest.mark.parametrize(("start", "stop"), [(10, 31), (10, 10), (10, 2**60)])
def test_a_batch_outside_its_range_is_refused_and_changes_nothing(
    store: RoundStore, start: int, stop: int
) -> None:
    """That is our own mistake, not Redis's, and it must not count."""
    round_id = store.create(make_spec())
    assign(store, round_id, 30)
    commit(store, round_id, 1, 0, 10)
    with pytest.raises(StoreError, match="outside its range"):
        commit(store, round_id, 1, start, stop, [11])
    assert check_books(store, round_id).checked == 10
    assert commit(store, round_id, 1, 10, 30) == CommitResult(Outcome.COMMITTED, 30)


def test_a_range_that_is_someone_elses_by_now_does_not_count(store: RoundStore) -> None:
    """A worker that was thought dead comes back and is told to leave it."""
    round_id = store.create(make_spec())
    assign(store, round_id, 30, worker="slow")
    commit(store, round_id, 1, 0, 10, [1])
    store.release_range(round_id, 1, failed=True)
    other = assign(store, round_id, 30, worker="other")
    assert (other.range_id, other.start, other.stop) == (2, 10, 30)
    assert commit(store, round_id, 1, 10, 20, [11]) == CommitResult(Outcome.REASSIGNED, 0)
    assert commit(store, round_id, 2, 10, 20, [11]) == CommitResult(Outcome.COMMITTED, 20)
    assert check_books(store, round_id).checked == 20


def test_nothing_after_the_deadline_counts(backend: Backend, store: RoundStore) -> None:
    """A late batch is dropped and seen as such, and no range is given any more."""
    round_id = store.create(make_spec())
    assign(store, round_id, 30)
    commit(store, round_id, 1, 0, 10, [1])
    pass_deadline(backend, round_id)
    assert commit(store, round_id, 1, 10, 20, [11]) == CommitResult(Outcome.LATE, 0)
    assert assign_range(store, round_id, "gpu1", "w1", 10) is None
    assert store.open_range(round_id, 1) is None
    status = check_books(store, round_id)
    assert (status.state, status.checked, status.late_batches) == (RoundState.EXPIRED, 10, 1)
    assert commit(store, round_id, 1, 10, 20, [11]) == CommitResult(Outcome.CLOSED, 0)
    assert store.status(round_id).late_batches == 1


def test_nothing_counts_once_the_round_is_stopped(store: RoundStore) -> None:
    """Its ranges are gone with it."""
    round_id = store.create(make_spec())
    assign(store, round_id, 30)
    commit(store, round_id, 1, 0, 10, [1])
    store.close(round_id, RoundState.STOPPED, "")
    assert commit(store, round_id, 1, 10, 20, [11]) == CommitResult(Outcome.CLOSED, 0)
    assert assign_range(store, round_id, "gpu1", "w1", 10) is None
    assert store.open_range(round_id, 1) is None
    assert store.release_range(round_id, 1, failed=False) == 0
    assert store.outstanding([round_id]) == []
    assert check_books(store, round_id).checked == 10


def test_the_same_batches_from_many_threads_count_once_each(
    backend: Backend, store: RoundStore
) -> None:
    """Eight deliveries of one range at once: every batch is committed by exactly one of them."""
    round_id = store.create(make_spec())
    assign(store, round_id, 200)
    together = threading.Barrier(8)

    def deliver() -> list[int]:
        together.wait()
        won = []
        for start in range(0, 200, 10):
            result = commit(store, round_id, 1, start, start + 10, [start + 5])
            if result.outcome is Outcome.COMMITTED:
                won.append(start)
        return won

    with ThreadPoolExecutor(8) as threads:
        won = [
            start
            for future in [threads.submit(deliver) for _ in range(8)]
            for start in future.result()
        ]
    assert sorted(won) == list(range(0, 200, 10))
    assert check_books(store, round_id).checked == 200
    assert proofs(store, round_id) == list(range(5, 200, 10))


def test_many_gpus_take_and_commit_ranges_at_once(store: RoundStore) -> None:
    """Ranges never overlap, and a bounded round ends with all of it counted."""
    round_id = store.create(make_spec(max_nonces=1000))

    def work(queue: str) -> None:
        while out := assign_range(store, round_id, queue, queue, 37):
            middle = (out.start + out.stop) // 2
            if out.range_id % 5 == 0:
                store.release_range(round_id, out.range_id, failed=False)
                continue
            if middle > out.start:
                commit(store, round_id, out.range_id, out.start, middle, [out.start])
            commit(store, round_id, out.range_id, middle, out.stop, [middle])

    with ThreadPoolExecutor(6) as threads:
        for future in [threads.submit(work, f"gpu{i}") for i in range(6)]:
            future.result()
    # A range handed back after the others had left is still to be done.
    work("gpu9")
    status = check_books(store, round_id)
    assert (status.state, status.checked) == (RoundState.COMPLETED, 1000)
    assert store.coverage(round_id) == [(0, 1000)]


# Ranges


def test_ranges_are_taken_in_order_without_overlap(store: RoundStore) -> None:
    """Each starts where the one before ended, and the round keeps its virtual time."""
    round_id = store.create(make_spec())
    spans = [assign(store, round_id, num)[1:] for num in (10, 25, 1)]
    assert spans == [(0, 10), (10, 35), (35, 36)]
    assign_range(store, round_id, "gpu0", "w", 5, vtime_floor=1 / 3)
    status = store.status(round_id)
    assert (status.next_index, status.ranges_made) == (41, 4)
    assert status.vtime == pytest.approx(1 / 3, abs=1e-9)


def test_a_round_is_charged_for_the_nonces_it_really_got(store: RoundStore) -> None:
    """Fewer than planned where a piece came back, or at the end of a bounded round."""
    round_id = store.create(make_spec(max_nonces=125))

    def take(num: int, floor: float) -> tuple[int, float]:
        out = assign_range(
            store, round_id, "gpu0", "w", num, vtime_floor=floor, vtime_per_nonce=0.01
        )
        vtime = store.status(round_id).vtime
        assert vtime is not None
        return (out.stop - out.start if out else 0), round(vtime, 6)

    assert take(100, 2.0) == (100, 3.0)
    commit(store, round_id, 1, 0, 70)
    store.release_range(round_id, 1, failed=False)
    assert take(100, 3.0) == (30, 3.3)
    assert take(100, 5.0) == (25, 5.25)
    assert take(100, 9.0) == (0, 5.25), "nothing taken, nothing charged"


def test_the_virtual_time_of_a_round_never_goes_back(store: RoundStore) -> None:
    """A plan that was made before another one was carried out adds to what stands there."""
    round_id = store.create(make_spec())
    for floor, vtime in [(4.0, 5.0), (1.0, 6.0), (6.0, 7.0)]:
        assign_range(store, round_id, "gpu0", "w", 10, vtime_floor=floor, vtime_per_nonce=0.1)
        assert store.status(round_id).vtime == pytest.approx(vtime)


def test_many_ranges_are_given_in_one_go(store: RoundStore) -> None:
    """In order, each as if it were asked for alone; nothing where a round has none left."""
    endless, short = store.create(make_spec()), store.create(make_spec(max_nonces=15))
    wanted = [
        Assignment(endless, "gpu0", "w0", 10, 2.0, 0.1),
        Assignment(short, "gpu0", "w0", 10, 0.0, 0.0),
        Assignment(endless, "gpu1", "w1", 20, 0.0, 0.1),
        Assignment(short, "gpu1", "w1", 10, 0.0, 0.0),
        Assignment(short, "gpu2", "w2", 10, 0.0, 0.0),
        Assignment("unknown", "gpu2", "w2", 10, 0.0, 0.0),
    ]
    assert store.assign_ranges(wanted) == [
        AssignedRange(1, 0, 10),
        AssignedRange(1, 0, 10),
        AssignedRange(2, 10, 30),
        AssignedRange(2, 10, 15),
        None,
        None,
    ]
    assert store.status(endless).vtime == pytest.approx(2.0 + 30 * 0.1)
    held = {(out.round_id, out.queue): out.worker for out in store.outstanding([endless, short])}
    assert held == {
        (endless, "gpu0"): "w0",
        (endless, "gpu1"): "w1",
        (short, "gpu0"): "w0",
        (short, "gpu1"): "w1",
    }
    assert store.assign_ranges([]) == []


def test_many_ranges_are_given_by_a_redis_that_forgot_its_scripts(store: RoundStore) -> None:
    """As after a restart."""
    round_id = store.create(make_spec())
    assert assign_range(store, round_id, "gpu0", "w", 10) == AssignedRange(1, 0, 10)
    store.client.script_flush()
    wanted = [Assignment(round_id, "gpu0", "w", 10, 0.0, 0.0)] * 2
    assert store.assign_ranges(wanted) == [AssignedRange(2, 10, 20), AssignedRange(3, 20, 30)]


def test_what_comes_back_goes_out_first_and_only_the_rest_of_it(store: RoundStore) -> None:
    """The counted part stays counted, and a smaller GPU takes a piece."""
    round_id = store.create(make_spec())
    assign(store, round_id, 100)
    commit(store, round_id, 1, 0, 30)
    assert store.release_range(round_id, 1, failed=False) == 70
    assert store.release_range(round_id, 1, failed=False) == 0
    assert assign(store, round_id, 20)[1:] == (30, 50)
    assert assign(store, round_id, 500)[1:] == (50, 100)
    assert assign(store, round_id, 500)[1:] == (100, 600)
    assert store.status(round_id).ranges_returned == 1


def test_opening_a_range_tells_where_it_stands(store: RoundStore) -> None:
    """And that it is gone once it is done or given back."""
    round_id = store.create(make_spec())
    assign(store, round_id, 20, queue="gpu7", worker="me")
    commit(store, round_id, 1, 0, 10)
    opened = store.open_range(round_id, 1)
    assert opened is not None
    status, out = opened
    assert status.round_id == round_id
    assert (out.done, out.stop, out.queue, out.worker) == (10, 20, "gpu7", "me")
    commit(store, round_id, 1, 10, 20)
    assert store.open_range(round_id, 1) is None
    assert store.open_range(round_id, 99) is None


def test_nonces_that_fail_again_and_again_are_given_up_and_reported(store: RoundStore) -> None:
    """After five failures in a row on the same nonces, in whatever hands, the rest goes on."""
    round_id = _begun(store)
    for attempt in range(MAX_ATTEMPTS):
        out = assign(store, round_id, 10, queue=f"gpu{attempt}")
        assert (out.start, out.stop) == (10, 20)
        returned = store.release_range(round_id, out.range_id, failed=True)
        assert returned == (0 if attempt == MAX_ATTEMPTS - 1 else 10)
    status = check_books(store, round_id)
    assert (status.abandoned, status.ranges_returned) == (10, MAX_ATTEMPTS - 1)
    assert status.state is RoundState.ACTIVE
    assert assign(store, round_id, 10).start == 20


def _begun(store: RoundStore, **changes: Any) -> str:
    """Make a round whose first ten nonces are counted."""
    round_id = store.create(make_spec(**changes))
    out = assign(store, round_id, 10)
    commit(store, round_id, out.range_id, out.start, out.stop, [out.start])
    return round_id


def _give_up(store: RoundStore, round_id: str, num_nonces: int) -> None:
    """Fail on the next nonces until they are abandoned."""
    before = store.status(round_id).abandoned
    for _ in range(MAX_ATTEMPTS):
        out = assign(store, round_id, num_nonces)
        store.release_range(round_id, out.range_id, failed=True)
    assert store.status(round_id).abandoned == before + num_nonces


def test_a_round_whose_first_nonces_nobody_can_do_has_failed(
    backend: Backend, store: RoundStore
) -> None:
    """Not one batch came of it: it says so and why, instead of using up its time."""
    round_id = store.create(make_spec())
    other = assign(store, round_id, 10)
    _give_up(store, round_id, 20)
    status = check_books(store, round_id)
    assert (status.state, status.abandoned, status.checked) == (RoundState.FAILED, 20, 0)
    assert "GPUs failed 5 times in a row" in status.reason
    assert status.ended_ms > 0
    assert store.active_ids() == []
    assert commit(store, round_id, other.range_id, 0, 10) == CommitResult(Outcome.CLOSED, 0)
    assert all(0 < ttl <= KEEP_ENDED_MS for ttl in keys_of(backend, round_id).values())


def test_a_round_past_its_deadline_is_expired_even_where_nothing_of_it_worked(
    backend: Backend, store: RoundStore
) -> None:
    """The time was up first."""
    round_id = store.create(make_spec())
    for _ in range(MAX_ATTEMPTS - 1):
        store.release_range(round_id, assign(store, round_id, 10).range_id, failed=True)
    last = assign(store, round_id, 10)
    pass_deadline(backend, round_id)
    assert store.release_range(round_id, last.range_id, failed=True) == 0
    status = store.status(round_id)
    assert (status.state, status.reason) == (RoundState.EXPIRED, "")


def test_a_counted_batch_forgives_earlier_failures(store: RoundStore) -> None:
    """Only failures without any progress in between add up."""
    round_id = store.create(make_spec())
    for start in range(0, 3 * MAX_ATTEMPTS):
        out = assign(store, round_id, 1000 if start == 0 else 1000 - start)
        commit(store, round_id, out.range_id, start, start + 1)
        assert store.release_range(round_id, out.range_id, failed=True) > 0
    assert store.status(round_id).abandoned == 0


def test_handing_back_is_no_failure(store: RoundStore) -> None:
    """A range may be handed back any number of times."""
    round_id = store.create(make_spec())
    for _ in range(3 * MAX_ATTEMPTS):
        out = assign(store, round_id, 10)
        assert store.release_range(round_id, out.range_id, failed=False) == 10
    assert store.status(round_id).abandoned == 0


def test_both_pieces_of_a_split_range_remember_its_failures(store: RoundStore) -> None:
    """Cutting a bad run of nonces up does not make it good."""
    round_id = _begun(store)
    for _ in range(MAX_ATTEMPTS - 1):
        store.release_range(round_id, assign(store, round_id, 20).range_id, failed=True)
    first, second = assign(store, round_id, 10), assign(store, round_id, 10)
    assert (first.stop, second.stop) == (20, 30)
    for piece in (first, second):
        assert store.release_range(round_id, piece.range_id, failed=True) == 0
    assert store.status(round_id).abandoned == 20


# max_nonces


def test_a_bounded_round_completes_at_exactly_its_number(store: RoundStore) -> None:
    """The last batch is short, the last commit ends the round, and no more is given."""
    round_id = store.create(make_spec(max_nonces=25))
    assert assign(store, round_id, 20)[1:] == (0, 20)
    assert assign(store, round_id, 20)[1:] == (20, 25)
    assert assign_range(store, round_id, "gpu0", "w", 20) is None
    commit(store, round_id, 2, 20, 25, [24])
    assert commit(store, round_id, 1, 0, 10).outcome is Outcome.COMMITTED
    assert store.status(round_id).state is RoundState.ACTIVE
    assert commit(store, round_id, 1, 10, 20).outcome is Outcome.COMMITTED
    status = check_books(store, round_id)
    assert (status.state, status.checked) == (RoundState.COMPLETED, 25)
    assert status.ended_ms > 0
    assert store.active_ids() == []
    assert commit(store, round_id, 1, 10, 20) == CommitResult(Outcome.CLOSED, 0)


def test_a_bounded_round_gives_again_what_came_back(store: RoundStore) -> None:
    """All is given out, one piece returns, and it is still needed."""
    round_id = store.create(make_spec(max_nonces=20))
    assign(store, round_id, 20)
    store.release_range(round_id, 1, failed=True)
    assert assign(store, round_id, 100)[1:] == (0, 20)
    assert assign_range(store, round_id, "gpu0", "w", 100) is None


def test_a_bounded_round_completes_when_the_last_of_it_is_given_up(
    backend: Backend, store: RoundStore
) -> None:
    """There is nothing left to wait for."""
    round_id = _begun(store, max_nonces=25)
    out = assign(store, round_id, 5)
    _give_up(store, round_id, 10)
    assert store.status(round_id).state is RoundState.ACTIVE, "five are still out"
    for _ in range(MAX_ATTEMPTS):
        assert store.status(round_id).state is RoundState.ACTIVE
        store.release_range(round_id, out.range_id, failed=True)
        out = assign_range(store, round_id, "gpu0", "w", 5) or out
    status = check_books(store, round_id)
    assert (status.state, status.checked, status.abandoned) == (RoundState.COMPLETED, 10, 15)
    assert (status.reason, store.active_ids()) == ("", [])
    assert all(0 < ttl <= KEEP_ENDED_MS for ttl in keys_of(backend, round_id).values())


def test_a_bounded_round_completes_with_the_last_batch_beside_what_was_given_up(
    backend: Backend, store: RoundStore
) -> None:
    """Counted and given up add up to what was asked for; all of it goes within the hour."""
    round_id = _begun(store, max_nonces=25, window_s=600)
    out = assign(store, round_id, 5)
    _give_up(store, round_id, 10)
    commit(store, round_id, out.range_id, 10, 14)
    assert store.status(round_id).state is RoundState.ACTIVE
    assert commit(store, round_id, out.range_id, 14, 15) == CommitResult(Outcome.COMMITTED, 15)
    status = check_books(store, round_id)
    assert (status.state, status.checked, status.abandoned) == (RoundState.COMPLETED, 15, 10)
    assert store.active_ids() == []
    found = keys_of(backend, round_id)
    assert Keys.of_round(round_id, "abandoned") in found
    assert all(0 < ttl <= KEEP_ENDED_MS for ttl in found.values()), found


# Big numbers


@pytest.mark.parametrize("first", [2**40 + 1, 10**14 - 5, 2**48 - 10])
def test_big_indices_stay_whole_numbers(store: RoundStore, first: int) -> None:
    """Lua writes 1e+14 for 10^14 if one lets it; through every script they stay as they are."""
    round_id = store.create(make_spec(max_nonces=2**48))
    store.client.hset(Keys.of_round(round_id, "round"), "next_index", str(first))
    assert assign(store, round_id, 10) == (1, first, first + 10)
    assert commit(store, round_id, 1, first, first + 4, [first + 1]) == ("committed", first + 4)
    assert commit(store, round_id, 1, first, first + 4) == ("repeated", first + 4)
    assert commit(store, round_id, 1, first + 7, first + 8) == ("gap", first + 4)
    store.release_range(round_id, 1, failed=True)
    assert assign(store, round_id, 3) == (2, first + 4, first + 7)
    (out,) = store.outstanding([round_id])
    assert (out.start, out.done, out.stop) == (first + 4, first + 4, first + 7)
    commit(store, round_id, 2, first + 4, first + 7, [first + 6])
    assert store.coverage(round_id) == [(first, first + 7)]
    assert proofs(store, round_id) == [first + 1, first + 6]
    for _ in range(MAX_ATTEMPTS - 1):
        last = assign(store, round_id, 10)
        assert (last.start, last.stop) == (first + 7, first + 10)
        store.release_range(round_id, last.range_id, failed=True)
    for key in store.client.scan_iter(match=Keys.of_round("*", "*")):
        raw = _everything(store, str(key))
        assert raw
        assert "e+" not in raw, f"{key}: {raw}"


def _everything(store: RoundStore, key: str) -> str:
    """Return what a key holds as text, but for the specification, which is JSON."""
    client = store.client
    match client.type(key):
        case "hash":
            fields = client.hgetall(key)
            return str({k: v for k, v in fields.items() if k != "spec"})
        case "list":
            return str(client.lrange(key, 0, -1))
        case "stream":
            return str(client.xrange(key))
    return ""


def test_nonces_of_the_full_64_bits_come_back_as_they_went_in(store: RoundStore) -> None:
    """They travel as JSON integers, distances to the last bit."""
    round_id = store.create(make_spec())
    assign(store, round_id, 10)
    nonces, dist = [2**63 - 1, 2**53 + 1], [0.1 + 0.2, 5e-324]
    store.commit_batch(BatchCommit(round_id, 1, 0, 10, Proofs(nonces, dist)))
    (entry,) = store.iter_proofs(store.status(round_id))
    assert entry.proofs == Proofs(nonces, dist)


# Proofs


def test_proofs_can_be_read_from_any_point(store: RoundStore) -> None:
    """A reader goes on behind the last entry it has, as often as it likes."""
    round_id = store.create(make_spec(node_id=0, block_hash="bh", public_key="pk"))
    assign(store, round_id, 100, queue="gpu5")
    for start in range(0, 100, 10):
        commit(store, round_id, 1, start, start + 10, [start])
    status = store.status(round_id)
    entries = store.read_proofs(status)
    assert [entry.proofs.nonces for entry in entries] == [[start] for start in range(0, 100, 10)]
    for position, entry in enumerate(entries):
        rest = list(store.iter_proofs(status, entry.cursor))
        assert rest == entries[position + 1 :]
    assert store.read_proofs(status, START, count=3) == entries[:3]
    assert store.read_proofs(status, entries[-1].cursor) == []
    assert entries[0].queue == "gpu5"


def test_long_streams_are_read_to_their_end(store: RoundStore) -> None:
    """More entries than one read returns."""
    round_id = store.create(make_spec())
    assign(store, round_id, 2500)
    for index in range(2500):
        commit(store, round_id, 1, index, index + 1, [index])
    assert proofs(store, round_id) == list(range(2500))


def test_a_reader_can_wait_for_the_next_proof(store: RoundStore) -> None:
    """It returns as soon as one is there, or with nothing when its time is up."""
    round_id = store.create(make_spec())
    assign(store, round_id, 20)
    status = store.status(round_id)
    assert store.read_proofs(status, START, block_ms=20) == []
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(store.read_proofs, status, START, block_ms=4000)
        wait_until(lambda: _blocked(store) == 1, message="the reader waits in Redis")
        commit(store, round_id, 1, 0, 10, [3])
        (entry,) = waiting.result(timeout=120)
    assert entry.proofs.nonces == [3]


def _blocked(store: RoundStore) -> int:
    return int(store.client.info("clients")["blocked_clients"])


def test_proofs_of_an_ended_round_can_still_be_read(backend: Backend, store: RoundStore) -> None:
    """For an hour."""
    round_id = store.create(make_spec())
    assign(store, round_id, 10)
    commit(store, round_id, 1, 0, 10, [1, 2])
    pass_deadline(backend, round_id)
    assert proofs(store, round_id) == [1, 2]


# Lifetimes


@pytest.mark.parametrize("end", ["stopped", "completed", "expired"])
def test_every_key_of_an_ended_round_goes_within_the_hour(
    backend: Backend, store: RoundStore, end: str
) -> None:
    """Whatever way it ended, and whatever it had by then."""
    spec = make_spec(callback_url="http://h/", max_nonces=40 if end == "completed" else None)
    round_id = store.create(spec)
    first = assign(store, round_id, 10)
    commit(store, round_id, first.range_id, 0, 10, [0])
    if end != "completed":  # something given up, something returned
        _give_up(store, round_id, 10)
        store.release_range(round_id, assign(store, round_id, 5).range_id, failed=False)
    while out := assign_range(store, round_id, "gpu0", "w", 10):
        commit(store, round_id, out.range_id, out.start, out.stop, [out.start])
        if out.stop >= 40:
            break
    if end == "stopped":
        store.close(round_id, RoundState.STOPPED, "")
    elif end == "expired":
        pass_deadline(backend, round_id)
    assert store.status(round_id).state is RoundState(end)
    found = keys_of(backend, round_id)
    parts = {key.rpartition(":")[2] for key in found}
    assert {"round", "proofs", "cover_starts", "cover_stops"} <= parts
    assert "ranges" not in parts
    assert all(0 < ttl <= KEEP_ENDED_MS for ttl in found.values()), found


def test_the_callback_mark_of_a_round_goes_too(backend: Backend, store: RoundStore) -> None:
    """It is kept as long as callbacks may be tried, and not for ever."""
    round_id = store.create(make_spec(callback_url="http://h/"))
    assign(store, round_id, 10)
    commit(store, round_id, 1, 0, 10, [1])
    assert backend.callbacks.claim_due(60.0)
    ttl = keys_of(backend, round_id)[Keys.of_round(round_id, "callback")]
    assert 0 < ttl <= 2 * KEEP_ENDED_MS + 30_000


@pytest.mark.parametrize("order", list(itertools.permutations([0, 10, 20])))
def test_what_a_round_writes_goes_by_itself_from_the_first_write_on(
    store: RoundStore, order: tuple[int, ...]
) -> None:
    """An hour after its deadline, should nobody close it; also where runs merge into one."""
    round_id = store.create(make_spec(window_s=600))
    ranges = {out.start: out.range_id for out in (assign(store, round_id, 10) for _ in order)}

    def goes_at_the_end(part: str) -> bool:
        key, goes_at = Keys.of_round(round_id, part), status.deadline_ms + KEEP_ENDED_MS
        before = redis_ms(store)
        ttl = int(store.client.pttl(key))
        return ttl > 0 and before + ttl <= goes_at <= redis_ms(store) + ttl + 1

    for number, start in enumerate(order):
        for half in (start, start + 5):
            # The first batch finds nothing, so that the stream of proofs begins later than the rest.
            valid = [half] if number > 0 else []
            result = commit(store, round_id, ranges[start], half, half + 5, valid)
            assert result.outcome is Outcome.COMMITTED
            status = check_books(store, round_id)
            assert goes_at_the_end("cover_starts")
            assert goes_at_the_end("cover_stops")
            assert goes_at_the_end("proofs") is (number > 0)
    assert store.coverage(round_id) == [(0, 30)]


def test_a_round_that_nobody_closes_goes_by_itself(store: RoundStore) -> None:
    """Its record has a time to live from the start."""
    round_id = store.create(make_spec(window_s=10))
    ttl = int(store.client.pttl(Keys.of_round(round_id, "round")))
    assert KEEP_ENDED_MS < ttl <= KEEP_ENDED_MS + 10_000


def test_what_is_left_of_a_vanished_round_is_cleaned_up(
    backend: Backend, store: RoundStore
) -> None:
    """Its record expired while every scheduler was away: the next one removes the rest."""
    round_id = store.create(make_spec())
    assign(store, round_id, 20)
    commit(store, round_id, 1, 0, 10, [1])
    store.client.delete(Keys.of_round(round_id, "round"))
    assert store.active_ids() == [round_id]
    store.expire(round_id)
    assert store.active_ids() == []
    assert keys_of(backend, round_id) == {}


def test_the_list_of_rounds_is_in_order_and_forgets(store: RoundStore) -> None:
    """Oldest first; what expired is gone from the list as well."""
    ids = []
    for _ in range(3):
        ids.append(store.create(make_spec()))
        wait_until(lambda: redis_ms(store) > store.status(ids[-1]).created_ms)
    assert store.list_ids() == ids
    store.client.delete(Keys.of_round(ids[1], "round"))
    assert store.list_ids() == [ids[0], ids[2]]
    assert store.client.zcard(Keys.ROUNDS) == 2


# Waiting


def test_a_new_round_wakes_who_waits_for_work(store: RoundStore) -> None:
    """One token however many rounds; without one the wait ends by itself."""
    assert not store.wait_for_work(0.01)
    store.create(make_spec())
    store.create(make_spec())
    assert store.wait_for_work(5)
    assert not store.wait_for_work(0.01)
