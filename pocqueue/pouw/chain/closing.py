"""Rules of the end of clients' tasks: closed by the committee, shown, evaluated, paid out.

A task that was trained goes on after its `Close`: if it has a hidden test part, its client has `reveal_blocks` to show
it; then evaluators have `result_blocks` for what they find, one result each; then it is paid out at the beginning of
the next block. One that could not be trained is over at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import msgspec

from pocqueue.pouw.chain.genesis import Genesis, Parameters
from pocqueue.pouw.chain.payout import TRAINED, Split, refund, split
from pocqueue.pouw.chain.records import (
    EVALUATOR,
    MAX_RESULTS,
    SUPPLY,
    Closing,
    Outcome,
    TaskRecord,
    Work,
    due_key,
    open_key,
    order_key,
    payments_key,
    result_key,
    task_key,
    work_key,
)
from pocqueue.pouw.chain.refusals import fault, refusal
from pocqueue.pouw.chain.reputation import MISSED, note
from pocqueue.pouw.chain.signatures import is_account
from pocqueue.pouw.chain.state import Draft
from pocqueue.pouw.chain.tasks import TaskModel
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.codec import decode
from pocqueue.pouw.wire.statements import statement_digest
from pocqueue.pouw.wire.transactions import REASONS, Close, Result, Reveal, Transaction

_replace = msgspec.structs.replace


def check_close(close: Close) -> None:
    """Return if these numbers can have come of a task.

    Raises:
        InvalidTransaction: they cannot.
    """
    if close.reason >= len(REASONS):
        raise fault("reason", f"{close.reason}; allowed: 0 to {len(REASONS) - 1}.")
    if close.reason == TRAINED or close.total:
        check_result(close)
    elif close.correct or close.majority:
        raise fault("result", "right answers of none.")
    if any(first[0] >= second[0] for first, second in pairwise(close.work)):
        raise fault("work", "its accounts are not ascending.")


def check_result(count: Close | Result) -> None:
    """Return if these numbers can have come of an evaluation.

    Raises:
        InvalidTransaction: they cannot.
    """
    if not (count.correct <= count.total and 1 <= count.majority <= count.total):
        raise fault(
            "result",
            f"{count.correct} right and {count.majority} of the commonest answer, of {count.total}.",
        )


def close_task(genesis: Genesis, draft: Draft, transaction: Transaction) -> None:
    """End a task's training as the committee has signed that it went."""
    close = transaction.body
    assert isinstance(close, Close)
    record, office = draft.task(close.task), draft.office
    if record is None or record.closing or record.outcome:
        raise refusal("task", f"{close.task.hex()} is no task that is to be trained.")
    # That of the epoch before may have signed it before the next one came.
    is_late = office is None or not 0 <= office.epoch - close.epoch <= 1
    committee = None if is_late else draft.committee(close.epoch)
    digest = statement_digest(genesis.network, close)
    if committee is None or not bls.verify(committee.group_key, digest, close.signature):
        raise refusal(
            "committee", "the signature is not that of the committee in office or of the last one."
        )
    for account, _, _ in close.work:  # only now: points are dear, and anybody can send a statement
        if not is_account(account):
            raise refusal("account", f"{account.hex()} is no account: nobody can have its key.")
    for account, done, runs in close.work:
        note(draft, account, good=min(done, close.slots), bad=MISSED * runs)
    closing = _closing(genesis.parameters, draft, close, record)
    work = Work(tuple((account, done) for account, done, _ in close.work))
    record = _replace(record, closing=closing)
    draft.put(open_key(record.deadline_ms, close.task), None)
    draft.put(order_key(record.client, close.task), None)
    if close.reason == TRAINED:
        draft.put(task_key(close.task), record)
        draft.put(work_key(close.task), work)
        draft.put(due_key(closing.pays_at, close.task), b"")
    else:
        _pay(draft, close.task, record, closing, work)


def reveal(genesis: Genesis, draft: Draft, transaction: Transaction) -> None:
    """Begin the evaluation of a closed task on the test part that its client shows."""
    assert isinstance(transaction.body, Reveal)
    task, height = transaction.body.task, draft.clock.height
    record = draft.task(task)
    if record is None or record.client != transaction.sender:
        raise refusal("task", f"{task.hex()} is no task of its sender.")
    closing = record.closing
    if closing is None or closing.is_revealed or height > closing.asks_until:
        raise refusal("stage", f"{task.hex()} waits for no test part at height {height}.")
    opens_at = height + 1
    changed = _replace(
        closing,
        opens_at=opens_at,
        pays_at=opens_at + genesis.parameters.result_blocks,
        is_revealed=True,
    )
    draft.put(due_key(closing.pays_at, task), None)
    draft.put(due_key(changed.pays_at, task), b"")
    draft.put(task_key(task), _replace(record, closing=changed))


