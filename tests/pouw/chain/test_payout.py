"""Who gets what, as values: the median, what is near it, quality, and that nothing is lost."""

from __future__ import annotations

from collections.abc import Container, Mapping
from fractions import Fraction
from types import MappingProxyType

import pytest
from hypothesis import given, settings, strategies as st
from msgspec import structs

from pocqueue.pouw.chain.payout import accuracy, is_near, median, quality, refund, split
from pocqueue.pouw.chain.records import CLIENT, POOL, Closing, TaskRecord, Work
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
    for stake in (0, 7):
        assert median([(one, stake) for one in counts], accuracy) == counts[2]
        assert median([(counts[0], stake)], accuracy) == counts[0]


@pytest.mark.parametrize(("stake", "wanted"), [(3, 0), (4, 90)])
def test_stakes_weigh_whoever_has_more_of_them_decides(stake: int, wanted: int) -> None:
    """Three tickets for 1 are no more than one for 3."""
    counts = [(Result(TASK, 0, 100, 1), 1)] * 3 + [(Result(TASK, 90, 100, 1), stake)]
    assert median(counts, accuracy).correct == wanted


_CLOSING = Closing(1, 0, 0, 400, TASK, 90, 100, 10, 0, 2, 5)
_WORK = Work(tuple(sorted(((account("m1"), 1), (account("m2"), 3)))))


def _split(
    record: TaskRecord,
    *lies: tuple[int, int, int],
    is_revealed: bool = False,
    stakes: Mapping[bytes, int] = MappingProxyType({}),
    offenders: Container[bytes] = (),
) -> dict[bytes | None, int]:
    """Return what each gets if the committee and an honest evaluator have counted 90 of 100, and others lie."""
    closing = structs.replace(_CLOSING, is_revealed=is_revealed)
    results = {account("honest"): Result(TASK, 90, 100, 10)}
    results |= {account(f"liar {n}"): Result(TASK, *lie) for n, lie in enumerate(lies)}
    found = split(
        *(record, MODEL, closing, _WORK, results, [account("s")]),
        stakes=stakes,
        offenders=offenders,
    )
    assert sum(line.amount for line in found.payments.lines) == record.escrow
    return {line.account: line.amount for line in found.payments.lines}


@pytest.mark.parametrize("lie", [(0, 100, 10), (90, 100, 100), (9, 10, 1), (87, 100, 10)])
def test_a_client_takes_no_reward_back_with_evaluators_of_its_own(
    lie: tuple[int, int, int],
) -> None:
    """However many there are: they have counted what the committee has counted, or do not count."""
    shares = _split(_record(100, 0, 0), lie, lie, lie)
    assert shares[account("client")] == 0
    assert shares[account("honest")] == 15
    assert shares[account("liar 0")] == 0


@pytest.mark.parametrize(("stake", "paid"), [(4, 15), (2, 0)])
def test_of_a_hidden_part_those_decide_who_have_staked_more(stake: int, paid: int) -> None:
    """The committee has not seen it."""
    stakes = {account(f"liar {number}"): 1 for number in range(3)} | {account("honest"): stake}
    shares = _split(_record(100, 0, 0), *[(0, 100, 10)] * 3, is_revealed=True, stakes=stakes)
    assert shares[account("honest")] == paid


def test_who_lost_a_stake_to_a_task_is_not_paid_for_its_work() -> None:
    """The others have its part; if there are none, nobody has."""
    shares = _split(_record(100, 0, 100), offenders={account("m2")})
    assert account("m2") not in shares
    assert shares[account("m1")] == 120


def test_of_stakes_that_were_lost_the_client_gets_nothing() -> None:
    """What is of nobody's work or evaluation is the pool's, also if the task could not be trained."""
    everybody = {account("m1"), account("m2")}
    shares = _split(_record(100, 100, 1000), offenders=everybody)
    assert shares[account("client")] == 120
    assert shares[None] == 60 + 600
    failed = structs.replace(_CLOSING, reason=2, slots=0)
    lines = split(_record(100, 100, 1000), MODEL, failed, Work(()), {}, []).payments.lines
    assert {line.role: line.amount for line in lines} == {CLIENT: 200, POOL: 1000}


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
    st.booleans(),
    st.sets(st.sampled_from("abcxyz")),
)
def test_nothing_is_lost_whatever_came_of_it(
    amounts: tuple[int, int, int],
    reason: int,
    count: tuple[int, int, int],
    slots: int,
    work: dict[str, int],
    results: dict[str, tuple[int, int, int]],
    num_members: int,
    is_revealed: bool,
    offenders: set[str],
) -> None:
    """Lines are whole millionths, none is negative, and together they are the escrow."""
    record = _record(*amounts)
    closing = Closing(1, 0, reason, slots, TASK, *count, 0, 2, 5, is_revealed)
    done = Work(tuple(sorted((account(who), number) for who, number in work.items())))
    found = {account(who): Result(TASK, *one) for who, one in results.items()}
    members = [account("m")] * num_members
    shares = split(
        *(record, MODEL, closing, done, found, members),
        stakes={who: 1 + who[0] for who in found},
        offenders={account(who) for who in offenders},
    )
    assert min(line.amount for line in shares.payments.lines) >= 0
    assert sum(line.amount for line in shares.payments.lines) == record.escrow
    assert record.slashed <= shares.paid <= record.escrow
    late = refund(record)
    assert sum(line.amount for line in late.payments.lines) == record.escrow
    assert late.paid == record.slashed
