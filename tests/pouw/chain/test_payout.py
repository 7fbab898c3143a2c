"""Who gets what, as values: the median, what is near it, quality, and that nothing is lost."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings, strategies as st

from pocqueue.pouw.chain.payout import is_near, median, quality, refund, split
from pocqueue.pouw.chain.records import Closing, TaskRecord, Work
from pocqueue.pouw.chain.tasks import TaskModel, parse_requirements
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.transactions import Result
from tests.pouw.support import account

TASK = bytes(32)
MODEL = parse_requirements({"min_accuracy": 0.9}, "digits")


def _record(reward: int, fee: int, slashed: int, model: TaskModel = MODEL) -> TaskRecord:
    return TaskRecord(
        client=account("client"),
        name="mine",
        task_type="image_classification",
        data="digits",
        requirements=encode(model),
        reward=reward,
        training_fee=fee,
        deadline_ms=1,
        height=1,
        slashed=slashed,
    )


@pytest.mark.parametrize(
    ("correct", "majority", "wanted"),
    [(90, 10, 1_000_000), (100, 10, 1_000_000), (50, 10, 500_000), (10, 10, 0), (3, 10, 0),
     (89, 88, 500_000), (95, 95, 1_000_000), (91, 100, 1_000_000), (89, 100, 0)],
)  # fmt: skip
def test_quality_is_the_way_from_guessing_to_what_was_asked(
    correct: int, majority: int, wanted: int
) -> None:
    """0.9 was asked for."""
    assert quality(900_000, Fraction(correct, 100), Fraction(majority, 100)) == wanted


def test_the_count_in_the_middle_decides() -> None:
    """By shares, whatever they are of; of two the lower one."""
    counts = [Result(TASK, *one, 1) for one in ((9, 10), (1, 2), (700, 1000), (99, 100))]
    assert median(counts) == counts[2]
    assert median(counts[:1]) == counts[0]


@pytest.mark.parametrize(("correct", "near"), [(52, True), (53, False), (48, True), (47, False)])
def test_near_is_two_percent_of_the_answers(correct: int, near: bool) -> None:
    """Exactly so, without rounding."""
    assert is_near(Result(TASK, correct, 100, 1), Result(TASK, 50, 100, 1)) is near


_AMOUNTS = st.integers(0, 2**58)
_COUNTS = st.tuples(st.integers(0, 2**62), st.integers(1, 2**62), st.integers(1, 2**62)).filter(
    lambda count: count[0] <= count[1] >= count[2]
)


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(_AMOUNTS, _AMOUNTS, _AMOUNTS),
    st.integers(0, 4),
    _COUNTS,
    st.integers(0, 2**62),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 2**62)),
    st.dictionaries(st.sampled_from("xyz"), _COUNTS),
    st.integers(0, 16),
)
def test_nothing_is_lost_whatever_came_of_it(
    amounts: tuple[int, int, int],
    reason: int,
    count: tuple[int, int, int],
    slots: int,
    work: dict[str, int],
    results: dict[str, tuple[int, int, int]],
    num_members: int,
) -> None:
    """Lines are whole millionths, none is negative, and together they are the escrow."""
    record = _record(*amounts)
    closing = Closing(1, 0, reason, slots, TASK, *count, 0, 2, 5)
    done = Work(tuple(sorted((account(who), number) for who, number in work.items())))
    found = {account(who): Result(TASK, *one) for who, one in results.items()}
    members = [account("m")] * num_members
    shares = split(record, MODEL, closing, done, found, members)
    assert min(line.amount for line in shares.payments.lines) >= 0
    assert sum(line.amount for line in shares.payments.lines) == record.escrow
    assert shares.paid <= record.escrow
    late = refund(record)
    assert sum(line.amount for line in late.payments.lines) == record.escrow
    assert late.paid == record.slashed
