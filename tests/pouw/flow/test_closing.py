"""What a supervisor says of a task whose training is over: its chain, slots and orders are real, the trainer is made up."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.records import TaskRecord
from pocqueue.pouw.errors import SlotError, TrainingError
from pocqueue.pouw.flow import closing, orders as orders_module
from pocqueue.pouw.flow.closing import Closings
from pocqueue.pouw.flow.gaps import Gaps
from pocqueue.pouw.flow.orders import Orders
from pocqueue.pouw.slots.task import LAP
from pocqueue.pouw.slots.weights import weights_hash
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.slots import Iteration
from pocqueue.pouw.wire.statements import statement_digest
from pocqueue.pouw.wire.transactions import REASONS, Close, Faucet
from tests.pouw.blocks import GENESIS, START_MS, sent, trained
from tests.pouw.flow.parts import Parts, parts
from tests.pouw.support import account, group_key, key, order

_DEADLINE_MS = START_MS + 3_600_000
_WEIGHTS = np.zeros(3, dtype=np.float32)


@dataclass
class _Supervisor:
    """A supervisor in office, with a client's task that is final."""

    node: Parts
    closings: Closings
    orders: Orders
    task: bytes
    now_ms: int = START_MS
    correct: int = 50
    looks: int = 0
    is_broken: bool = False

    async def accuracy(self, task: object, theta: object, part: object) -> Any:
        """See `Trainer.accuracy`."""
        self.looks += 1
        if self.is_broken:
            raise TrainingError("its child has ended.")
        return SimpleNamespace(correct=self.correct, total=100, majority=10)

    @property
    def record(self) -> TaskRecord:
        """Return what the chain has of the task."""
        record = self.node.core.chain.tip.state.task(self.task)
        assert record is not None
        return record

    @property
    def said(self) -> list[Close]:
        """Return what it has sent."""
        own = self.orders.own.values()
        return [one.body for one in own if isinstance(one.body, Close)]

    def worked(self, parts_of: dict[bytes, int], slots: range, entries: int = 5) -> None:
        """Put certified slots on disk in which accounts have worked, with maps of so many entries."""
        with self.node.store.transaction() as db:
            for slot in slots:
                at = (self.task, slot)
                db.execute("INSERT INTO record VALUES (?, ?, x'')", at)
                for place, (miner, number) in enumerate(parts_of.items()):
                    row = (*at, place, miner, number, encode(_message(self.task, entries)))
                    db.execute("INSERT INTO message VALUES (?, ?, ?, ?, ?, ?)", row)

    async def statement(self) -> Close:
        """Return what it says of the task."""
        await self.closings.close_due()
        [found] = self.said
        return found


def _message(task: bytes, entries: int) -> Iteration:
    return Iteration(
        *(1, GENESIS.network, task, 0, account("miner"), 0, 1, task, entries, task, 1, task),
        *(task, bytes(64)),
    )


@contextlib.asynccontextmanager
async def _supervisor(
    monkeypatch: pytest.MonkeyPatch, **requirements: object
) -> AsyncIterator[_Supervisor]:
    """Open one, in office as "supervisor", with a task of 5 laps at most."""
    async with parts() as node:
        core, secret = node.core, group_key("group")
        body = order(PAI, PAI, _DEADLINE_MS, **{"max_epochs": 5, **requirements})
        ordered = sent("client", 1, body)
        blocks = [sent("client", 0, Faucet()), ordered]
        core.chain.add(trained(core.chain.tip, blocks), START_MS + 60_000)
        core.chain.set_anchor(core.chain.tip.id)
        core.account = account("supervisor")

        async def sign(close: Close, timeout_s: float) -> bytes:
            return secret.sign(statement_digest(GENESIS.network, close))

        async def history(task: bytes) -> Any:
            # The rows of `worked` make none.
            number = await node.slots.num_slots(task)
            spec = SimpleNamespace(id=task)
            return SimpleNamespace(next_slot=number, task=spec, theta=b"", weights=_WEIGHTS)

        def stored(spec: Any, upto: int) -> Any:
            return SimpleNamespace(next_slot=upto + 1, task=spec, theta=b"", weights=_WEIGHTS)

        core.key = key("supervisor")
        orders = Orders(core)
        statements: Any = SimpleNamespace(sign=sign, judges={})
        fill = Gaps(core, node.slots, node.store).fill
        closings = Closings(core, node.slots, node.store, orders, statements, fill)
        assert statements.judges == {Close: closings.judge}
        found = _Supervisor(node, closings, orders, ordered.id)
        core.trainer = found  # type: ignore[assignment]
        monkeypatch.setattr(node.slots, "history", history)
        monkeypatch.setattr(node.store, "history", stored)
        for module in (closing, orders_module):
            monkeypatch.setattr(module, "now_ms", lambda: found.now_ms)
        yield found


async def test_a_task_that_was_trained_is_closed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With who worked, the weights after the last whole lap and this node's count; the chain takes it."""
    async with _supervisor(monkeypatch) as at:
        at.worked({account("miner"): 2, account("helper"): 1}, range(5 * LAP))
        said = await at.statement()
        work = {account("miner"): 80, account("helper"): 40}
        assert said.work == tuple((who, done, 0) for who, done in sorted(work.items()))
        assert (said.slots, said.theta) == (5 * LAP, weights_hash(_WEIGHTS))
        assert (REASONS[said.reason], said.correct, said.total) == ("trained", 50, 100)
        at.now_ms += 60_000
        assert await at.statement() == said
        chain = at.node.core.chain
        chain.add(trained(chain.tip, list(at.orders.own.values())), at.now_ms + 60_000)
        assert at.record.closing is not None
        assert not chain.tip.state.open_tasks()


