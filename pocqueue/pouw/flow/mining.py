"""One lane's mining: an iteration a slot, and the blocks that its draws make."""

from __future__ import annotations

import asyncio
import logging

from pocqueue.pouw.chain.candidate import Candidates
from pocqueue.pouw.chain.mining import allowed_draws, lanes_of
from pocqueue.pouw.errors import ChainError, PouwError, SlotError, TrainingError
from pocqueue.pouw.flow.blocks import BlockFlow
from pocqueue.pouw.flow.core import Core, now_ms
from pocqueue.pouw.flow.matching import Matching
from pocqueue.pouw.flow.noise import Noises
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.health import Recent
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.slots.history import SlotHistory
from pocqueue.pouw.slots.miner import Candidate, LaneMiner, Work
from pocqueue.pouw.slots.slot_store import SlotStore
from pocqueue.pouw.wire.blocks import Block, Header
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.slots import SlotRecord
from pocqueue.pouw.wire.transactions import Transaction

_LANE = 0
#: Tasks whose lane is kept: the filler's, and clients' of late. Two residuals each.
_KEPT_LANES = 4
#: A message whose slot stays open this long is sent again.
_REPEAT_S = 1.0
_NOTE_S = 30.0
_KEPT_RESULTS = 200

_log = logging.getLogger(__name__)


