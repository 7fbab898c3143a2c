"""The search of a range by itself: no Redis, no threads, time by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pocqueue.poc.batch import Batch
from pocqueue.rounds.range_search import End, RangeSearch, second_look
from pocqueue.rounds.records import BatchCommit, CommitResult, OpenedRange, Outcome
from tests.support.factories import make_range, make_spec, make_status
from tests.support.fake_engine import distance_of, valid_below


class Driver:
    """Drives a search by hand; a batch takes a second."""

    def __init__(self, stop: int = 100, done: int = 0, **spec: Any) -> None:
        self.now = 1000.0
        status = make_status(spec=make_spec(**spec))
        out = make_range(start=0, stop=stop, done=done)
        self.search = RangeSearch(OpenedRange(status, out), self.now)

    def begin(self, look: CommitResult | None = None, **known: float) -> Driver:
        """Begin; the second look finds the range as it was, or this."""
        self.search.begin(self.now, **known)
        stands = CommitResult(Outcome.REPEATED, self.search.out.done)
        self.search.committed(look or stands)
        return self

    def next(self, *, draining: bool = False) -> Batch | End | None:
        return self.search.next(self.now, draining=draining)

    def compute(self) -> int:
        """Compute the next batch, which has to be there; return its first nonce."""
        batch = self.next()
        assert isinstance(batch, Batch)
        self.give(batch)
        return batch.nonces[0]

    def give(self, batch: Batch, values: list[float] | None = None) -> None:
        """Hand in the values of a batch, or these."""
        began, self.now = self.now, self.now + 1
        given = [distance_of(nonce) for nonce in batch.nonces] if values is None else values
        self.search.computed(given, began, self.now)

    def commit(self) -> BatchCommit:
        """Begin a commit, which has to be ready."""
        commit = self.search.to_commit()
        assert commit is not None
        return commit

    def answer(self, outcome: Outcome, done: int = 0) -> None:
        self.search.committed(CommitResult(outcome, done))

    def count_one(self) -> BatchCommit:
        """Compute, commit and count the next batch."""
        self.compute()
        commit = self.commit()
        self.answer(Outcome.COMMITTED, commit.stop)
        return commit


def test_a_range_is_searched_to_its_end() -> None:
    """Batch by batch, in order, with the node's nonces; the last batch holds what is left."""
    driver = Driver(stop=23, node_id=2, node_count=5).begin()
    commits = [driver.count_one() for _ in range(3)]
    assert driver.next() is End.FINISHED
    assert [(one.start, one.stop) for one in commits] == [(0, 10), (10, 20), (20, 23)]
    kept = [nonce for one in commits for nonce in one.valid.nonces]
    assert kept == valid_below(1.0, range(2, 2 + 5 * 23, 5))
    assert [value for one in commits for value in one.valid.values] == [
        distance_of(n) for n in kept
    ]
    assert (driver.search.counted, driver.search.gives_back) == (23, False)


def test_a_batch_has_the_shape_and_names_of_its_round() -> None:
    """And the batch that follows is known while it is computed."""
    driver = Driver(stop=15).begin()
    spec = driver.search.status.spec
    assert driver.next() == Batch.of(spec, range(10))
    assert driver.search.upcoming() == Batch.of(spec, range(10, 15))
    driver.give(Batch.of(spec, range(10)))
    driver.commit()
    assert driver.next() == Batch.of(spec, range(10, 15))
    assert driver.search.upcoming() is None


def test_a_range_goes_on_where_it_stands() -> None:
    """What counted before it was delivered again is not computed again."""
    driver = Driver(done=30).begin()
    assert driver.compute() == 30
    assert driver.commit().start == 30


def test_the_next_batch_is_computed_while_a_commit_is_under_way() -> None:
    """One commit at a time, one batch at a time."""
    driver = Driver().begin()
    first = driver.next()
    assert isinstance(first, Batch)
    assert driver.next() is None, "one is computed"
    driver.give(first)
    assert driver.next() is None, "it waits for its commit"
    driver.commit()
    assert driver.compute() == 10
    assert driver.search.to_commit() is None, "the first is not answered yet"
    driver.answer(Outcome.COMMITTED, 10)
    assert driver.commit().start == 10


