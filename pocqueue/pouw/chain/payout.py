"""Who gets what of a client's task, as values; nothing here reads or changes a state.

A task's pot is its training fee, the stakes that were taken for faults in its training, and of its reward the share
that its quality Q is worth. Of the pot 60 % go to miners by certified slots x parts, 20 % to the committee that closed
it, 15 % to evaluators whose count is near the median, 5 % to the pool of bounties; everything else goes back to the
client. Of a task that could not be trained the pot is the fee for the slots that there were, and those stakes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Container, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate
from types import MappingProxyType
from typing import Final, NamedTuple

from pocqueue.pouw.chain.records import (
    CLIENT,
    EVALUATOR,
    MINER,
    POOL,
    SUPERVISOR,
    Closing,
    Payment,
    Payments,
    TaskRecord,
    Work,
)
from pocqueue.pouw.chain.tasks import MILLION, TaskModel
from pocqueue.pouw.slots.task import LAP
from pocqueue.pouw.wire.transactions import REASONS, Close, Result

TRAINED: Final = REASONS.index("trained")
#: Percent of a task's pot.
MINERS_SHARE, COMMITTEE_SHARE, EVALUATORS_SHARE, POOL_SHARE = 60, 20, 15, 5
#: An evaluator whose count is further off the median gets nothing.
_TOLERANCE: Final = Fraction(2, 100)
_NO_STAKES: Final[Mapping[bytes, int]] = MappingProxyType({})

Count = Result | Close | Closing


class Split(NamedTuple):
    """What comes of a task."""

    correct: int  #: the count that decided, of `total`; 0 of 0: nobody counted
    total: int
    quality: int  #: millionths
    payments: Payments

    @property
    def paid(self) -> int:
        """Return what does not go back to the client, in µPAI."""
        return sum(line.amount for line in self.payments.lines if line.role != CLIENT)


def split(
    record: TaskRecord,
    model: TaskModel,
    closing: Closing,
    work: Work,
    results: Mapping[bytes, Result],
    members: Sequence[bytes],
    stakes: Mapping[bytes, int] = _NO_STAKES,
    offenders: Container[bytes] = (),
) -> Split:
    """Return who gets what of a closed task's escrow, all of it.

    Args:
        record, model, closing, work: of the task.
        results: of evaluators, by account; of none that counts: the committee's own count decides.
        members: of the committee that closed it.
        stakes: of evaluators' live tickets, µPAI, by account.
        offenders: accounts that lost a stake for a fault in its training.
    """
    good = {who: one for who, one in results.items() if _counts(one, closing)}
    counts: list[tuple[Count, int]] = [(one, stakes.get(who, 0)) for who, one in good.items()]
    counts = counts or [(closing, 1)]
    counted = median(counts, accuracy)
    pot, value = record.slashed, 0
    if closing.reason == TRAINED:
        common = _common(median(counts, _common))
        value = quality(model.min_accuracy, accuracy(counted), common)
        pot += record.training_fee + record.reward * value // MILLION
    else:
        planned = model.max_epochs * LAP
        pot += record.training_fee * min(closing.slots, planned) // planned
    near = [who for who in sorted(good) if is_near(good[who], counted)]
    evaluated = pot * EVALUATORS_SHARE // 100 // len(near) if near else 0
    worked = [(who, number) for who, number in work.done if number and who not in offenders]
    done = sum(number for _, number in worked)
    mined = pot * MINERS_SHARE // 100 if done else 0
    certified = pot * COMMITTEE_SHARE // 100 // len(members) if members else 0
    miners = [Payment(who, MINER, mined * number // done) for who, number in worked]
    unshared = mined - sum(line.amount for line in miners)
    lines = [
        *miners,
        *(Payment(who, SUPERVISOR, certified) for who in members),
        *(Payment(who, EVALUATOR, evaluated * (who in near)) for who in sorted(results)),
    ]
    pooled = pot * POOL_SHARE // 100 + unshared
    rest = pot - pooled - sum(line.amount for line in lines)
    pooled += -(-rest * record.slashed // pot) if pot else 0
    lines.append(Payment(None, POOL, pooled))
    left = record.escrow - sum(line.amount for line in lines)
    lines.append(Payment(record.client, CLIENT, left))
    return Split(counted.correct, counted.total, value, Payments(tuple(lines)))


def refund(record: TaskRecord) -> Split:
    """Return what comes of a task that nobody closed in time: its client's coins go back to it.

    Stakes that were taken go to the pool: else a client could have its own back so.
    """
    client = Payment(record.client, CLIENT, record.escrow - record.slashed)
    return Split(0, 0, 0, Payments((Payment(None, POOL, record.slashed), client)))


def accuracy(count: Count) -> Fraction:
    """Return the share of right answers of a count; of none it is 0."""
    return Fraction(count.correct, count.total) if count.total else Fraction(0)


def median(counts: Sequence[tuple[Count, int]], share: Callable[[Count], Fraction]) -> Count:
    """Return the count in the middle by a share of it and by stakes; of two halves the lower one's last.

    Args:
        counts: with the stake of each; one at least. If nobody has a stake, all weigh the same.
        share: by which they are compared.
    """
    ranked = sorted(counts, key=lambda one: share(one[0]))
    weights = [weight for _, weight in ranked]
    weights = weights if any(weights) else [1] * len(ranked)
    middle = bisect_left([2 * upto for upto in accumulate(weights)], sum(weights))
    return ranked[middle][0]


def _common(count: Count) -> Fraction:
    """Return the share of the commonest answer; a count of what was trained has some."""
    return Fraction(count.majority, count.total)


def _counts(result: Result, closing: Closing) -> bool:
    """Say whether a result may decide.

    Unless the client has shown a hidden part, the committee has counted the same answers. Else who has two evaluators'
    tickets could take a reward back.
    """
    if closing.is_revealed:
        return True
    is_same = (result.total, result.majority) == (closing.total, closing.majority)
    return is_same and is_near(result, closing)


def is_near(count: Count, other: Count) -> bool:
    """Say whether two counts differ by at most 2 % of all answers."""
    return abs(accuracy(count) - accuracy(other)) <= _TOLERANCE


def quality(min_accuracy: int, reached: Fraction, common: Fraction) -> int:
    """Return Q in millionths: the way from the commonest answer to what was asked, 0 … 1.

    Args:
        min_accuracy: what was asked, in millionths.
        reached: share of right answers.
        common: share of right answers of whoever always says the commonest one.
    """
    wanted = Fraction(min_accuracy, MILLION)
    if reached >= wanted:
        return MILLION
    if reached <= common:
        return 0
    return int(MILLION * (reached - common) / (wanted - common))
