"""Rules of clients' tasks: what is in escrow for one, and who gets it.

A task's pot is its training fee, the stakes that were taken for faults in it, and of its reward the share that its
quality Q is worth. Of the pot 60 % go to miners by certified slots x parts, 20 % to the committee, 15 % to evaluators
(there are none yet: to the client) and 5 % to the pool of bounties; everything else goes back to the client.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from pocqueue.pouw.chain.amounts import text
from pocqueue.pouw.chain.genesis import Genesis, Parameters
from pocqueue.pouw.chain.records import (
    SUPPLY,
    Clock,
    Outcome,
    TaskRecord,
    open_key,
    task_key,
)
from pocqueue.pouw.chain.refusals import fault, refusal
from pocqueue.pouw.chain.signatures import is_account
from pocqueue.pouw.chain.state import Draft
from pocqueue.pouw.chain.tasks import MILLION, TaskModel, check_data
from pocqueue.pouw.errors import BadEncoding, InvalidTask
from pocqueue.pouw.slots import bls
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.wire.codec import decode
from pocqueue.pouw.wire.transactions import (
    OrderTask,
    Settle,
    Transaction,
    settlement_digest,
)

#: Percent of a task's pot.
MINERS_SHARE, COMMITTEE_SHARE, POOL_SHARE = 60, 20, 5


class Payouts(NamedTuple):
    """Who gets what of a task, in µPAI."""

    quality: int  #: millionths
    miners: list[tuple[bytes, int]]  #: by account
    committee: list[tuple[bytes, int]]
    pool: int

    @property
    def total(self) -> int:
        """Return what does not go back to the client."""
        return self.pool + sum(amount for _, amount in (*self.miners, *self.committee))


def check_order(parameters: Parameters, order: OrderTask) -> None:
    """Return if a task can be trained as it is ordered, and pays for that.

    Raises:
        InvalidTransaction: it cannot.
    """
    if not order.reward:
        raise fault("reward", "nothing; allowed: at least 0.000001 PAI.")
    try:
        check_data(order.task_type, order.data, order.shape)
        model = decode(order.requirements, TaskModel)
        spec = model.spec(bytes(32), order.data, order.shape)
    except (BadEncoding, InvalidTask) as exc:
        raise fault("task", str(exc)) from None
    least = training_fee(parameters, model.max_epochs, spec)
    if order.training_fee < least:
        raise fault(
            "training-fee",
            f"{text(order.training_fee)}; allowed for {model.max_epochs:,} laps of this model: at least {text(least)}.",
        )


def training_fee(parameters: Parameters, laps: int, spec: TaskSpec) -> int:
    """Return what the training of a task costs its client at least, in µPAI: by its laps and its work.

    Whatever comes of it this is paid, so nobody holds the network up for nothing.
    """
    return parameters.lap_fee * laps * (1 + (spec.work() >> 20))


def open_task(genesis: Genesis, draft: Draft, transaction: Transaction) -> None:
    """Put a task's reward and fee into escrow; they are part of what the transaction takes from the balance."""
    order, clock = transaction.body, draft.clock
    assert isinstance(order, OrderTask)
    if order.deadline_ms <= clock.time_ms:
        raise refusal("deadline", f"{order.deadline_ms} is not after the block's {clock.time_ms}.")
    longest_ms = genesis.parameters.longest_ms
    if order.deadline_ms > clock.time_ms + longest_ms:
        raise refusal(
            "deadline",
            f"{order.deadline_ms} is more than {longest_ms} ms after the block's {clock.time_ms}.",
        )
    draft.put(
        task_key(transaction.id),
        TaskRecord(
            client=transaction.sender,
            name=order.name,
            task_type=order.task_type,
            data=order.data,
            requirements=order.requirements,
            reward=order.reward,
            training_fee=order.training_fee,
            deadline_ms=order.deadline_ms,
            height=clock.height,
            shape=order.shape,
        ),
    )
    draft.put(open_key(order.deadline_ms, transaction.id), b"")


