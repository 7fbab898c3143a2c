"""What a supervisor in office does: turn after turn it certifies a slot with the other members, and it makes founding
blocks while nobody can make others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple

from pocqueue.pouw.chain.candidate import mine_founding
from pocqueue.pouw.chain.office import Step, is_founder
from pocqueue.pouw.chain.records import SUPERVISOR, Committee
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.chain.tickets import is_founding_allowed
from pocqueue.pouw.committee.seats import FindSeat, Seat
from pocqueue.pouw.committee.steps import founding_due_ms
from pocqueue.pouw.errors import (
    InvalidTransaction,
    NodeDataError,
    PeerFault,
    SlotError,
    TrainingError,
)
from pocqueue.pouw.flow.bench import Bench
from pocqueue.pouw.flow.blocks import BlockFlow
from pocqueue.pouw.flow.closing import Closings
from pocqueue.pouw.flow.core import Core, Tasks, now_ms, wait_for
from pocqueue.pouw.flow.hearing import Hearing
from pocqueue.pouw.flow.lanes import Lanes
from pocqueue.pouw.flow.matching import Matching
from pocqueue.pouw.flow.open_slot import OpenSlot
from pocqueue.pouw.flow.proposals import Judge
from pocqueue.pouw.flow.readiness import Readiness
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.flow.task_choice import TaskChoice
from pocqueue.pouw.flow.turns import OpenTurn
from pocqueue.pouw.slots.history import SlotHistory
from pocqueue.pouw.slots.slot_store import SlotStore
from pocqueue.pouw.wire.blocks import Block
from pocqueue.pouw.wire.evidence import TwoProposals, TwoVotes
from pocqueue.pouw.wire.transactions import TakeTicket

_IDLE_S = 1.0
#: How often a founding block is tried while they are counted.
_FOUNDING_S = 0.1

_log = logging.getLogger(__name__)


class _Known(NamedTuple):
    """Whether this node has a seat in a committee, at a tip."""

    committee: Committee
    tip: bytes
    seat: Seat | None


class CommitteeDuty:
    """The work of a committee's member.

    Args:
        core, slots, blocks, store, closings, matching, hearing, tasks: of the node.
        find_seat: this node's in a committee.
        on_fault: hears what shows that a member has contradicted itself.
    """

    def __init__(
        self,
        core: Core,
        slots: SlotFlow,
        blocks: BlockFlow,
        store: SlotStore,
        closings: Closings,
        matching: Matching,
        hearing: Hearing,
        tasks: Tasks,
        find_seat: FindSeat,
        on_fault: Callable[[TwoVotes | TwoProposals], None],
    ) -> None:
        self._core, self._slots, self._blocks = core, slots, blocks
        self._closings, self._tasks, self._find_seat = closings, tasks, find_seat
        self._readiness = Readiness(core, slots)
        lanes = Lanes(core, matching)
        self.choice = TaskChoice(core, slots, matching, closings.is_over)
        self._bench = Bench(
            core=core,
            slots=slots,
            store=store,
            hearing=hearing,
            judge=Judge(core, slots, self.choice, lanes),
            open_slot=OpenSlot(core, slots, self.choice, lanes),
            may_sign=self._readiness.may_sign,
            on_fault=on_fault,
        )
        self._seat: _Known | None = None
        self._is_looking = False

    async def run_slots(self) -> None:
        """Certify slot after slot while in office."""
        core, slots, changed = self._core, self._slots, asyncio.Event()
        with core.chain_changed.sets(changed), slots.changed.sets(changed):
            while True:
                changed.clear()
                seat = await self._own_seat()
                if seat is None or not await self._readiness.may_sign(
                    is_alone=len(seat.committee.members) == 1
                ):
                    self._bench.open_slot.drop()
                    await wait_for(changed, _IDLE_S)
                    continue
                try:
                    await self.run_turn(seat)
                except (NodeDataError, SlotError, TrainingError) as exc:
                    _log.error("%s No slot is certified: %s", core.name, exc)
                    await asyncio.sleep(_IDLE_S)

    async def run_turn(self, seat: Seat) -> None:
        """Go through one turn of a committee that this node has a seat in."""
        before = self._slots.next_turn
        await OpenTurn(self._bench, seat).run()
        newest = self._slots.newest[2]
        if newest is not None and self._slots.next_turn == before + 1:
            history = await self._slots.history(newest.certificate.task)
            self.choice.note(history)
            if not self._is_looking:
                self._is_looking = True
                self._tasks.start(self._look(history))

    async def run_founding(self) -> None:
        """Make founding blocks of the transactions that wait, while only such blocks can be made."""
        while True:
            try:
                made = await self._found()
            except (InvalidTransaction, PeerFault) as exc:
                _log.warning("%s No founding block: %s", self._core.name, exc)
                made = False
            if not made:
                state = self._core.chain.tip.state
                is_making = state.generation is not None or (
                    state.office is None and bool(self._core.genesis.supervisors)
                )
                await self._core.mempool_changed.heard(_FOUNDING_S if is_making else _IDLE_S)

    async def _own_seat(self) -> Seat | None:
        committee, tip = await self._slots.committee(), self._core.chain.tip.id
        if committee is None:
            return None
        known = self._seat
        if (
            known is None
            or known.committee != committee
            or (known.seat is None and known.tip != tip)
        ):
            seat = await self._core.in_chain(self._find_seat, committee)
            known = self._seat = _Known(committee, tip, seat)
        return known.seat

    async def _look(self, history: SlotHistory) -> None:
        """Count the right answers of the common model, where that is due; slots go on meanwhile."""
        try:
            await self._closings.look(history)
        except TrainingError as exc:
            _log.warning("%s The common model is not looked at: %s", self._core.name, exc)
        finally:
            self._is_looking = False

    async def _found(self) -> bool:
        """Make a founding block if one is due; True if one was made.

        Not before this node has what those have that it is linked to: it would found a network beside theirs.
        """
        if not self._readiness.may_act():
            return False
        block = await self._core.in_chain(self._founding_block)
        if block is None:
            return False
        ahead_s = (block.header.time_ms - now_ms()) / 1000
        if ahead_s > 0:
            await asyncio.sleep(ahead_s)
        if block.header.parent != self._core.chain.tip.id:
            return False  # somebody else's came meanwhile
        return await self._blocks.take(block, None)

    def _founding_block(self) -> Block | None:
        """Return a block of what waits, if it may be one and we are a supervisor after it."""
        core, tip = self._core, self._core.chain.tip
        time_ms, parameters = now_ms(), core.genesis.parameters
        if not (
            is_founding_allowed(parameters, tip.state, time_ms)
            and is_founder(core.genesis, tip.state, core.account)
            and self._has_ticket(tip.state)
        ):
            return None
        waiting = [(one.sender, one.body) for one in core.mempool if isinstance(one.body, Step)]
        if time_ms < founding_due_ms(core.genesis, tip.state, core.account, waiting):
            return None
        return mine_founding(core.genesis, tip, core.mempool, core.key, time_ms)

    def _has_ticket(self, state: State) -> bool:
        """We are a supervisor, or a ticket of ours waits for this very block."""
        core = self._core
        return state.live_ticket(core.account, SUPERVISOR) is not None or any(
            one.sender == core.account and isinstance(one.body, TakeTicket) for one in core.mempool
        )
