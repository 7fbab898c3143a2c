"""What a supervisor in office does: it certifies slot after slot, turns to clients' tasks, and makes founding blocks
while nobody can make others."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter

from pocqueue.pouw.chain.candidate import mine_founding
from pocqueue.pouw.chain.office import Step, is_founder
from pocqueue.pouw.chain.records import MINER, SUPERVISOR, Committee, TaskRecord
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.chain.tasks import TaskModel
from pocqueue.pouw.chain.tickets import is_founding_allowed
from pocqueue.pouw.committee.steps import founding_due_ms
from pocqueue.pouw.errors import (
    InvalidTransaction,
    NodeDataError,
    PeerFault,
    PouwError,
    SlotError,
    TrainingError,
)
from pocqueue.pouw.flow.blocks import BlockFlow
from pocqueue.pouw.flow.closing import Closings
from pocqueue.pouw.flow.core import Core, now_ms
from pocqueue.pouw.flow.readiness import Readiness
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.slots import bls
from pocqueue.pouw.slots.collector import Anchor, Collector
from pocqueue.pouw.slots.history import Advance, Lane, SlotHistory
from pocqueue.pouw.slots.task import LAP
from pocqueue.pouw.wire.blocks import Block
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.transactions import TakeTicket

#: Blocks of its chain above the one that a supervisor names as final.
ANCHOR_DEPTH = 2
_IDLE_S = 1.0
#: How often a founding block is tried while they are counted.
_FOUNDING_S = 0.1
#: How often the open slot is looked at if nothing is heard.
_TICK_S = 0.05
#: Blocks that are looked at for the newest filler.
_LOOKED_BACK = 1000
#: A task that is in trouble is tried again after this.
_PAUSE_MS = 30_000
#: After so many slots in a row without a message a task is left; for this long, and longer each time.
_EMPTY_SLOTS, _REST_MS = 2 * LAP, 600_000

_log = logging.getLogger(__name__)


class CommitteeDuty:
    """The work of a committee of one.

    Args:
        core, slots, blocks, closings: of the node.
        secret: BLS key of its ticket.
    """

    def __init__(
        self,
        core: Core,
        slots: SlotFlow,
        blocks: BlockFlow,
        closings: Closings,
        secret: bls.SecretKey,
    ) -> None:
        self._core, self._slots, self._blocks = core, slots, blocks
        self._closings, self._secret = closings, secret
        self._readiness = Readiness(core, slots)
        self._collector: tuple[SlotHistory, Committee, Collector] | None = None
        #: Until when (ms) a client's task is not looked at, and until when not trained.
        self._pauses: dict[bytes, int] = {}
        self._rests: dict[bytes, int] = {}
        #: Slots without a message in a row, by client's task.
        self._empty: Counter[bytes] = Counter()
        self._generation: int | None = None

    async def run_slots(self) -> None:
        """Certify slot after slot while in office."""
        while True:
            committee = await self._committee()
            if committee is None or not await self._readiness.may_sign():
                self._drop()
                await self._core.chain_changed.heard(_IDLE_S)
                continue
            try:
                history = await self._slots.history(await self._task())
                await self._slot(history, committee)
            except (NodeDataError, SlotError, TrainingError) as exc:
                _log.error("%s No slot is certified: %s", self._core.name, exc)
                await asyncio.sleep(_IDLE_S)

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

    async def _committee(self) -> Committee | None:
        committee = await self._slots.committee()
        is_ours = committee is not None and committee.group_key == self._secret.public_key
        return committee if is_ours else None

    async def _slot(self, history: SlotHistory, committee: Committee) -> None:
        """Wait for the open slot's messages, and certify it."""
        collector = self._collect(history, committee)
        heard = asyncio.ensure_future(self._slots.heard.heard(_TICK_S))
        try:
            newest = self._slots.newest[2]
            last = newest.certificate if newest else None
            advance = await self._slots.in_slots(
                collector.tick, now_ms(), self._lanes(), self._anchor(), last
            )
            if advance is None:
                await heard
                return
        finally:
            heard.cancel()
        await self._slots.decide(history, advance)
        self._note(history.task.id, advance)
        self._core.network.push(Kind.RECORD, encode(advance.slot.record))
        await self._closings.look(history)

    def _collect(self, history: SlotHistory, committee: Committee) -> Collector:
        if self._collector is None or self._collector[:2] != (history, committee):
            collector = Collector(
                history, self._secret, committee, slot_ms=self._core.genesis.parameters.slot_ms
            )
            self._collector = (history, committee, collector)
            self._slots.collect(history, collector)
        return self._collector[2]

    def _note(self, task: bytes, advance: Advance) -> None:
        """Leave a client's task for a while if nobody trains it."""
        if advance.slot.messages:
            del self._empty[task]
        elif not self._core.genesis.is_filler(task):
            self._empty[task] += 1
            if self._empty[task] % _EMPTY_SLOTS == 0:
                rest_ms = self._empty[task] // _EMPTY_SLOTS * _REST_MS
                self._rests[task] = now_ms() + rest_ms
                _log.warning(
                    "%s Task %s is left for %d min: nobody trains it",
                    *(self._core.name, self._core.genesis.task_name(task), rest_ms // 60_000),
                )

    def _drop(self) -> None:
        if self._collector is not None:
            self._slots.collect(self._collector[0], None)
            self._collector = None

    def _lanes(self) -> list[Lane]:
        state = self._core.chain.tip.state
        tickets = [*state.live_tickets(MINER).values(), *state.live_tickets(SUPERVISOR).values()]
        return [(ticket.account, 0) for ticket in tickets]

    def _anchor(self) -> Anchor:
        """Return the block that is deep enough to be final; the one that is, if none is deeper."""
        # Each read once: the chain's thread may move them.
        tip, anchor, newest = self._core.chain.tip, self._core.chain.anchor, self._slots.newest[2]
        if newest is not None and newest.certificate.anchor_height > anchor.height:
            # What was named last is not set here yet: the tip may be on another branch.
            return Anchor(newest.certificate.anchor, newest.certificate.anchor_height)
        deep = tip.height - ANCHOR_DEPTH
        found = next((at for at in tip.down() if at.height == deep), anchor)
        return Anchor(found.id, found.height)

    async def _task(self) -> bytes:
        """Return what is to be trained: the client's task that is final, not over and pays best for a lap, else the
        filler. What goes wrong with one of them holds up no other.
        """
        core = self._core
        waiting = core.chain.anchor.state.open_tasks()
        for task, record in sorted(waiting.items(), key=_turn):
            closed = core.chain.tip.state.task(task)
            is_paused = now_ms() < self._pauses.get(task, 0)
            if is_paused or closed is None or closed.closing or closed.outcome:
                continue
            try:
                if await self._is_due(task, record):
                    return task
            except PouwError as exc:
                self._pauses[task] = now_ms() + _PAUSE_MS
                _log.error("%s Task %s waits: %s", core.name, record.name, exc)
        return await self._filler()

    async def _is_due(self, task: bytes, record: TaskRecord) -> bool:
        """Say whether a client's task is to be trained."""
        model = decode(record.requirements, TaskModel)
        if len(self._core.chain.tip.state.live_tickets(MINER)) < model.min_miners:
            return False
        if not self._core.has_data(task):
            return False
        is_over = await self._closings.is_over(task, record)
        return not is_over and now_ms() >= self._rests.get(task, 0)

    async def _filler(self) -> bytes:
        """Return the filler task that is not over yet."""
        core = self._core
        if self._generation is None:
            self._generation = await core.in_chain(self._newest_generation)
        while True:
            task = core.genesis.filler_task(self._generation)
            if await self._slots.num_slots(task) < core.genesis.parameters.filler_slots:
                return task
            self._generation += 1

    def _newest_generation(self) -> int:
        """Return which filler is the newest that slots or blocks are of. In the chain's thread."""
        genesis, tip = self._core.genesis, self._core.chain.tip
        blocks = itertools.islice(self._core.chain.ancestors(tip.id), _LOOKED_BACK)
        known = (self._slots.newest[0], *(header.task for header in blocks))
        return max(genesis.generation(task) or 0 for task in known)

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


def _turn(item: tuple[bytes, TaskRecord]) -> tuple[int, int, bytes]:
    """Return the place of an open task: what pays most for a lap's training is first, then the oldest."""
    task, record = item
    laps = decode(record.requirements, TaskModel).max_epochs
    return (-(record.training_fee // laps), record.height, task)
