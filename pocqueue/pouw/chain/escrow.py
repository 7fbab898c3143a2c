"""Rules of clients' orders: what may be ordered, what it costs, and what goes into escrow for it."""

from __future__ import annotations

from typing import Final

from pocqueue.pouw.chain.amounts import text
from pocqueue.pouw.chain.genesis import Genesis, Parameters
from pocqueue.pouw.chain.records import (
    TaskRecord,
    open_key,
    order_key,
    task_key,
)
from pocqueue.pouw.chain.refusals import fault, refusal
from pocqueue.pouw.chain.state import Draft
from pocqueue.pouw.chain.tasks import TaskModel, check_data
from pocqueue.pouw.errors import BadEncoding, InvalidTask
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.wire.codec import decode
from pocqueue.pouw.wire.transactions import (
    OrderTask,
    Transaction,
)

#: Tasks of one account that are to be trained, at most: everybody looks at all of them again and again.
MAX_OPEN: Final = 32
_HOUR_MS: Final = 3_600_000


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
    return parameters.lap_fee * laps * (1 + (spec.paid_work >> 20))


def open_fee(parameters: Parameters, open_ms: int) -> int:
    """Return what an order pays whoever mines it, at least, in µPAI: the network's fee for each hour that begins before
    its deadline.

    It does not come back, as reward and training fee do if nobody trains the task: every node keeps the order so long.
    """
    return parameters.fee * -(-open_ms // _HOUR_MS)


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
    open_ms = order.deadline_ms - clock.time_ms
    if transaction.fee < (least := open_fee(genesis.parameters, open_ms)):
        raise refusal(
            "open-fee",
            f"{text(transaction.fee)}; allowed for an order whose deadline is {open_ms} ms after the block: at least "
            f"{text(least)}.",
        )
    if len(draft.scan(order_key(transaction.sender))) >= MAX_OPEN:
        raise refusal(
            "open-tasks",
            f"{MAX_OPEN} of its sender's are to be trained, and no more may be: wait until one is over.",
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
    draft.put(order_key(transaction.sender, transaction.id), b"")