def test_the_first_batch_is_computed_before_the_second_look_is_answered() -> None:
    """Its commit waits for that."""
    driver = Driver()
    driver.search.begin(driver.now)
    driver.compute()
    assert driver.search.to_commit() is None
    driver.answer(Outcome.REPEATED, 0)
    assert driver.commit().start == 0


def test_what_is_computed_elsewhere_than_the_store_stands_is_dropped() -> None:
    """A gap: it lost what counted, and the search goes back. What is computed meanwhile goes, too."""
    driver = Driver().begin()
    driver.count_one()
    driver.count_one()
    driver.compute()
    driver.commit()
    ahead = driver.next()
    assert isinstance(ahead, Batch)
    driver.answer(Outcome.GAP, 10)
    driver.give(ahead)
    assert driver.search.to_commit() is None
    assert driver.compute() == 10
    assert driver.commit().start == 10
    assert driver.search.counted == 20


@pytest.mark.parametrize(
    ("done", "following"), [(50, 50), (10, 20)], ids=["another worker's", "its own"]
)
def test_what_was_counted_before_is_not_committed_again(done: int, following: int) -> None:
    """Repeated: by another worker, further on, or by this one, whose first answer was lost.

    In the first case what was computed meanwhile does not join on.
    """
    driver = Driver().begin()
    driver.compute()
    driver.commit()
    driver.compute()
    driver.answer(Outcome.REPEATED, done)
    joins = driver.search.to_commit()
    assert (joins is not None) == (done == 10)
    assert driver.compute() == following
    assert driver.search.counted == 0


@pytest.mark.parametrize(
    ("outcome", "end", "over", "back"),
    [
        (Outcome.REASSIGNED, End.REASSIGNED, False, False),
        (Outcome.CLOSED, End.CLOSED, True, False),
        (Outcome.LATE, End.LATE, True, True),
    ],
)
def test_nothing_is_computed_for_a_range_that_is_lost(
    outcome: Outcome, end: End, over: bool, back: bool
) -> None:
    """From the store's answer on, which comes during the next batch: that one is dropped."""
    driver = Driver().begin()
    driver.compute()
    driver.commit()
    driver.compute()
    driver.answer(outcome)
    assert driver.search.to_commit() is None
    assert driver.next() is end
    assert (driver.search.round_is_over, driver.search.gives_back) == (over, back)
    assert driver.search.counted == 0


def test_a_range_that_went_while_it_waited_costs_one_batch() -> None:
    """The second look finds out while the first is computed."""
    driver = Driver()
    driver.search.begin(driver.now)
    driver.compute()
    driver.search.committed(second_look(None, "worker-of-gpu0"))
    assert driver.search.to_commit() is None
    assert driver.next() is End.REASSIGNED


def test_a_range_of_a_round_that_is_known_to_be_over_is_skipped() -> None:
    """Without a batch, and without giving it back."""
    driver = Driver()
    driver.search.skip()
    assert driver.next() is End.CLOSED
    assert not driver.search.gives_back


def test_draining_ends_the_search_behind_the_batch_at_hand() -> None:
    """That one counts, the rest goes back."""
    driver = Driver().begin()
    batch = driver.next()
    assert isinstance(batch, Batch)
    assert driver.next(draining=True) is None
    driver.give(batch)
    assert driver.next(draining=True) is None
    driver.commit()
    assert driver.next(draining=True) is End.DRAINING
    driver.answer(Outcome.COMMITTED, 10)
    assert (driver.search.counted, driver.search.gives_back) == (10, True)


