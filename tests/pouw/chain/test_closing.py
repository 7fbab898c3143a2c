"""The end of clients' tasks: closed by a committee, shown, evaluated, paid out, to the last millionth."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.records import (
    CLIENT,
    EVALUATOR,
    MINER,
    OFFICE,
    POOL,
    SUPERVISOR,
    TaskRecord,
    committee_key,
)
from pocqueue.pouw.chain.reputation import reputation
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.errors import InvalidTransaction
from pocqueue.pouw.wire.transactions import REASONS, Close, Result, Reveal, Transaction
from tests.pouw.support import (
    GENESIS,
    account,
    after,
    closed,
    coins,
    founded,
    group_key,
    order,
    signed,
    ticket,
    transfer,
)

ORDER = signed("client", order(), 1)
HIDDEN = signed("client", order(test_hash="ab" * 32), 1)
#: Blocks that a client has to show its test part, and evaluators for their results.
REVEAL, RESULT = GENESIS.parameters.reveal_blocks, GENESIS.parameters.result_blocks


def _opened(task: Transaction) -> State:
    """A task for 50 + 5 PAI is open, and three evaluate."""
    names = ("e1", "e2", "e3")
    state = founded("client", "helper", *names)
    return after(state, task, *(signed(name, ticket(EVALUATOR, 50 * PAI), 1) for name in names))


@pytest.fixture(scope="module")
def opened() -> State:
    """Its test part is known to everybody."""
    return _opened(ORDER)


@pytest.fixture(scope="module")
def hidden() -> State:
    """Its client keeps a test part back; the training is over."""
    return after(_opened(HIDDEN), _close(HIDDEN.id, {account("miner"): 1}))


def _close(task: bytes, work: dict[bytes, int], sequence: int = 2, **changed: Any) -> Transaction:
    return signed("supervisor", closed(task, work, **changed), sequence)


def _result(name: str, correct: int, task: bytes = ORDER.id, sequence: int = 2) -> Transaction:
    return signed(name, Result(task, correct, 100, 10), sequence)


def _passed(state: State, blocks: int) -> State:
    for _ in range(blocks):
        state = after(state)
    return state


def _record(state: State, task: bytes = ORDER.id) -> TaskRecord:
    record = state.task(task)
    assert record is not None
    return record


def _gained(before: State, now: State, name: str) -> int:
    return now.account(account(name)).balance - before.account(account(name)).balance


def _refused(state: State, transaction: Transaction) -> str:
    with pytest.raises(InvalidTransaction) as refused:
        after(state, transaction)
    return refused.value.rule


def test_a_good_model_is_paid_for(opened: State) -> None:
    """60 % to miners by their work, 20 % to the committee, 15 % to evaluators, 5 % to the pool."""
    work = {account("miner"): 2, account("helper"): 1}
    state = after(after(opened, _close(ORDER.id, work)), _result("e1", 93), _result("e2", 95))
    assert not state.open_tasks()
    assert list(state.closed_tasks()) == [ORDER.id]
    assert _record(state).escrow == 55 * PAI
    before, state = state, _passed(state, RESULT)
    pot = 55 * PAI
    assert _gained(before, state, "miner") == pot * 40 // 100
    assert _gained(before, state, "helper") == pot * 20 // 100
    assert _gained(before, state, "supervisor") == pot * 20 // 100
    assert _gained(before, state, "e1") == _gained(before, state, "e2") == pot * 15 // 200
    assert _gained(before, state, "client") == 0
    assert state.supply.pool == pot * 5 // 100
    outcome = _record(state).outcome
    assert outcome is not None
    assert (_record(state).escrow, outcome.quality, outcome.paid) == (0, 1_000_000, pot)
    assert (outcome.correct, outcome.total) == (93, 100)
    assert not state.closed_tasks()
    assert not state.results(ORDER.id)


def test_who_got_what_stays_on_the_chain(opened: State) -> None:
    """Line by line, all of what was in escrow; also of an evaluator that got nothing."""
    state = after(opened, _close(ORDER.id, {account("miner"): 1}, correct=90))
    state = after(state, _result("e1", 90), _result("e2", 91), _result("e3", 50))
    lines = _passed(state, RESULT).payments(ORDER.id).lines
    assert [(line.role, line.amount) for line in lines if line.role != EVALUATOR] == [
        *((MINER, 33 * PAI), (SUPERVISOR, 11 * PAI), (POOL, 2_750_000), (CLIENT, 0)),
    ]
    evaluated = {line.account: line.amount for line in lines if line.role == EVALUATOR}
    good = 55 * PAI * 15 // 200
    assert evaluated == {account("e1"): good, account("e2"): good, account("e3"): 0}
    assert sum(line.amount for line in lines) == 55 * PAI


def test_without_evaluators_the_committee_counts(opened: State) -> None:
    """Their share goes back to the client."""
    closing = _close(ORDER.id, {account("miner"): 1}, correct=50)
    state = _passed(after(opened, closing), RESULT + 1)
    outcome = _record(state).outcome
    assert outcome is not None
    assert (outcome.correct, outcome.total, outcome.quality) == (50, 100, 500_000)
    assert _gained(opened, state, "client") == 25 * PAI + 30 * PAI * 15 // 100


def test_results_have_their_time(opened: State) -> None:
    """Not before a task is closed, not twice, not by its client or anybody without a ticket, not too late."""
    assert _refused(opened, _result("e1", 90)) == "stage"
    state = after(opened, _close(ORDER.id, {}))
    assert _refused(opened, _result("e1", 90)) == "stage"
    assert _refused(state, _result("helper", 90, sequence=1)) == "evaluator"
    state = after(state, _result("e1", 90))
    assert _refused(state, _result("e1", 80, sequence=3)) == "result"
    last = _passed(state, RESULT - 2)
    assert after(last, _result("e2", 90)).results(ORDER.id).keys() == {
        account("e1"),
        account("e2"),
    }
    assert _refused(_passed(last, 1), _result("e2", 90)) == "stage"


def test_many_small_evaluators_shut_out_no_large_one(
    opened: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are as many results as a task has, one of a larger stake comes in the place of the smallest."""
    monkeypatch.setattr("pocqueue.pouw.chain.closing.MAX_RESULTS", 2)
    state = after(opened, signed("helper", ticket(EVALUATOR, 101 * PAI), 1))
    state = after(after(state, _close(ORDER.id, {})), _result("e1", 93), _result("e2", 94))
    assert _refused(state, _result("e3", 94)) == "result"
    state = after(state, _result("helper", 96))
    out = min("e1", "e2", key=account)
    assert account("helper") in state.results(ORDER.id)
    assert account(out) not in state.results(ORDER.id)
    assert _refused(state, _result(out, 93, sequence=3)) == "result"
    record = _record(_passed(state, RESULT))
    assert record.outcome is not None
    assert record.outcome.correct == 96


