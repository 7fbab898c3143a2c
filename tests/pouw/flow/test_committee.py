"""What a supervisor does about clients' tasks: its chain, slots and orders are real, the trainer is made up."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.errors import TrainingError
from pocqueue.pouw.flow import committee, orders as orders_module
from pocqueue.pouw.flow.committee import CommitteeDuty
from pocqueue.pouw.flow.orders import Orders
from pocqueue.pouw.slots import collector
from pocqueue.pouw.wire.transactions import Faucet, Settle
from tests.pouw.blocks import GENESIS, START_MS, sent, trained
from tests.pouw.flow.parts import Parts, parts
from tests.pouw.support import account, group_key, order

_DEADLINE_MS = START_MS + 3_600_000


@dataclass
class _Supervisor:
    """A supervisor in office, with clients' tasks that are final."""

    node: Parts
    duty: CommitteeDuty
    tasks: list[bytes]
    now_ms: int = START_MS
    looks: int = 0
    is_broken: bool = False

    async def accuracy(self, task: object, theta: object, part: object) -> Any:
        """See `Trainer.accuracy`."""
        self.looks += 1
        if self.is_broken:
            raise TrainingError("its child has ended.")
        return SimpleNamespace(correct=50, total=100, majority=10)

    @property
    def settlements(self) -> list[Settle]:
        """Return what it has sent."""
        own = self.duty._orders.own.values()
        return [one.body for one in own if isinstance(one.body, Settle)]

    def worked(self, parts_of: dict[bytes, int], *slots: int, task: int = 0) -> None:
        """Put certified slots on disk in which accounts have worked."""
        with self.node.store.transaction() as db:
            for slot in slots:
                at = (self.tasks[task], slot)
                db.execute("INSERT INTO record VALUES (?, ?, x'')", at)
                for place, (miner, number) in enumerate(parts_of.items()):
                    row = (*at, place, miner, number)
                    db.execute("INSERT INTO message VALUES (?, ?, ?, ?, ?, x'')", row)


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
        duty = CommitteeDuty(
            *(node.core, node.slots, node.blocks, Orders(node.core), node.store),
            group_key("group"),
        )
        found = _Supervisor(node, duty, [one.id for one in orders])
        node.core.trainer = found  # type: ignore[assignment]
        for module in (committee, orders_module):
            monkeypatch.setattr(module, "now_ms", lambda: found.now_ms)
        yield found


def _without_history(monkeypatch: pytest.MonkeyPatch, at: _Supervisor) -> None:
    """Take each task's history for one of nothing: the rows of `worked` make none."""
    history = SimpleNamespace(next_slot=1, task=None, theta=b"")

    async def of(task: bytes) -> Any:
        return history

    monkeypatch.setattr(at.node.slots, "history", of)


async def test_a_task_of_many_workers_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the 256 that did most, as many as a settlement can name."""
    async with _supervisor(monkeypatch, PAI) as at:
        _without_history(monkeypatch, at)
        workers = {account(f"worker {number}"): 1 + number % 8 for number in range(300)}
        at.worked(workers, 0)
        at.now_ms = _DEADLINE_MS
        assert GENESIS.is_filler(await at.duty._task())
        [settle] = at.settlements
        assert len(settle.work) == 256
        assert settle.work == tuple(sorted(settle.work))
        left = [workers[one] for one in workers.keys() - dict(settle.work).keys()]
        assert max(left) <= min(done for _, done in settle.work)


async def test_a_task_in_trouble_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is settled half a minute later, and the trainer is asked once in that time."""
    async with _supervisor(monkeypatch, PAI) as at:
        _without_history(monkeypatch, at)
        at.worked({account("miner"): 1}, 0)
        at.now_ms, at.is_broken = _DEADLINE_MS, True
        for _ in range(2):
            assert GENESIS.is_filler(await at.duty._task())
        assert (at.looks, at.settlements) == (1, [])
        at.now_ms, at.is_broken = at.now_ms + 30_000, False
        await at.duty._task()
        assert len(at.settlements) == 1


async def test_work_that_is_not_known_is_not_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lacks a task's first slots would pay only those who came later."""
    async with _supervisor(monkeypatch, PAI) as at:
        _without_history(monkeypatch, at)
        at.worked({account("miner"): 1}, 8, 9)
        at.now_ms = _DEADLINE_MS
        assert GENESIS.is_filler(await at.duty._task())
        assert (at.looks, at.settlements) == (0, [])


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