def give_result(genesis: Genesis, draft: Draft, transaction: Transaction) -> None:
    """Note what an evaluator found of a closed task."""
    result, sender = transaction.body, transaction.sender
    assert isinstance(result, Result)
    record, height = draft.task(result.task), draft.clock.height
    closing = record and record.closing
    if record is None or record.outcome or not closing or height < closing.opens_at:
        raise refusal("stage", f"{result.task.hex()} takes no results at height {height}.")
    if draft.live_ticket(sender, EVALUATOR) is None or sender == record.client:
        raise refusal("evaluator", f"{sender.hex()} has no live ticket of one, or is the client.")
    known = draft.results(result.task)
    if sender in known:
        raise refusal("result", f"there is one of {sender.hex()} already.")
    if len(known) >= MAX_RESULTS:
        # Stakes decide, so many evaluators with little shut out none with much.
        stakes = _stakes(draft, [*known, sender])
        least = min(known, key=lambda who: (stakes.get(who, 0), who))
        if stakes[sender] <= stakes.get(least, 0):
            raise refusal("result", f"there are {MAX_RESULTS} already with no smaller stakes.")
        draft.put(result_key(result.task, least), None)
    draft.put(result_key(result.task, sender), result)


def pay_due(draft: Draft, height: int) -> None:
    """Pay out the tasks whose evaluation is over at this height."""
    for key, _ in draft.scan(due_key(height)):
        task = key[-32:]
        record = draft.task(task)
        work = draft.work(task)
        assert record is not None, task.hex()
        assert record.closing is not None, task.hex()
        _pay(draft, task, record, record.closing, work)
        draft.put(key, None)
        draft.put(work_key(task), None)
        for account in draft.results(task):
            draft.put(result_key(task, account), None)


def refund_late(parameters: Parameters, draft: Draft, time_ms: int) -> None:
    """Give back what is in escrow for tasks that nobody closed in time."""
    for deadline_ms, task in draft.open_deadlines():  # nothing else is read of those that have time
        if deadline_ms + parameters.grace_ms >= time_ms:
            break
        record = draft.task(task)
        assert record is not None, task.hex()
        draft.put(open_key(deadline_ms, task), None)
        draft.put(order_key(record.client, task), None)
        _end(draft, task, record, REASONS.index("deadline"), refund(record))


def _closing(parameters: Parameters, draft: Draft, close: Close, record: TaskRecord) -> Closing:
    height, asks_until = draft.clock.height, 0
    opens_at = height + 1
    is_hidden = decode(record.requirements, TaskModel).test_hash is not None
    if is_hidden and close.reason == TRAINED:
        asks_until = height + parameters.reveal_blocks
        opens_at = asks_until + 1
    return Closing(
        height=height,
        epoch=close.epoch,
        reason=close.reason,
        slots=close.slots,
        theta=close.theta,
        correct=close.correct,
        total=close.total,
        majority=close.majority,
        asks_until=asks_until,
        opens_at=opens_at,
        pays_at=opens_at + parameters.result_blocks,
    )


def _pay(draft: Draft, task: bytes, record: TaskRecord, closing: Closing, work: Work) -> None:
    model, committee = decode(record.requirements, TaskModel), draft.committee(closing.epoch)
    assert committee is not None, closing.epoch
    results = draft.results(task)
    stakes = _stakes(draft, results)
    offenders = _offenders(draft, task, work) if record.slashed else set()
    parts = split(record, model, closing, work, results, committee.members, stakes, offenders)
    _end(draft, task, record, closing.reason, parts)


def _stakes(draft: Draft, evaluators: Iterable[bytes]) -> dict[bytes, int]:
    """Return what evaluators' live tickets have staked, µPAI, of those that have one."""
    tickets = {who: draft.live_ticket(who, EVALUATOR) for who in evaluators}
    live = {who: draft.ticket(ticket) for who, ticket in tickets.items() if ticket}
    return {who: one.stake for who, one in live.items() if one}


def _offenders(draft: Draft, task: bytes, work: Work) -> set[bytes]:
    """Return who has worked on a task and lost a stake to it."""
    slashes = {who: draft.slashes(who).get(who, []) for who, _ in work.done}
    return {who for who, found in slashes.items() if any(one.task == task for one in found)}


def _end(draft: Draft, task: bytes, record: TaskRecord, reason: int, parts: Split) -> None:
    supply = draft.supply
    for line in parts.payments.lines:
        if line.account is None:
            supply = _replace(supply, pool=supply.pool + line.amount)
        else:
            draft.credit(line.account, line.amount)
    draft.put(SUPPLY, supply)
    outcome = Outcome(
        height=draft.clock.height,
        reason=reason,
        correct=parts.correct,
        total=parts.total,
        quality=parts.quality,
        paid=parts.paid,
    )
    draft.put(task_key(task), _replace(record, outcome=outcome))
    draft.put(payments_key(task), parts.payments)