def test_a_client_does_not_judge_its_own_task(opened: State) -> None:
    """With an evaluator's ticket neither."""
    state = after(opened, signed("client", ticket(EVALUATOR, 50 * PAI), 2), _close(ORDER.id, {}))
    assert _refused(state, _result("client", 0, sequence=3)) == "evaluator"


def test_a_hidden_test_part_is_shown_before_it_is_evaluated(hidden: State) -> None:
    """Results come after that, as long as ever."""
    assert _refused(hidden, _result("e1", 90, HIDDEN.id)) == "stage"
    shown = after(hidden, signed("client", Reveal(HIDDEN.id), 2))
    closing = _record(shown, HIDDEN.id).closing
    assert closing is not None
    assert closing.is_revealed
    assert _refused(shown, signed("client", Reveal(HIDDEN.id), 3)) == "stage"
    state = after(_passed(shown, RESULT - 1), _result("e1", 70, HIDDEN.id))
    assert _record(state, HIDDEN.id).outcome is None
    outcome = _record(after(state), HIDDEN.id).outcome
    assert outcome is not None
    assert outcome.correct == 70


def test_a_test_part_that_is_not_shown_does_not_count(hidden: State) -> None:
    """After its time evaluators take the part that everybody has; then it is paid out."""
    late = _passed(hidden, REVEAL)
    assert after(_passed(hidden, REVEAL - 1), signed("client", Reveal(HIDDEN.id), 2))
    assert _refused(late, signed("client", Reveal(HIDDEN.id), 2)) == "stage"
    state = after(late, _result("e1", 94, HIDDEN.id))
    outcome = _record(_passed(state, RESULT), HIDDEN.id).outcome
    assert outcome is not None
    assert outcome.correct == 94


def test_only_its_client_shows_a_test_part(hidden: State, opened: State) -> None:
    """And only of a task that has one and is closed."""
    assert _refused(hidden, signed("helper", Reveal(HIDDEN.id), 1)) == "task"
    assert _refused(opened, signed("client", Reveal(ORDER.id), 2)) == "stage"
    state = after(opened, _close(ORDER.id, {}))
    assert _refused(state, signed("client", Reveal(ORDER.id), 2)) == "stage"


