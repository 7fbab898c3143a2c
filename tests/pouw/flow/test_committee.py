"""Which task a supervisor turns to: its chain, slots and orders are real, the trainer is made up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.records import MINER
from pocqueue.pouw.committee.seats import Seat
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.flow import (
    closing,
    committee,
    open_slot,
    orders as orders_module,
    task_choice,
    turns,
)
from pocqueue.pouw.flow.closing import Closings
from pocqueue.pouw.flow.committee import CommitteeDuty
from pocqueue.pouw.flow.core import Tasks
from pocqueue.pouw.flow.gaps import Gaps
from pocqueue.pouw.flow.hearing import Hearing
from pocqueue.pouw.flow.matching import Matching
from pocqueue.pouw.flow.orders import Orders
from pocqueue.pouw.flow.proposals import deep_anchor
from pocqueue.pouw.slots import collector
from pocqueue.pouw.slots.collector import Collector
from pocqueue.pouw.wire.slots import Certificate
from pocqueue.pouw.wire.transactions import Faucet
from pocqueue.pouw.wire.votes import Proposal, ProposalHead
from tests.pouw.blocks import GENESIS, START_MS, sent, trained
from tests.pouw.flow.parts import Parts, parts
from tests.pouw.support import group_key, order

_DEADLINE_MS = START_MS + 3_600_000


@dataclass
class _Supervisor:
    """A supervisor in office, with clients' tasks that are final."""

    node: Parts
    duty: CommitteeDuty
    seat: Seat
    tasks: list[bytes]
    now_ms: int = START_MS

    async def accuracy(self, task: object, theta: object, part: object) -> Any:
        """See `Trainer.accuracy`."""
        return SimpleNamespace(correct=50, total=100, majority=10)


async def _always(*, is_alone: bool) -> bool:
    return True


@contextlib.asynccontextmanager
async def _supervisor(
    monkeypatch: pytest.MonkeyPatch, *fees: int, min_miners: int = 1
) -> AsyncIterator[_Supervisor]:
    """Open one with a task for each fee."""
    async with parts() as node:
        chain = node.core.chain
        bodies = [order(PAI, fee, _DEADLINE_MS, min_miners=min_miners) for fee in fees]
        orders = [sent("client", 1 + number, body) for number, body in enumerate(bodies)]
        faucets = [sent("client", 0, Faucet()), sent("node", 0, Faucet())]
        chain.add(trained(chain.tip, [*faucets, *orders]), START_MS + 60_000)
        chain.set_anchor(chain.tip.id)
        secret = group_key("group")

        statements: Any = SimpleNamespace(judges={})
        fill = Gaps(node.core, node.slots, node.store).fill
        closings = Closings(node.core, node.slots, node.store, Orders(node.core), statements, fill)
        office = chain.tip.state.committee_in_office
        assert office is not None
        seat = Seat(office, 0, secret)
        duty = CommitteeDuty(
            *(node.core, node.slots, node.blocks, node.store, closings),
            Matching(node.core, node.slots, node.store),
            Hearing(node.core, node.slots, node.missing.append),
            Tasks("node"),
            lambda committee: seat if committee == office else None,
            lambda _fault: None,
        )
        duty._bench.may_sign = _always  # its chain names slots that are not here
        found = _Supervisor(node, duty, seat, [one.id for one in orders])
        node.core.trainer = found  # type: ignore[assignment]
        for module in (closing, committee, open_slot, orders_module, task_choice, turns):
            monkeypatch.setattr(module, "now_ms", lambda: found.now_ms)
        yield found


async def test_what_pays_best_for_a_lap_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many cheap ones were ordered beside it."""
    fees = [fee * PAI for fee in (3, 1, 6, 2, 5, 4)]
    async with _supervisor(monkeypatch, *fees) as at:
        for fee in sorted(fees, reverse=True):
            task = await at.duty.choice.chosen()
            assert task == at.tasks[fees.index(fee)]
            assert await at.duty.choice.allows(task)
            at.duty.choice._pauses[task] = _DEADLINE_MS
        assert not await at.duty.choice.allows(b"t" * 32)


async def test_many_tasks_have_their_turns_to_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few for each choice, those that pay best first; the others wait no longer than those are found not to be due."""
    monkeypatch.setattr(task_choice, "_LOOKED_AT", 2)
    fees = [fee * PAI for fee in (5, 4, 3, 2, 1)]
    async with _supervisor(monkeypatch, *fees) as at:
        choice, looked = at.duty.choice, list[bytes]()

        async def is_due(task: bytes, _record: object) -> bool:
            looked.append(task)
            return task == at.tasks[4]

        monkeypatch.setattr(choice, "_is_due", is_due)
        for _ in range(2):
            assert GENESIS.is_filler(await choice.chosen())
        assert looked == at.tasks[:4]
        for _ in range(2):
            assert await choice.chosen() == at.tasks[4]
        assert looked[4:] == [at.tasks[4]] * 2
        at.now_ms += 30_000
        assert GENESIS.is_filler(await choice.chosen())
        assert looked[6:] == at.tasks[:2]