class Mining:
    """The mining of a node, once it is on and its ticket is live."""

    def __init__(
        self,
        core: Core,
        slots: SlotFlow,
        blocks: BlockFlow,
        store: SlotStore,
        matching: Matching,
        noises: Noises,
    ) -> None:
        self._core, self._slots, self._blocks, self._store = core, slots, blocks, store
        self._matching, self._noises = matching, noises
        self._candidates = Candidates(core.genesis, core.account)
        self._lanes: dict[bytes, tuple[SlotHistory, LaneMiner]] = {}
        #: The node was told to mine.
        self.is_on = False
        #: An iteration is being computed.
        self.is_training = False
        #: Which of its messages were certified.
        self.certified = Recent(_KEPT_RESULTS)
        self._noted_s = 0.0
        self._is_warm = False
        self._sent: tuple[bytes, int] | None = None
        self._finding: set[asyncio.Task[None]] = set()
        self._taking = asyncio.Lock()

    async def run(self) -> None:
        """Mine slot after slot."""
        while True:
            try:
                await self._slot()
            except (SlotError, ChainError, TrainingError) as exc:
                _log.warning("%s Mining goes on with the next slot: %s", self._core.name, exc)
                await asyncio.sleep(_REPEAT_S)

    async def on_record(self, history: SlotHistory, record: SlotRecord) -> None:
        """Draw in a slot that was certified; to be awaited before the next one is worked on."""
        core, task = self._core, history.task
        if task.id not in self._lanes:
            return
        lane = self._lanes[task.id][1]

        def tries(parts: int, entries: int) -> int:
            return core.config.tries(allowed_draws(core.genesis, task, parts, entries))

        block = await self._slots.with_history(history, lane.certified, record, tries)
        slot = record.signed.certificate.slot
        if self._sent == (task.id, slot):
            self._sent = None
            own = history.own(lane.lane)
            self.certified.add(bool(own) and own[-1].slot == slot)
        if block is not None:
            # Not awaited: it may be that the next slot is decided meanwhile.
            self._finding.add(found := asyncio.create_task(self._found(block)))
            found.add_done_callback(self._finding.discard)

    @property
    def may_mine(self) -> bool:
        """Say whether it is on, and the account has a ticket for it."""
        return self.is_on and lanes_of(self._core.chain.tip.state, self._core.account) > 0

    async def _slot(self) -> None:
        """Do what is to be done for the open slot, then wait for the next one."""
        if not self.may_mine or self._core.chain.tip.state.committee_in_office is None:
            self._note_waiting()
            if (self.is_on or self._core.retrains) and not self._is_warm:
                await self._warm_up()
            await self._core.chain_changed.heard(_REPEAT_S)
            return
        task, slot, _ = self._slots.newest
        if not self._core.has_data(task) or not await self._takes_part(task, slot):
            await self._slots.changed.heard(_REPEAT_S)
            return
        history = await self._slots.history(task)
        lane = await self._lane(history)
        changed = asyncio.ensure_future(self._slots.changed.heard(_REPEAT_S))
        try:
            work = await self._slots.with_history(history, lane.work)
            if work is not None:
                await self._compute(history, lane, work)
            elif (current := lane.current) is not None:
                await self._noises.show(history.task, current.iteration.slot, _LANE)
                self._core.network.push(Kind.ITERATION, encode(current))
            await changed
        finally:
            changed.cancel()

    async def _takes_part(self, task: bytes, slot: int) -> bool:
        """Say whether the committee may certify what this node does in a slot; if that is not known here, it may."""
        try:
            accounts = await self._matching.accounts(task, slot)
        except SlotError as exc:
            return exc.rule == "missing"
        return accounts is None or self._core.account in accounts

    async def _compute(self, history: SlotHistory, lane: LaneMiner, work: Work) -> None:
        core, parts = self._core, self._core.config.parts
        tip, next_slot = core.chain.tip.id, (history.task.id, work.slot + 1)
        # Made meanwhile: afterwards the chain's thread may be busy with a block.
        making = asyncio.ensure_future(self._candidate(*next_slot))
        self.is_training = True
        try:
            noise = self._noises.own(history.task, work.slot, _LANE)
            done = await core.trainer.iterate(
                history.task, work.theta, work.residual, work.slot, *lane.lane, parts, noise
            )
            candidate = await making
        finally:
            self.is_training = False
            making.cancel()
        if core.chain.tip.id != tip:
            candidate = await self._candidate(*next_slot)
        message = await self._slots.in_slots(
            lane.message, work, done, parts, candidate, self._store.own.write_sent
        )
        self._sent = (history.task.id, work.slot)
        await self._noises.show(history.task, work.slot, _LANE)
        self._core.network.push(Kind.ITERATION, encode(message))
        await self._slots.keep(history, message, is_own=True)

    async def _warm_up(self) -> None:
        """Have the trainer's child load what takes it seconds, while the ticket is on its way, or there is no trained block
        yet that waits for it.
        """
        self._is_warm = True
        history = await self._slots.history(self._slots.newest[0])
        await self._core.trainer.accuracy(history.task, history.theta, "val")

    async def _candidate(self, task: bytes, slot: int) -> Candidate:
        """Return the block for a slot; most slots have that of the one before, for which the chain's thread is not asked."""
        core, of = self._core, (task, slot, _LANE)
        known = self._candidates.known(core.chain.tip, *of, now_ms())
        if known is None:
            known = await core.in_chain(self._made_candidate, *of)
        return Candidate(*known)

    def _made_candidate(
        self, task: bytes, slot: int, lane: int
    ) -> tuple[Header, tuple[Transaction, ...]]:
        chain, pool = self._core.chain, self._core.mempool
        return self._candidates.candidate(chain.tip, pool, task, slot, lane, now_ms())

    async def _found(self, block: Block) -> None:
        core = self._core
        async with self._taking:
            if block.header.height <= core.chain.tip.height:
                # It was committed to before the tip came: a fork that nobody goes on with.
                _log.debug("%s Block %s is not above the tip", core.name, block.id.hex())
                return
            try:
                is_new = await self._blocks.take(block, None)
            except PouwError as exc:
                _log.error(
                    "%s Mined block %s is not taken here: %s", core.name, block.id.hex(), exc
                )
                return
        if is_new:
            core.counts.blocks_mined += 1
            _log.info("%s Mined block %d %s", core.name, block.header.height, block.id.hex()[:16])

    async def _lane(self, history: SlotHistory) -> LaneMiner:
        """Return the lane of a task; anew if the task's history is another object, as after a jump."""
        task = history.task.id
        known, lane = self._lanes.get(task, (None, None))
        if lane is None or known is not history:
            order = (self._core.account, _LANE)
            sent = await self._slots.in_slots(self._store.own.sent, task, order)
            lane = LaneMiner(history, self._core.key, _LANE, sent)
        # The one used last is at the end. Those of tasks that a committee may turn back to stay: a lane that is made anew
        # within a lap sits it out, and if all do that nobody trains for as long as slots without messages last.
        self._lanes.pop(task, None)
        self._lanes[task] = (history, lane)
        if len(self._lanes) > _KEPT_LANES:
            del self._lanes[next(iter(self._lanes))]
        return lane

    def _note_waiting(self) -> None:
        """Say now and then why nothing is mined."""
        now_s = asyncio.get_running_loop().time()
        if not self.is_on or now_s - self._noted_s < _NOTE_S:
            return
        self._noted_s = now_s
        reason = "its ticket is not in a block yet"
        if self._core.chain.tip.state.committee_in_office is None:
            reason = "no supervisor is in reach"
        _log.info("%s Mining waits: %s", self._core.name, reason)