@pytest.mark.parametrize("reason", REASONS[1:])
def test_what_cannot_be_trained_is_refunded_at_once(opened: State, reason: str) -> None:
    """The reward is; of the fee what the slots were worth that there were: here half of them."""
    changed = {"reason": REASONS.index(reason), "correct": 0, "total": 0, "majority": 0}
    state = after(opened, _close(ORDER.id, {account("miner"): 1}, **changed))
    outcome = _record(state).outcome
    assert outcome is not None
    assert (REASONS[outcome.reason], outcome.total, outcome.quality) == (reason, 0, 0)
    pot = 5 * PAI * 400 // 800
    assert _gained(opened, state, "miner") == pot * 60 // 100
    assert _gained(opened, state, "client") == 55 * PAI - pot * 85 // 100
    assert not state.open_tasks()
    assert not state.closed_tasks()


def test_a_task_is_closed_once(opened: State) -> None:
    """Whoever comes second is told that it is over."""
    state = after(opened, _close(ORDER.id, {}))
    assert _refused(state, _close(ORDER.id, {}, 3)) == "task"
    assert _refused(_passed(state, RESULT + 1), _close(ORDER.id, {}, 3)) == "task"


def test_the_committee_of_the_last_epoch_may_still_close(opened: State) -> None:
    """It has signed before it left; one before that has not."""
    state = opened
    for epoch, name in ((1, "first"), (2, "second")):
        draft = state.child()
        office, committee = draft.office, draft.committee_in_office
        assert office is not None
        assert committee is not None
        key = group_key(name).public_key
        draft.put(committee_key(epoch), replace(committee, epoch=epoch, group_key=key))
        draft.put(OFFICE, replace(office, epoch=epoch))
        state = draft.seal()
    assert _refused(state, _close(ORDER.id, {}, epoch=0)) == "committee"
    assert _refused(state, _close(ORDER.id, {}, epoch=1, group="second")) == "committee"
    assert _refused(state, _close(ORDER.id, {}, epoch=3, group="second")) == "committee"
    for epoch, name in ((1, "first"), (2, "second")):
        assert after(state, _close(ORDER.id, {}, epoch=epoch, group=name)).closed_tasks()


@pytest.mark.parametrize(
    ("close", "rule", "is_fault"),
    [
        (closed(ORDER.id, {}, 101, 100), "result", True),
        (closed(ORDER.id, {}, 1, 100, 101), "result", True),
        (closed(ORDER.id, {}, 0, 0, 0), "result", True),
        (closed(ORDER.id, {}, 1, 0, 0, reason=1), "result", True),
        (closed(ORDER.id, {}, reason=len(REASONS)), "reason", True),
        (replace(closed(ORDER.id, {}), work=((account("a"), 1, 0),) * 2), "work", True),
        (replace(closed(ORDER.id, {}), correct=96), "committee", False),
        (closed(bytes(32), {}), "task", False),
        (closed(ORDER.id, {}, group="other"), "committee", False),
        (closed(ORDER.id, {b"\x02" + (5).to_bytes(32, "big"): 1}), "account", False),
    ],
)
def test_what_a_committee_cannot_say(
    opened: State, close: Close, rule: str, is_fault: bool
) -> None:
    """It is refused by the rule that it breaks."""
    with pytest.raises(InvalidTransaction) as refused:
        after(opened, signed("supervisor", close, 2))
    assert (refused.value.rule, refused.value.is_fault) == (rule, is_fault)


def test_good_work_is_remembered(opened: State) -> None:
    """A hundred certified slots count as one good thing, 20 missed in a row as a bad one."""
    who = account("miner")
    before = reputation(opened, who)
    assert before == 500_000
    good = after(opened, _close(ORDER.id, {who: 300}))
    assert reputation(good, who) == 800_000
    # More parts than slots are still one slot each.
    assert reputation(after(opened, _close(ORDER.id, {who: 9000})), who) == 833_333
    bad = after(opened, _close(ORDER.id, {who: 0}, runs=3))
    assert reputation(bad, who) == 200_000


def test_coins_are_kept_from_order_to_payment(hidden: State) -> None:
    """In each block of a task's life."""
    state = after(hidden, signed("client", Reveal(HIDDEN.id), 2), signed("e1", transfer("b"), 2))
    state = after(state, _result("e2", 33, HIDDEN.id), _result("e3", 34, HIDDEN.id))
    for _ in range(RESULT + 1):
        assert coins(state) == state.supply.issued
        state = after(state)
    assert _record(state, HIDDEN.id).outcome is not None
    assert coins(state) == state.supply.issued
