"""Clients' orders: what may be ordered, what that costs, and that it comes back if nobody trains it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.escrow import check_order, open_task
from pocqueue.pouw.chain.records import TaskRecord
from pocqueue.pouw.chain.state import State, _task_record
from pocqueue.pouw.chain.tasks import parse_requirements
from pocqueue.pouw.errors import InvalidTransaction
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.transactions import REASONS, OrderTask
from tests.pouw.support import (
    DAY_MS,
    DEV,
    GENESIS,
    account,
    after,
    closed,
    founded,
    order,
    signed,
)

ORDER = signed("client", order(), 1)
GRACE_MS = GENESIS.parameters.grace_ms
PRIVACY = {"noise_multiplier": 16, "max_norm": 0.5, "epsilon": 12, "delta": 1e-6}


@pytest.fixture(scope="module")
def opened() -> State:
    """A task for 50 + 5 PAI is open."""
    return after(founded("client"), ORDER)


def _balance(state: State, name: str) -> int:
    return state.account(account(name)).balance


def test_an_order_goes_into_escrow(opened: State) -> None:
    """Reward and fee leave the client's balance."""
    record = opened.task(ORDER.id)
    assert record is not None
    assert record.escrow == 55 * PAI
    assert _balance(opened, "client") == 1945 * PAI
    assert list(opened.open_tasks()) == [ORDER.id]


@pytest.mark.parametrize(
    ("requirements", "least"),
    [
        ({"max_epochs": 1}, 2 * 2_000),  # 1.04 of 2^20: the part of a MiB that was begun counts
        ({}, 100 * 2 * 2_000),
        ({"architecture": "CNN"}, 100 * 8 * 2_000),
        ({"max_epochs": 1_000, "batch_size": 1}, 1_000 * 2_000),
        ({"max_epochs": 1_000, "hidden": [900, 900], "batch_size": 100}, 1_000 * 84 * 2_000),
        ({"max_epochs": 10, "batch_size": 487, "privacy": PRIVACY}, 10 * 9 * 2_000),
    ],
)
def test_training_is_paid_for_by_its_laps_and_work(
    requirements: dict[str, Any], least: int
) -> None:
    """On `dev`, 0.002 PAI a lap and for each 2^20 multiply-accumulates: nobody holds all others up for nothing."""
    wanted = {"architecture": "MLP", **requirements}
    body = msgspec.structs.replace(
        order(training_fee=least), requirements=encode(parse_requirements(wanted, "digits"))
    )
    check_order(DEV.parameters, body)
    with pytest.raises(
        InvalidTransaction, match=r"^training-fee: .* laps of this model"
    ) as refused:
        check_order(DEV.parameters, msgspec.structs.replace(body, training_fee=least - 1))
    assert refused.value.is_fault


def test_a_late_task_is_refunded(opened: State) -> None:
    """In the first block after its grace is over, all of it."""
    left_ms = order().deadline_ms + GRACE_MS - opened.clock.time_ms
    state = after(opened, passed_ms=left_ms)
    assert _balance(state, "client") == 1945 * PAI
    state = after(state, passed_ms=1)
    assert _balance(state, "client") == 2000 * PAI
    record = state.task(ORDER.id)
    assert record is not None
    assert record.outcome is not None
    outcome = record.outcome
    assert (REASONS[outcome.reason], outcome.total, outcome.paid) == ("deadline", 0, 0)
    assert not state.open_tasks()


@pytest.mark.parametrize(
    ("deadline_ms", "fee", "is_good"),
    [(1, 100, True), (3_600_000, 100, True), (3_600_001, 199, False), (30 * DAY_MS, 71_999, False)],
)
def test_an_order_pays_for_the_time_that_it_is_open(
    deadline_ms: int, fee: int, is_good: bool
) -> None:
    """`dev` takes a ten-thousandth of a PAI for each hour that begins: reward and training fee may come back."""
    draft = founded("client").child()
    body = order(deadline_ms=draft.clock.time_ms + deadline_ms)
    one = signed("client", body, 1, fee)
    if not is_good:
        with pytest.raises(InvalidTransaction, match="open-fee") as refused:
            open_task(DEV, draft, one)
        assert not refused.value.is_fault
        one = signed("client", body, 1, fee + 1)
    open_task(DEV, draft, one)
    assert one.id in draft.open_tasks()


def test_open_tasks_are_decoded_once(opened: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """A committee looks at them for every slot, and each block changes few of them; one that refunds nobody does not
    look into them."""
    _task_record.cache_clear()
    state = after(opened, signed("client", order(), 2))
    read: list[bytes] = []

    def counted(data: bytes, kind: type[Any]) -> Any:
        read.extend([data] if kind is TaskRecord else [])
        return decode(data, kind)

    monkeypatch.setattr("pocqueue.pouw.chain.state.decode", counted)
    later = after(state)
    assert not read
    for _ in range(3):
        assert len(later.open_tasks()) == 2
    assert len(read) == 2
    later.open_tasks().clear()  # a copy
    assert len(later.open_tasks()) == 2
    assert len(after(later, signed("client", order(), 3)).open_tasks()) == 3
    assert len(read) == 3


def test_an_account_has_so_many_open_tasks_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is taken once one is over, whether it was closed or refunded; others' do not count."""
    monkeypatch.setattr("pocqueue.pouw.chain.escrow.MAX_OPEN", 2)
    soon = signed("client", order(deadline_ms=GENESIS.time_ms + DAY_MS // 2), 1)
    state = after(founded("client", "other"), soon, signed("client", order(), 2))
    state = after(state, signed("other", order(), 1))
    third = signed("client", order(), 3)
    with pytest.raises(InvalidTransaction, match="2 of its sender's are to be trained") as refused:
        after(state, third)
    assert (refused.value.rule, refused.value.is_fault) == ("open-tasks", False)
    closed_one = after(state, signed("supervisor", closed(soon.id, {}), 2))
    assert third.id in after(closed_one, third).open_tasks()
    left_ms = GENESIS.time_ms + DAY_MS // 2 + GRACE_MS - state.clock.time_ms
    refunded = after(state, passed_ms=left_ms + 1)
    assert soon.id not in refunded.open_tasks()
    assert third.id in after(refunded, third).open_tasks()


@pytest.mark.parametrize(
    ("changes", "rule", "is_fault"),
    [
        ({"reward": 0}, "reward", True),
        ({"data": "words"}, "task", True),
        ({"task_type": "speech"}, "task", True),
        ({"requirements": b""}, "task", True),
        ({"requirements": order().requirements + b"\x00"}, "task", True),
        ({"task_type": "nlp", "data": "words"}, "task", True),
        ({"deadline_ms": GENESIS.time_ms - DAY_MS}, "deadline", False),
        ({"deadline_ms": GENESIS.time_ms + 31 * DAY_MS}, "deadline", False),
        ({"deadline_ms": 2**62}, "deadline", False),
        ({"reward": 2001 * PAI}, "balance", False),
        ({"training_fee": 2**62}, "balance", False),
    ],
)
def test_an_order_that_is_refused(changes: dict[str, object], rule: str, is_fault: bool) -> None:
    """By the rule that it breaks."""
    body: OrderTask = msgspec.structs.replace(order(), **changes)
    with pytest.raises(InvalidTransaction) as refused:
        after(founded("client"), signed("client", body, 1))
    assert (refused.value.rule, refused.value.is_fault) == (rule, is_fault)
