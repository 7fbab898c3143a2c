"""Which task a supervisor turns to: its chain, slots and orders are real, the trainer is made up."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.flow import closing, committee, orders as orders_module
from pocqueue.pouw.flow.closing import Closings
from pocqueue.pouw.flow.committee import CommitteeDuty
from pocqueue.pouw.flow.orders import Orders
from pocqueue.pouw.slots import collector
from pocqueue.pouw.wire.transactions import Faucet
from tests.pouw.blocks import GENESIS, START_MS, sent, trained
from tests.pouw.flow.parts import Parts, parts
from tests.pouw.support import group_key, order

_DEADLINE_MS = START_MS + 3_600_000


@dataclass
class _Supervisor:
    """A supervisor in office, with clients' tasks that are final."""

    node: Parts
    duty: CommitteeDuty
    tasks: list[bytes]
    now_ms: int = START_MS

    async def accuracy(self, task: object, theta: object, part: object) -> Any:
        """See `Trainer.accuracy`."""
        return SimpleNamespace(correct=50, total=100, majority=10)


@contextlib.asynccontextmanager
async def _supervisor(monkeypatch: pytest.MonkeyPatch, *fees: int) -> AsyncIterator[_Supervisor]:
    """Open one with a task for each fee."""
    async with parts() as node:
        chain = node.core.chain
        bodies = [order(PAI, fee, _DEADLINE_MS) for fee in fees]
        orders = [sent("client", 1 + number, body) for number, body in enumerate(bodies)]
        faucets = [sent("client", 0, Faucet()), sent("node", 0, Faucet())]
        chain.add(trained(chain.tip, [*faucets, *orders]), START_MS + 60_000)
        chain.set_anchor(chain.tip.id)
        secret = group_key("group")

        statements: Any = SimpleNamespace(judges={})
        closings = Closings(node.core, node.slots, node.store, Orders(node.core), statements)
        duty = CommitteeDuty(node.core, node.slots, node.blocks, closings, secret)
        found = _Supervisor(node, duty, [one.id for one in orders])
        node.core.trainer = found  # type: ignore[assignment]
        for module in (closing, committee, orders_module):
            monkeypatch.setattr(module, "now_ms", lambda: found.now_ms)
        yield found


async def test_what_pays_best_for_a_lap_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many cheap ones were ordered beside it."""
    fees = [fee * PAI for fee in (3, 1, 6, 2, 5, 4)]
    async with _supervisor(monkeypatch, *fees) as at:
        for fee in sorted(fees, reverse=True):
            task = await at.duty._task()
            assert task == at.tasks[fees.index(fee)]
            at.duty._rests[task] = _DEADLINE_MS


async def test_a_task_that_nobody_trains_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """After two laps of empty slots, for 10 minutes, then for 20; the filler goes on."""
    monkeypatch.setattr(collector, "IDLE_MS", 0)
    async with _supervisor(monkeypatch, PAI) as at:
        for rest_ms in (600_000, 1_200_000):
            for _ in range(16):
                assert await at.duty._task() == at.tasks[0]
                await _empty_slot(at)
            assert GENESIS.is_filler(await at.duty._task())
            at.now_ms += rest_ms - 1
            assert GENESIS.is_filler(await at.duty._task())
            at.now_ms += 1
        assert await at.duty._task() == at.tasks[0]


async def _empty_slot(at: _Supervisor) -> None:
    office = at.node.core.chain.tip.state.committee_in_office
    assert office is not None
    history = await at.node.slots.history(at.tasks[0])
    slot = history.next_slot
    while history.next_slot == slot:
        at.now_ms += 10
        await at.duty._slot(history, office)