async def test_a_task_goes_on_until_it_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at every three laps; each look is one count."""
    async with _supervisor(monkeypatch) as at:
        at.worked({account("miner"): 1}, range(3 * LAP))
        for _ in range(3):
            assert not await at.closings.is_over(at.task, at.record)
        assert at.looks == 1
        at.correct = 95
        at.worked({account("miner"): 1}, range(3 * LAP, 4 * LAP))
        assert not await at.closings.is_over(at.task, at.record)
    async with _supervisor(monkeypatch) as at:
        at.correct = 95
        at.worked({account("miner"): 1}, range(3 * LAP + 1))
        assert (await at.statement()).slots == 3 * LAP


async def test_a_tau_that_moves_nothing_ends_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """After two laps; one whose messages move something goes on."""
    async with _supervisor(monkeypatch) as at:
        at.worked({account("miner"): 1}, range(2 * LAP - 1), entries=0)
        assert not await at.closings.is_over(at.task, at.record)
        at.worked({account("miner"): 1}, range(2 * LAP - 1, 2 * LAP), entries=0)
        said = await at.statement()
        assert (REASONS[said.reason], said.total, said.slots) == ("tau", 0, 2 * LAP)
        assert said.work == ((account("miner"), 16, 0),)


async def test_a_deadline_ends_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was trained is paid for; what nobody trained comes back, with the reason."""
    async with _supervisor(monkeypatch) as at:
        at.worked({account("miner"): 1}, range(LAP + 3))
        at.now_ms = _DEADLINE_MS
        said = await at.statement()
        assert (REASONS[said.reason], said.slots) == ("trained", LAP)
        assert said.work == ((account("miner"), LAP, 0),)
    for requirements, reason in (({}, "deadline"), ({"min_miners": 9}, "miners")):
        async with _supervisor(monkeypatch, **requirements) as at:
            at.now_ms = _DEADLINE_MS - 1
            assert not await at.closings.is_over(at.task, at.record)
            at.now_ms = _DEADLINE_MS
            said = await at.statement()
            assert (REASONS[said.reason], said.slots, said.work) == (reason, 0, ())


async def test_trouble_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute later, and the trainer is asked once in that time."""
    async with _supervisor(monkeypatch) as at:
        at.worked({account("miner"): 1}, range(5 * LAP))
        at.is_broken = True
        for _ in range(2):
            await at.closings.close_due()
        assert (at.looks, at.said) == (1, [])
        at.now_ms, at.is_broken = at.now_ms + 30_000, False
        assert (await at.statement()).slots == 5 * LAP


async def test_many_tasks_are_looked_at_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many at a time; each has its turn."""
    monkeypatch.setattr(closing, "_LOOKED_AT", 2)
    async with _supervisor(monkeypatch) as at:
        chain, looked = at.node.core.chain, list[bytes]()
        more = [sent("client", 2 + number, order(PAI, PAI, _DEADLINE_MS)) for number in range(4)]
        chain.add(trained(chain.tip, more), START_MS + 60_000)
        chain.set_anchor(chain.tip.id)

        async def is_over(task: bytes, _record: TaskRecord) -> bool:
            looked.append(task)
            return False

        monkeypatch.setattr(at.closings, "is_over", is_over)
        for number in range(1, 6):
            await at.closings.close_due()
            assert len(looked) == 2 * number
        assert sorted(looked) == sorted([at.task, *(one.id for one in more)] * 2)


async def test_who_is_not_in_office_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others do."""
    async with _supervisor(monkeypatch) as at:
        at.worked({account("miner"): 1}, range(5 * LAP))
        at.node.core.account = account("node")
        await at.closings.close_due()
        assert at.said == []


async def test_a_member_signs_what_it_finds_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same slots, weights and work, and a count within 2 %."""
    async with _supervisor(monkeypatch) as at:
        at.worked({account("miner"): 1}, range(5 * LAP))
        said = await at.statement()
        judge = at.closings.judge
        assert await judge(said)
        assert await judge(replace(said, correct=52))
        for wrong in (
            replace(said, correct=53),
            replace(said, total=101),
            replace(said, theta=bytes(32)),
            replace(said, work=((account("miner"), 41, 0),)),
            replace(said, work=((account("miner"), 40, 1),)),
            replace(said, slots=4 * LAP),
            replace(said, reason=1),
            replace(said, reason=9),
            replace(said, task=bytes(32)),
        ):
            assert not await judge(wrong)
        with pytest.raises(SlotError, match="is not over at its slot 40 here"):
            await judge(replace(said, slots=6 * LAP))


async def test_a_task_that_goes_on_is_not_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for it; near the deadline clocks may differ."""
    async with _supervisor(monkeypatch) as at:
        at.worked({account("miner"): 1}, range(4 * LAP))
        own = await at.closings._statement(at.task, at.record, 0, 0, 4 * LAP)
        with pytest.raises(SlotError, match="is not over at its slot 32 here"):
            await at.closings.judge(own)
        at.now_ms = _DEADLINE_MS - 4000
        assert await at.closings.judge(own)


async def test_data_that_are_no_good_end_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, also if it was trained for a while; what was done is paid for."""
    async with _supervisor(monkeypatch) as at:
        at.worked({account("miner"): 1}, range(LAP))
        assert not await at.closings.is_over(at.task, at.record)
        at.node.core.data_problem = lambda task: "y_train has 11 classes"
        said = await at.statement()
        assert (REASONS[said.reason], said.slots, said.total) == ("data", LAP, 0)
        assert said.work == ((account("miner"), LAP, 0),)