async def test_tasks_that_want_more_miners_than_there_are_cost_one_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many they are, and how much they pay: nothing of them is asked of the slots' thread."""
    async with _supervisor(monkeypatch, *[9 * PAI] * 5, min_miners=16) as at:
        counts, state = [], at.node.core.chain.tip.state
        live_tickets = state.live_tickets

        def counted(role: int) -> Any:
            counts.append(role)
            return live_tickets(role)

        monkeypatch.setattr(state, "live_tickets", counted)
        assert GENESIS.is_filler(await at.duty.choice.chosen())
        assert counts == [MINER]


async def test_a_task_that_nobody_trains_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """After two laps of empty slots, for 10 minutes, then for 20; the filler goes on."""
    monkeypatch.setattr(collector, "IDLE_MS", 0)
    async with _supervisor(monkeypatch, PAI) as at:
        for rest_ms in (600_000, 1_200_000):
            for _ in range(16):
                assert await at.duty.choice.chosen() == at.tasks[0]
                await _empty_slot(at)
            newest = at.node.slots.newest[2]
            assert newest is not None
            at.now_ms = newest.certificate.time_ms
            assert GENESIS.is_filler(await at.duty.choice.chosen())
            at.now_ms += rest_ms - 1
            assert GENESIS.is_filler(await at.duty.choice.chosen())
            at.now_ms += 1
        assert await at.duty.choice.chosen() == at.tasks[0]


async def test_a_leader_burns_no_task_that_others_would_not_choose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An empty slot is good of the task that is chosen, and of the one before while that does not rest and is not over."""
    monkeypatch.setattr(collector, "IDLE_MS", 0)
    monkeypatch.setattr(Matching, "accounts", _everybody)
    async with _supervisor(monkeypatch, 2 * PAI, PAI) as at:
        best, other = at.tasks
        assert await _is_good(at, best)
        assert not await _is_good(at, other)
        at.duty.choice._pauses[best] = at.now_ms + 1
        assert await at.duty.choice.chosen() == other
        assert await _is_good(at, best)  # for those who have not put it off
        at.duty.choice._pauses.clear()
        for _ in range(16):
            await _empty_slot(at)
        at.now_ms = _newest(at).time_ms
        assert _newest(at).task == best
        assert await at.duty.choice.chosen() == other
        assert not await _is_good(at, best)  # it rests
        assert await _is_good(at, other)
        await _empty_slot(at)
        assert _newest(at).task == other
        at.now_ms = _newest(at).time_ms + 600_000
        assert await at.duty.choice.chosen() == best
        assert await _is_good(at, best)
        assert await _is_good(at, other)
        at.now_ms = _DEADLINE_MS + 60_000
        assert not await _is_good(at, other)  # it is over


async def _everybody(_matching: Matching, _task: bytes, _slot: int) -> None:
    return None


async def _is_good(at: _Supervisor, task: bytes) -> bool:
    """Say whether a member finds an empty next slot of a task good."""
    signed, history = at.node.slots.newest[2], await at.node.slots.history(task)
    newest = None if signed is None else signed.certificate
    made = Collector(history, slot_ms=1).value(
        *(at.now_ms, at.seat.committee.epoch, deep_anchor(at.node.core.chain, newest), newest)
    )
    head = ProposalHead(made.certificate, None, 0, bytes(64))
    try:
        await at.duty._bench.judge._now(Proposal(head, made.ids), newest)
    except SlotError as exc:
        if exc.rule != "task":
            raise
        return False
    return True


def _newest(at: _Supervisor) -> Certificate:
    newest = at.node.slots.newest[2]
    assert newest is not None
    return newest.certificate


async def _empty_slot(at: _Supervisor) -> None:
    """Certify a slot without messages; the clock goes on meanwhile."""
    slot = at.node.slots.next_turn
    going = asyncio.ensure_future(at.duty.run_turn(at.seat))
    while not going.done():
        at.now_ms += 50
        at.node.slots.heard.ring()
        await asyncio.wait([going], timeout=0.01)
    await going
    assert at.node.slots.next_turn == slot + 1
