"""The store against a plain model of it: whatever happens in whatever order, the books agree."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from pocqueue.errors import StoreError
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.records import CommitResult, Outcome
from pocqueue.rounds.spec import RoundState
from pocqueue.rounds.store import KEEP_ENDED_MS, MAX_ATTEMPTS, Keys
from tests.support.factories import make_spec
from tests.support.rounds import assign_range, check_books, commit, pass_deadline, proofs


@dataclass
class _Range:
    """A range that is out, in the model."""

    start: int
    stop: int
    attempts: int
    done: int = field(init=False)

    def __post_init__(self) -> None:
        self.done = self.start


class StoreMachine(RuleBasedStateMachine):
    """One round in Redis and in Python."""

    backend: Backend

    @initialize(max_nonces=st.none() | st.integers(1, 120))
    def make_round(self, max_nonces: int | None) -> None:
        """Begin with an empty round."""
        self.store = self.backend.store
        self.round_id = self.store.create(make_spec(max_nonces=max_nonces))
        self.max_nonces = max_nonces
        self.state = RoundState.ACTIVE
        self.next_index = 0
        self.last_id = 0
        self.out: dict[int, _Range] = {}
        self.returned: list[tuple[int, int, int]] = []
        self.counted: list[int] = []
        self.proofs: list[int] = []
        self.batches = self.abandoned = self.num_returned = self.late = self.nonfinite = 0

    # One rule that draws from what is possible now: Hypothesis' own choice among many rules leaves
    # most of them out of most examples, and a round without commits teaches nothing.
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Do something."""
        possible = [self.take_a_range] * 3 + [self.commit_of_another]
        if self.out:
            possible += [self.commit_next] * 6 + [self.give_back] * 3
            possible += [self.commit_out_of_order, self.commit_too_far]
            # Before the first batch that is the end of the round.
            if self.batches or self.last_id >= 4:
                possible.append(self.fail_until_given_up)
        if any(out.done > out.start for out in self.out.values()):
            possible.append(self.commit_again)
        # What comes after the end is quickly seen, so the end waits for some ranges.
        if self.last_id >= 8:
            possible.append(self.close)
            if self.state is RoundState.ACTIVE:
                possible.append(self.expire)
        data.draw(st.sampled_from(possible))(data)

    def take_a_range(self, data: st.DataObject) -> None:
        """Take up to so many nonces."""
        self._assign(data.draw(st.integers(1, 60)))

    def _assign(self, num: int) -> None:
        """Take a range: what came back last, else the next indices."""
        given = assign_range(self.store, self.round_id, "gpu0", "w", num)
        expected = self._expect_range(num)
        assert (None if given is None else (given.start, given.stop)) == expected
        assert given is None or given.range_id == self.last_id

    def _expect_range(self, num: int) -> tuple[int, int] | None:
        if self.state is not RoundState.ACTIVE:
            return None
        attempts = 0
        if self.returned:
            start, end, attempts = self.returned.pop(0)
            stop = min(end, start + num)
            if stop < end:
                self.returned.insert(0, (stop, end, attempts))
        else:
            start = self.next_index
            stop = start + num if self.max_nonces is None else min(start + num, self.max_nonces)
            if stop <= start:
                return None
            self.next_index = stop
        self.last_id += 1
        self.out[self.last_id] = _Range(start, stop, attempts)
        return start, stop

    def commit_next(self, data: st.DataObject) -> None:
        """Commit what comes next in some range that is out, with some of it valid."""
        range_id = data.draw(st.sampled_from(sorted(self.out)))
        out = self.out[range_id]
        # As often as not all that is left.
        size = data.draw(st.integers(1, 2 * (out.stop - out.done)))
        start, stop = out.done, min(out.done + size, out.stop)
        step = data.draw(st.integers(1, 20))
        valid = list(range(start + step - 1, stop, step))
        bad = (stop - start - len(valid)) // 2
        result = commit(self.store, self.round_id, range_id, start, stop, valid, bad)
        assert result == CommitResult(Outcome.COMMITTED, stop)
        self._count(range_id, out, stop, valid, bad)

    def commit_of_another(self, data: st.DataObject) -> None:
        """Commit for a range that was given back, is done, or never was."""
        others = sorted(set(range(1, self.last_id + 2)) - set(self.out))
        range_id = data.draw(st.sampled_from(others))
        result = commit(self.store, self.round_id, range_id, 0, 10, [0])
        active = self.state is RoundState.ACTIVE
        assert result == CommitResult(Outcome.REASSIGNED if active else Outcome.CLOSED, 0)

    def _count(self, range_id: int, out: _Range, stop: int, valid: list[int], bad: int) -> None:
        self.counted.extend(range(out.done, stop))
        self.proofs.extend(valid)
        self.batches += 1
        self.nonfinite += bad
        out.done, out.attempts = stop, 0
        if stop == out.stop:
            del self.out[range_id]
        self._end_where_settled()

    def _end_where_settled(self) -> None:
        """Complete the round where each nonce that was asked for is counted or given up."""
        if len(self.counted) + self.abandoned == self.max_nonces:
            assert not self.out
            assert not self.returned
            self._end(RoundState.COMPLETED)

    def commit_again(self, data: st.DataObject) -> None:
        """Repeat something of a range that is counted already."""
        begun = sorted(i for i, out in self.out.items() if out.done > out.start)
        range_id = data.draw(st.sampled_from(begun))
        out = self.out[range_id]
        start = data.draw(st.integers(out.start, out.done - 1))
        stop = data.draw(st.integers(start + 1, out.done))
        result = commit(self.store, self.round_id, range_id, start, stop, [start])
        assert result == CommitResult(Outcome.REPEATED, out.done)

    def commit_out_of_order(self, data: st.DataObject) -> None:
        """Commit from beyond where the range stands, or across it."""
        range_id = data.draw(st.sampled_from(sorted(self.out)))
        out = self.out[range_id]
        starts = sorted({*range(out.start, out.stop + 5)} - {out.done})
        start = data.draw(st.sampled_from(starts))
        stop = data.draw(st.integers(max(start, out.done) + 1, out.stop + 10))
        result = commit(self.store, self.round_id, range_id, start, stop, [start])
        assert result == CommitResult(Outcome.GAP, out.done)

    def commit_too_far(self, data: st.DataObject) -> None:
        """Commit more than the range has."""
        range_id = data.draw(st.sampled_from(sorted(self.out)))
        out, beyond = self.out[range_id], data.draw(st.integers(1, 5))
        with pytest.raises(StoreError, match="outside its range"):
            commit(self.store, self.round_id, range_id, out.done, out.stop + beyond, [out.done])

    def give_back(self, data: st.DataObject) -> None:
        """Give a range back, having failed or not."""
        self._release(data.draw(st.sampled_from(sorted(self.out))), data.draw(st.booleans()))

    def _release(self, range_id: int, failed: bool) -> None:
        num = self.store.release_range(self.round_id, range_id, failed=failed)
        out = self.out.pop(range_id)
        left = out.stop - out.done
        if out.attempts + failed >= MAX_ATTEMPTS:
            assert num == 0
            self.abandoned += left
            if self.batches == 0:
                self._end(RoundState.FAILED)
            else:
                self._end_where_settled()
        else:
            assert num == left
            self.returned.insert(0, (out.done, out.stop, out.attempts + failed))
            self.num_returned += 1
        assert self.store.release_range(self.round_id, range_id, failed=failed) == 0

    def fail_until_given_up(self, data: st.DataObject) -> None:
        """Fail on the same nonces until nobody wants them any more."""
        range_id = data.draw(st.sampled_from(sorted(self.out)))
        for _ in range(MAX_ATTEMPTS):
            before = self.abandoned
            out = self.out[range_id]
            self._release(range_id, True)
            if self.abandoned > before:
                return
            self._assign(out.stop - out.done)
            range_id = self.last_id
        raise AssertionError("it was never given up")

    def close(self, data: st.DataObject) -> None:
        """Stop the round; a second time changes nothing."""
        state = data.draw(st.sampled_from([RoundState.STOPPED, RoundState.FAILED]))
        after = self.store.close(self.round_id, state, "why")
        self._end(state)
        assert after is self.state

    def expire(self, data: st.DataObject) -> None:
        """Let the deadline pass with a batch on its way."""
        pass_deadline(self.backend, self.round_id)
        assert assign_range(self.store, self.round_id, "gpu0", "w", 10) is None
        assert commit(self.store, self.round_id, 1, 0, 10, [0]) == CommitResult(Outcome.LATE, 0)
        self.late += 1
        self._end(RoundState.EXPIRED)

    def _end(self, state: RoundState) -> None:
        if self.state is RoundState.ACTIVE:
            self.state = state
            self.out.clear()
            self.returned.clear()

    @invariant()
    def the_books_agree(self) -> None:
        """Counters, stream, coverage and outstanding ranges are the model's."""
        status = check_books(self.store, self.round_id)
        assert status.state is self.state
        assert status.checked == len(self.counted) == len(set(self.counted))
        assert (status.valid, status.batches) == (len(self.proofs), self.batches)
        assert (status.abandoned, status.late_batches) == (self.abandoned, self.late)
        assert (status.ranges_made, status.ranges_returned) == (self.last_id, self.num_returned)
        assert (status.next_index, status.nonfinite) == (self.next_index, self.nonfinite)
        assert proofs(self.store, self.round_id) == self.proofs
        covered = {i for a, b in self.store.coverage(self.round_id) for i in range(a, b)}
        assert covered == set(self.counted)
        out = {o.range_id: o for o in self.store.outstanding([self.round_id])}
        assert {i: (o.start, o.stop, o.done, o.attempts) for i, o in out.items()} == {
            i: (r.start, r.stop, r.done, r.attempts) for i, r in self.out.items()
        }
        assert (self.round_id in self.store.active_ids()) is self.state.is_active

    @invariant()
    def nothing_stays_for_ever(self) -> None:
        """Results have a time to live from the first on, and everything has one in the end."""
        self.store.status(self.round_id)  # closes it where its deadline is over
        results = ["round", "cover_starts", "cover_stops", "proofs"]
        parts = [*results, "ranges", "returned", "abandoned"]
        with self.backend.client.pipeline(transaction=False) as pipe:
            for part in parts:
                pipe.pttl(Keys.of_round(self.round_id, part))
            ttls = dict(zip(parts, pipe.execute(), strict=True))
        # -1: for ever; -2: there is no such key.
        assert all(ttls[part] != -1 for part in (results if self.state.is_active else parts)), ttls
        if not self.state.is_active:
            assert max(ttls.values()) <= KEEP_ENDED_MS

    @invariant()
    def every_index_is_somewhere(self) -> None:
        """Counted, out, returned or given up: what was once taken is never lost."""
        if self.state is not RoundState.ACTIVE:
            return
        out = sum(r.stop - r.done for r in self.out.values())
        back = sum(stop - start for start, stop, _ in self.returned)
        assert len(self.counted) + out + back + self.abandoned == self.next_index


def test_the_store_is_its_model(backend: Backend) -> None:
    """Random lives of a round, step by step."""
    machine = type("BoundMachine", (StoreMachine,), {"backend": backend})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            # A failure is shown as it was found: shrinking it against a server takes minutes.
            phases=[Phase.generate],
        ),
    )
