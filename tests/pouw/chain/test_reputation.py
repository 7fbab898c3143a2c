"""What is known of an account's work: bounded, halved with time, the same on every node."""

from __future__ import annotations

from hypothesis import given, strategies as st

from pocqueue.pouw.chain.records import CLOCK
from pocqueue.pouw.chain.reputation import FAULT, PERIOD_BLOCKS, current, note, reputation
from pocqueue.pouw.chain.state import State
from tests.pouw.support import account, funded

WHO = account("who")


def _at(state: State, height: int, good: int = 0, bad: int = 0) -> State:
    draft = state.child()
    clock = draft.clock
    draft.put(CLOCK, type(clock)(height, clock.time_ms, clock.lag_ms))
    note(draft, WHO, good=good, bad=bad)
    return draft.seal()


def test_it_is_halved_every_10000_blocks() -> None:
    """Also if nothing was added between, and what is added later counts whole."""
    state = _at(funded(), 9_999, good=800, bad=400)
    assert reputation(state, WHO) == 1_000_000 * 900 // 1400
    later = _at(state, PERIOD_BLOCKS)
    assert (current(later, WHO).good, current(later, WHO).bad) == (400, 200)
    last = _at(_at(later, 3 * PERIOD_BLOCKS), 3 * PERIOD_BLOCKS + 1, good=50)
    assert (current(last, WHO).good, current(last, WHO).bad) == (150, 50)


def test_a_fault_weighs_twenty() -> None:
    """Two thousand good slots outweigh it."""
    state = _at(funded(), 5, bad=FAULT)
    assert reputation(state, WHO) == 1_000_000 // 22
    assert reputation(_at(state, 6, good=2000), WHO) == 500_000


@given(st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 2**62)), max_size=5))
def test_it_is_above_nothing_and_below_all(notes: list[tuple[int, int]]) -> None:
    """Whatever is said of an account."""
    state = funded()
    for good, bad in notes:
        state = _at(state, state.clock.height + 7_000, good=good, bad=bad)
    assert 0 <= reputation(state, WHO) <= 1_000_000
    assert current(state, WHO).good < 2**63