def check_settlement(settle: Settle) -> None:
    """Return if these numbers can have come of a task.

    Raises:
        InvalidTransaction: they cannot.
    """
    if not (settle.correct <= settle.total and 1 <= settle.majority <= settle.total):
        raise fault(
            "result",
            f"{settle.correct} right and {settle.majority} of the commonest answer, of {settle.total}.",
        )
    if any(first[0] >= second[0] for first, second in pairwise(settle.work)):
        raise fault("work", "its accounts are not ascending.")


def settle_task(genesis: Genesis, draft: Draft, transaction: Transaction) -> None:
    """Pay out a task as the committee in office has signed that it went."""
    settle = transaction.body
    assert isinstance(settle, Settle)
    record, committee = draft.task(settle.task), draft.committee_in_office
    if record is None or record.outcome:
        raise refusal("task", f"{settle.task.hex()} is no open task.")
    digest = settlement_digest(genesis.network, settle)
    if committee is None or not bls.verify(committee.group_key, digest, settle.signature):
        raise refusal("committee", "the signature is not that of the committee in office.")
    for account, _ in settle.work:  # only now: points are dear, and anybody can send a settlement
        if not is_account(account):
            raise refusal("account", f"{account.hex()} is no account: nobody can have its key.")
    shares = payouts(record, settle, committee.members)
    for account, amount in (*shares.miners, *shares.committee):
        draft.credit(account, amount)
    supply = draft.supply
    draft.put(SUPPLY, msgspec.structs.replace(supply, pool=supply.pool + shares.pool))
    outcome = Outcome(
        height=draft.clock.height,
        correct=settle.correct,
        total=settle.total,
        quality=shares.quality,
        paid=shares.total,
    )
    _close(draft, settle.task, record, outcome)


def payouts(record: TaskRecord, settle: Settle, members: Sequence[bytes]) -> Payouts:
    """Return who gets what of a task's escrow; the rest goes back to its client."""
    value = quality(decode(record.requirements, TaskModel).min_accuracy, settle)
    pot = record.reward * value // MILLION + record.training_fee + record.slashed
    work = sum(done for _, done in settle.work)
    mined = pot * MINERS_SHARE // 100 if work else 0
    miners = [(account, mined * done // work) for account, done in settle.work] if work else []
    part = pot * COMMITTEE_SHARE // 100 // len(members) if members else 0
    unshared = mined - sum(amount for _, amount in miners)
    return Payouts(
        quality=value,
        miners=miners,
        committee=[(account, part) for account in members],
        pool=pot * POOL_SHARE // 100 + unshared,
    )


def quality(min_accuracy: int, settle: Settle) -> int:
    """Return Q in millionths: the way from the commonest answer to what was asked, 0 … 1."""
    wanted = min_accuracy * settle.total
    if settle.correct * MILLION >= wanted:
        return MILLION
    gained = (settle.correct - settle.majority) * MILLION
    # What was asked is above what was reached, and that is above the commonest answer if anything was gained.
    return gained * MILLION // (wanted - settle.majority * MILLION) if gained > 0 else 0


def refund_late(parameters: Parameters, draft: Draft, clock: Clock) -> None:
    """Give back what is in escrow for tasks that nobody settled in time."""
    for deadline_ms, task in draft.open_deadlines():  # nothing else is read of those that have time
        if deadline_ms + parameters.grace_ms >= clock.time_ms:
            break
        record = draft.task(task)
        assert record is not None, task.hex()
        _close(draft, task, record, Outcome(clock.height, 0, 0, 0, 0))


def _close(draft: Draft, task: bytes, record: TaskRecord, outcome: Outcome) -> None:
    draft.credit(record.client, record.escrow - outcome.paid)
    draft.put(task_key(task), msgspec.structs.replace(record, outcome=outcome))
    draft.put(open_key(record.deadline_ms, task), None)