def test_what_drains_and_is_lost_does_not_go_back() -> None:
    """The last commit says that the range is another worker's by now."""
    driver = Driver().begin()
    driver.compute()
    driver.commit()
    assert driver.next(draining=True) is End.DRAINING
    driver.answer(Outcome.REASSIGNED)
    assert not driver.search.gives_back


def test_no_batch_begins_that_would_end_after_the_deadline() -> None:
    """How long one takes is known from the ones before, or from other ranges."""
    driver = Driver(window_s=2.5).begin()
    driver.count_one()
    driver.count_one()
    assert driver.next() is End.LATE
    assert driver.search.gives_back
    assert Driver(window_s=30).begin(batch_s=33.0).next() is End.LATE
    assert isinstance(Driver(window_s=30).begin().next(), Batch)


def test_a_stall_does_not_make_every_batch_late() -> None:
    """The shortest batch is what counts."""
    driver = Driver(window_s=30).begin()
    driver.count_one()
    batch = driver.next()
    assert isinstance(batch, Batch)
    driver.now += 20
    driver.give(batch)
    driver.commit()
    assert isinstance(driver.next(), Batch)


@pytest.mark.parametrize(
    ("outcome", "done", "back"),
    [
        (Outcome.COMMITTED, 20, False),
        (Outcome.REPEATED, 20, False),
        (Outcome.GAP, 10, True),
        (Outcome.REASSIGNED, 0, False),
        (Outcome.CLOSED, 0, False),
    ],
)
def test_the_last_commit_decides_whether_a_finished_range_goes_back(
    outcome: Outcome, done: int, back: bool
) -> None:
    """It is answered when the engine has the next range already; the gap is for others to search."""
    driver = Driver(stop=20).begin()
    driver.count_one()
    driver.compute()
    driver.commit()
    assert driver.next() is End.FINISHED
    driver.answer(outcome, done)
    assert driver.search.gives_back is back
    assert driver.search.counted == (20 if outcome is Outcome.COMMITTED else 10)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_counted_as_that(bad: float) -> None:
    """It is never kept."""
    driver = Driver().begin()
    batch = driver.next()
    assert isinstance(batch, Batch)
    driver.give(batch, [bad, 0.5] * 5)
    commit = driver.commit()
    assert (commit.num_broken, commit.valid.nonces) == (5, [1, 3, 5, 7, 9])


def test_another_number_of_values_than_nonces_is_an_error() -> None:
    """Nothing of such a batch is committed."""
    driver = Driver().begin()
    batch = driver.next()
    assert isinstance(batch, Batch)
    with pytest.raises(ValueError, match="shorter"):
        driver.give(batch, [0.5] * 9)
    assert driver.search.to_commit() is None


def test_the_rate_is_that_of_all_that_was_computed() -> None:
    """Counted or not, over the time since the beginning."""
    driver = Driver().begin()
    assert driver.search.rate(driver.now) is None
    driver.compute()
    driver.commit()
    driver.compute()
    driver.answer(Outcome.CLOSED)
    assert driver.search.rate(driver.now) == 10.0


def test_the_gap_is_known_of_a_range_that_was_there_before_the_engine_was_free() -> None:
    """From then to the first batch; what the scheduler took to send a range is none of it."""
    waited, came_later = Driver(), Driver()
    free_since = waited.now + 5
    waited.now += 5.25
    waited.begin(free_since=free_since)
    came_later.begin(free_since=came_later.now - 1)
    for driver in (waited, came_later):
        assert driver.search.gap_s is None
        driver.count_one()
        driver.count_one()
    assert (waited.search.gap_s, came_later.search.gap_s) == (0.25, None)


def test_a_second_look_counts_as_a_commit_of_nothing() -> None:
    """The range is this worker's and stands somewhere, or it is not."""
    opened = OpenedRange(make_status(), make_range(worker="w0", done=30))
    assert second_look(opened, "w0") == CommitResult(Outcome.REPEATED, 30)
    assert second_look(opened, "w1").outcome is Outcome.REASSIGNED
    assert second_look(None, "w0").outcome is Outcome.REASSIGNED
