"""What there is to see of clients' tasks: how far each is, and in the end who got what, and for what."""

from __future__ import annotations

from typing import Any

from pocqueue.pouw.chain.amounts import pai
from pocqueue.pouw.chain.records import (
    CLIENT,
    EVALUATOR,
    MINER,
    POOL,
    SUPERVISOR,
    Closing,
    Payment,
    TaskRecord,
)
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.committee.work import TERM
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.flow.closing import Closings
from pocqueue.pouw.flow.core import Core, now_ms
from pocqueue.pouw.flow.matching import Matching
from pocqueue.pouw.flow.orders import Orders
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.wire.transactions import REASONS

_FOR = {
    MINER: "training",
    SUPERVISOR: "certifying",
    EVALUATOR: "evaluating",
    POOL: "bounties",
    CLIENT: "what is left",
}
#: Why a task's training ended, in a sentence's words, in the order of `REASONS`.
_WHY = (
    "trained",
    "its deadline passed before it was trained",
    "its data are missing or are not what the order says",
    "messages of its first slots moved next to nothing: tau is too large",
    "nobody trained it",
)


class TaskViews:
    """Reads what the chain and this node know of clients' tasks.

    Args:
        core, slots, closings, matching, orders: of the node.
    """

    def __init__(
        self,
        core: Core,
        slots: SlotFlow,
        closings: Closings,
        matching: Matching,
        orders: Orders,
    ) -> None:
        self._core, self._slots, self._closings = core, slots, closings
        self._matching, self._orders = matching, orders
        # Tip's id, and how many tasks ended there that this node has worked on, well and otherwise.
        self._ended_at: tuple[bytes, tuple[int, int]] = (b"", (0, 0))

    async def tasks(self) -> list[dict[str, Any]]:
        """Return the clients' tasks, newest first."""
        state = self._core.chain.tip.state
        found = await self._core.in_chain(state.tasks)
        newest_first = sorted(found.items(), key=lambda item: -item[1].height)
        return [await self._shown(state, task, record) for task, record in newest_first]

    async def task(self, identifier: str) -> dict[str, Any]:
        """Return a task by its id in hex; one that this node ordered also if no block has it yet, or it was given up.

        By its name it could not be found: a client may have several of the same.
        """
        task, state = bytes.fromhex(identifier), self._core.chain.tip.state
        record = await self._core.in_chain(state.task, task)
        if record is not None:
            return await self._shown(state, task, record)
        reason = self._orders.why_given_up(task)
        return {
            **{"id": identifier, "state": "sent" if reason is None else "refused"},
            **{"slots": 0, "accuracy": None, "reason": reason},
        }

    def ended(self) -> tuple[int, int]:
        """Return how many of the tasks that this node has worked on were settled, and how many refunded."""
        tip, account = self._core.chain.tip, self._core.account
        if self._ended_at[0] != tip.id:
            trained = [
                not record.outcome.reason
                for task, record in tip.state.tasks().items()
                if record.outcome and _has_worked(account, tip.state.payments(task).lines)
            ]
            self._ended_at = tip.id, (sum(trained), len(trained) - sum(trained))
        return self._ended_at[1]

    async def _shown(self, state: State, task: bytes, record: TaskRecord) -> dict[str, Any]:
        closing, outcome = record.closing, record.outcome
        slots = closing.slots if closing else await self._slots.num_slots(task)
        accuracy = self._closings.accuracy.get(task)
        if count := outcome or closing:
            accuracy = count.correct / count.total if count.total else accuracy
        is_trained = not outcome and not closing and self._slots.newest[0] == task
        found: dict[str, Any] = {
            "id": task.hex(),
            "name": record.name,
            "data": record.data,
            "reward": pai(record.reward),
            "fee": pai(record.training_fee),
            "client": record.client.hex(),
            "slots": slots,
            "accuracy": accuracy,
            "state": "training" if is_trained else _stage(record, now_ms()),
            "height": state.clock.height,
            "reason": _WHY[outcome.reason] if outcome and outcome.reason else None,
            "quality": outcome.quality / 1_000_000 if outcome else None,
            "matched": await self._matched(task) if is_trained else None,
            "closing": closing and _closed(closing),
            "results": [
                {
                    "account": account.hex(),
                    "correct": result.correct,
                    "total": result.total,
                    "majority": result.majority,
                }
                for account, result in state.results(task).items()
            ],
            "payouts": [_paid(line) for line in state.payments(task).lines],
        }
        return found

    async def _matched(self, task: bytes) -> dict[str, Any] | None:
        """Return who trains the open slot of a task; None: it is not known here, or it waits for the next beacon."""
        slot = self._slots.newest[1]
        try:
            accounts = await self._matching.accounts(task, slot)
        except SlotError:
            return None
        if accounts is None:
            return None
        hexed = sorted(account.hex() for account in accounts)
        return {"term": slot - slot % TERM, "slots": TERM, "accounts": hexed}


def _has_worked(account: bytes, lines: tuple[Payment, ...]) -> bool:
    return any(line.account == account and line.role != CLIENT for line in lines)


def _stage(record: TaskRecord, now_ms: int) -> str:
    if record.outcome:
        return "refunded" if record.outcome.reason else "settled"
    if record.closing:
        is_asked = record.closing.asks_until and not record.closing.is_revealed
        return "asked for its test part" if is_asked else "evaluated"
    # A later block closes it or pays it back; without a committee there is none.
    return "waiting" if now_ms < record.deadline_ms else "past its deadline"


def _closed(closing: Closing) -> dict[str, Any]:
    return {
        "height": closing.height,
        "epoch": closing.epoch,
        "reason": REASONS[closing.reason],
        "theta": closing.theta.hex(),
        "correct": closing.correct,
        "total": closing.total,
        "is_revealed": closing.is_revealed,
        "asks_until": closing.asks_until,
        "opens_at": closing.opens_at,
        "pays_at": closing.pays_at,
    }


def _paid(line: Payment) -> dict[str, Any]:
    what = _FOR[line.role]
    if line.role == EVALUATOR and not line.amount:
        what = "evaluating: more than 2 % off the median"
    account = "pool of bounties" if line.account is None else line.account.hex()
    return {"account": account, "amount": pai(line.amount), "for": what}
