"""What there is to see of clients' tasks costs little, and stays right while the chain turns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec

from pocqueue.pouw.chain.records import (
    CLIENT,
    EVALUATOR,
    MINER,
    Outcome,
    Payment,
    Payments,
    TaskRecord,
)
from pocqueue.pouw.flow.task_views import TaskViews

OWN, CLIENTS = b"n" * 33, b"c" * 33
#: An order of this node that came to nothing.
GIVEN_UP = b"g" * 32


def _record(reason: int) -> TaskRecord:
    outcome = Outcome(height=1, reason=reason, correct=0, total=0, quality=0, paid=0)
    return TaskRecord(
        client=CLIENTS,
        name="mine",
        task_type="image_classification",
        data="digits",
        requirements=b"",
        reward=1,
        training_fee=0,
        deadline_ms=0,
        height=1,
        outcome=outcome,
    )


class _Made:
    """A chain's state that counts how often its tasks are read."""

    clock = SimpleNamespace(height=3)

    def __init__(self) -> None:
        self.num_read = 0

    def tasks(self) -> dict[bytes, TaskRecord]:
        """Return three that were settled and one that was refunded."""
        self.num_read += 1
        return {bytes([at]) * 32: _record(reason) for at, reason in enumerate((0, 0, 1, 0))}

    def task(self, task: bytes) -> TaskRecord | None:
        """Return one of them."""
        return self.tasks().get(task)

    def payments(self, task: bytes) -> Payments:
        """Return who got what: in three of them this node, in the last one as a client."""
        role = CLIENT if task[0] == 3 else MINER
        return Payments((Payment(OWN, role, 7), Payment(OWN, EVALUATOR, 0)))

    def results(self, task: bytes) -> dict[bytes, object]:
        """Return none."""
        return {}


def _views(state: _Made, account: bytes = OWN) -> TaskViews:
    async def in_chain(work: Any, *args: Any) -> Any:
        return work(*args)

    async def num_slots(task: bytes) -> int:
        return 5

    tip = SimpleNamespace(id=b"tip", state=state)
    core: Any = SimpleNamespace(account=account, chain=SimpleNamespace(tip=tip), in_chain=in_chain)
    slots: Any = SimpleNamespace(num_slots=num_slots, newest=(b"", 0, None))
    closings: Any = SimpleNamespace(accuracy={})
    orders: Any = SimpleNamespace(why_given_up={GIVEN_UP: "deadline: it is over."}.get)
    nobody: Any = SimpleNamespace()
    return TaskViews(core, slots, closings, nobody, orders)


def test_tasks_are_counted_once_a_tip() -> None:
    """However often a node is asked how it stands: those that it has worked on."""
    state = _Made()
    views = _views(state)
    assert [views.ended() for _ in range(5)] == [(3, 1)] * 5
    assert state.num_read == 1
    views._core.chain.tip.id = b"next"  # type: ignore[misc]
    assert views.ended() == (3, 1)
    assert state.num_read == 2
    assert _views(state, b"o" * 33).ended() == (0, 0)


async def test_who_got_what_and_why_is_said() -> None:
    """With the reason for a refund, and for an evaluator that got nothing."""
    found = await _views(_Made(), CLIENTS).task("00" * 32)
    assert (found["state"], found["reason"]) == ("settled", None)
    assert [(one["amount"], one["for"]) for one in found["payouts"]] == [
        (7e-06, "training"),
        (0.0, "evaluating: more than 2 % off the median"),
    ]
    refunded = [one for one in await _views(_Made()).tasks() if one["state"] == "refunded"]
    assert [one["reason"] for one in refunded] == ["its deadline passed before it was trained"]


async def test_tasks_of_one_name_are_told_apart() -> None:
    """Each is found by its own id, an order that no block has by none of them."""
    views = _views(_Made(), CLIENTS)
    found = [await views.task(f"{at:02x}" * 32) for at in (0, 2)]
    assert [one["name"] for one in found] == ["mine", "mine"]
    assert [one["state"] for one in found] == ["settled", "refunded"]
    assert (await views.task("ff" * 32))["state"] == "sent"


async def test_an_order_past_its_deadline_is_not_called_waiting() -> None:
    """However long no block comes that could end it."""
    made = _Made()
    late = msgspec.structs.replace(_record(0), outcome=None)
    soon = msgspec.structs.replace(late, deadline_ms=2**62)
    for record, state in ((late, "past its deadline"), (soon, "waiting")):
        views = _views(made)
        made.task = lambda _, record=record: record  # type: ignore[method-assign,misc]
        assert (await views.task("00" * 32))["state"] == state


async def test_an_order_that_was_given_up_is_refused() -> None:
    """With the reason, so that nobody waits for it."""
    found = await _views(_Made(), CLIENTS).task(GIVEN_UP.hex())
    assert (found["state"], found["reason"]) == ("refused", "deadline: it is over.")
