"""Certified slots of all tasks: messages and records that arrive, and the weights that follow from them.

What is trained is what the newest certificate is of: a committee that turns to another task certifies an empty
slot of it, and everybody follows. Histories are used in one thread of their own.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from pocqueue.pouw.chain.mining import lanes_of, spec_of
from pocqueue.pouw.errors import (
    BadEncoding,
    ChainError,
    InvalidBlock,
    LinkError,
    PeerFault,
    SlotError,
    UnknownTask,
)
from pocqueue.pouw.flow.core import Bell, Core, now_ms
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.slots import messages
from pocqueue.pouw.slots.certificate import verify_signed
from pocqueue.pouw.slots.collector import Collector
from pocqueue.pouw.slots.history import Advance, Checkpoint, SlotHistory
from pocqueue.pouw.slots.maps import decode_map
from pocqueue.pouw.slots.slot_store import SlotStore
from pocqueue.pouw.slots.task import LapSlot
from pocqueue.pouw.slots.weights import weights_end, weights_from
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.requests import (
    MAX_ANSWER_BYTES,
    MAX_SLOTS,
    PIECE_BYTES,
    IterationWithMap,
    Slots,
    SlotsRequest,
    Status,
    Weights,
    WeightsRequest,
)
from pocqueue.pouw.wire.slots import Iteration, SignedCertificate, SlotRecord

#: Rules that say nothing against whoever sent a message.
_NOBODYS_FAULT = ("slot", "lane", "missing", "history")
_POINTS = 50
#: Further behind than so many slots a node takes a checkpoint of another one instead of all slots between.
_MAX_BEHIND = 512
#: Slots before the newest one that a newcomer begins at: enough for blocks that are not final yet.
_HEAD_START = 128

_P = ParamSpec("_P")
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class SlotFlow:
    """What this node knows of slots.

    Args:
        core: of the node.
        store: its slots on disk.
        on_missing: hears of a peer that has slots which are not here.
        on_anchor: is awaited with the id of a block that a new certificate names as final.

    Attributes:
        on_advance: is awaited with each slot that was taken in, before anybody is told of it.
    """

    def __init__(
        self,
        core: Core,
        store: SlotStore,
        on_missing: Callable[[PeerInfo], None],
        on_anchor: Callable[[bytes], Coroutine[Any, Any, None]],
    ) -> None:
        self._core, self._store = core, store
        self._on_missing, self._on_anchor = on_missing, on_anchor
        self._histories: dict[bytes, SlotHistory] = {}
        self._newest: SignedCertificate | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="slots")
        #: Slots are taken in one after another.
        self._lock = asyncio.Lock()
        self.on_advance: Callable[[SlotHistory, Advance], Coroutine[Any, Any, None]] | None = None
        self._collector: tuple[SlotHistory, Collector] | None = None
        #: A slot more is certified.
        self.changed = Bell()
        #: When the newest one came, in seconds since 1970; 0: none did.
        self.heard_at = 0.0
        #: There is a message more of an open slot.
        self.heard = Bell()

    async def open(self) -> None:
        """Go on from what is on disk."""
        newest = await self.in_slots(self._store.newest)
        if newest is not None:
            self._newest = newest
            await self.history(newest.certificate.task)

    def close(self) -> None:
        """End the thread; the store is whoever opened it's."""
        self._thread.shutdown()

    @property
    def newest(self) -> tuple[bytes, int, SignedCertificate | None]:
        """Return what is trained now: task, slot that is open there, certificate of the one before."""
        if self._newest is None:
            return self._core.genesis.filler_task(0), 0, None
        certificate = self._newest.certificate
        return certificate.task, certificate.slot + 1, self._newest

    async def in_slots(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Do something with histories or their store in their thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: work(*args, **kwargs))

    async def history(self, task: bytes) -> SlotHistory:
        """Return a task's history as far as this node has it; one that it has nothing of begins at slot 0."""
        if task not in self._histories:
            spec = spec_of(self._core.genesis, self._core.chain.tip.state, task)
            found = await self.in_slots(self._store.history, spec)
            self._histories.setdefault(task, found)
        return self._histories[task]

    def collect(self, history: SlotHistory, collector: Collector | None) -> None:
        """Give the messages of a task to this node's own committee; None: to nobody any more."""
        self._collector = None if collector is None else (history, collector)

    async def receive_message(self, peer: PeerInfo, body: bytes) -> bool:
        """Take a miner's message; True if it is good and new."""
        try:
            message = decode(body, IterationWithMap)
        except BadEncoding as exc:
            raise PeerFault(_POINTS, str(exc)) from None
        history = self._histories.get(message.iteration.task)
        if history is None:
            return False
        try:
            return await self.keep(history, message)
        except SlotError as exc:
            if exc.rule in _NOBODYS_FAULT:
                return False
            raise PeerFault(_POINTS, f"a message: {exc}") from None

    async def keep(self, history: SlotHistory, message: IterationWithMap) -> bool:
        """Keep a message until its slot is certified; True if it is new.

        Raises:
            SlotError: it breaks a rule.
        """
        lanes = lanes_of(self._core.chain.tip.state, message.iteration.miner)
        is_new = await self.in_slots(self._kept, history, message, lanes)
        if is_new:
            self.heard.ring()
        return is_new

    def receive_record(self, peer: PeerInfo, body: bytes) -> Coroutine[Any, Any, bool]:
        """Take a committee's record; True if it is good and new."""
        try:
            record = decode(body, SlotRecord)
        except BadEncoding as exc:
            raise PeerFault(_POINTS, str(exc)) from None
        return self._receive(peer, record)

    async def take(self, record: SlotRecord, messages: Iterable[IterationWithMap] = ()) -> bool:
        """Take in the record of a task's open slot; False: it is not the open one's.

        Raises:
            SlotError: it breaks a rule; ``missing``: messages of it are not here.
        """
        certificate = record.signed.certificate
        state = self._core.chain.tip.state
        committee = state.committee(certificate.epoch)
        if committee is None:
            raise SlotError("missing", f"epoch {certificate.epoch} is not known here yet.")
        async with self._lock:
            history = await self.history(certificate.task)
            if certificate.slot != history.next_slot:
                return False
            await self.in_slots(verify_signed, record.signed, committee)
            advance = await self.in_slots(history.check, record, messages)
            await self._take_in(history, advance, is_own=False)
        return True

    async def decide(self, history: SlotHistory, advance: Advance) -> None:
        """Take in a slot that this node's own committee has certified; it is on disk on return."""
        async with self._lock:
            await self._take_in(history, advance, is_own=True)

    async def lap_of(
        self, winner: Iteration, peer: PeerInfo | None
    ) -> tuple[tuple[LapSlot, ...], bytes]:
        """Return a winner's lap up to its slot, and its map there.

        Raises:
            ChainError: it is not here, and the peer does not have it either.
        """
        history = await self.history(winner.task)
        try:
            if peer is not None and winner.slot >= history.next_slot:
                await self._catch_up(peer, winner.task, winner.slot + 1)
                history = await self.history(winner.task)
            lap = await self.in_slots(self._lap, history, winner)
        except (SlotError, LinkError, BadEncoding) as exc:
            raise ChainError(f"the lap of slot {winner.slot} is not to be had: {exc}") from None
        own_map = lap[-1].map
        assert own_map is not None, f"slot {winner.slot} has no message of its winner"
        return lap, own_map

    def check_weights_end(
        self, winner: Iteration, lap: tuple[LapSlot, ...], own_map: bytes
    ) -> None:
        """Raise unless a winner's `weights_end` is what its map makes of the slot's weights.

        Raises:
            InvalidBlock: the rule ``re-execution``.
        """
        spec = spec_of(self._core.genesis, self._core.chain.tip.state, winner.task)
        signs = decode_map(own_map, spec.num_weights, spec.cap)
        if weights_end(spec, weights_from(lap[-1].theta), signs) != winner.weights_end:
            raise InvalidBlock(
                "re-execution", "its weights_end is not what its map makes of the slot's weights."
            )

    async def follow(self, peer: PeerInfo, status: Status) -> None:
        """Take in what a peer has of the task that it trains.

        Raises:
            LinkError: it does not answer.
            BadEncoding, SlotError: what it sends breaks a rule.
        """
        if status.newest is not None and status.newest.certificate.task == status.task:
            await self._catch_up(peer, status.task, status.slot)

    async def slots(self, request: SlotsRequest) -> Slots:
        """Return slots of a task for whoever asks."""
        found = await self.in_slots(self._store.slots, request.task, request.first, MAX_SLOTS)
        sizes = itertools.accumulate(len(encode(slot)) for slot in found)
        # One is always allowed: else whoever asks would never get on.
        return Slots(
            tuple(
                slot
                for place, (slot, size) in enumerate(zip(found, sizes, strict=True))
                if not place or size <= MAX_ANSWER_BYTES
            )
        )

    async def piece(self, request: WeightsRequest) -> Weights:
        """Return a piece of the newest weights at or before a slot.

        Raises:
            LinkError: there are none.
        """
        found = await self.in_slots(self._store.checkpoint, request.task, request.slot)
        if found is None:
            raise LinkError("no weights of that task are here")
        first = request.piece * PIECE_BYTES
        return Weights(
            found.slot, found.signed, len(found.theta), found.theta[first : first + PIECE_BYTES]
        )

    async def num_slots(self, task: bytes) -> int:
        """Return how many slots of a task are certified, as far as this node knows."""
        return await self.in_slots(self._store.num_slots, task)

    async def _take_in(self, history: SlotHistory, advance: Advance, *, is_own: bool) -> None:
        certificate, record = advance.certificate, advance.slot.record
        await self.in_slots(self._store.write, advance, durable=is_own)
        await self.in_slots(history.add, advance)
        if self.on_advance is not None:
            await self.on_advance(history, advance)
        newest, self.heard_at = self._newest, time.time()
        if newest is None or certificate.time_ms >= newest.certificate.time_ms:
            self._newest = record.signed
            if newest is None or newest.certificate.anchor != certificate.anchor:
                await self._on_anchor(certificate.anchor)
        self.changed.ring()

    async def _receive(self, peer: PeerInfo, record: SlotRecord) -> bool:
        try:
            is_new = await self.take(record)
        except UnknownTask:
            self._on_missing(peer)
            return False
        except SlotError as exc:
            if exc.rule == "missing":
                self._on_missing(peer)
                return False
            raise PeerFault(_POINTS, f"a record: {exc}") from None
        certificate = record.signed.certificate
        if not is_new and certificate.slot > self._histories[certificate.task].next_slot:
            self._on_missing(peer)
        return is_new

    def _kept(self, history: SlotHistory, message: IterationWithMap, lanes: int) -> bool:
        messages.check(message, history.task, history.network, history.next_slot, lanes)
        if self._collector is not None and self._collector[0] is history:
            return self._collector[1].add(message, now_ms())
        return history.keep(message)

    def _lap(self, history: SlotHistory, winner: Iteration) -> tuple[LapSlot, ...]:
        try:
            return history.lap(winner.slot, winner.order)
        except SlotError:
            older = self._store.history(history.task, winner.slot)
            return older.lap(winner.slot, winner.order)

    async def _catch_up(self, peer: PeerInfo, task: bytes, until: int) -> None:
        """Take in a task's slots up to one that a peer has."""
        history = await self.history(task)
        if until - history.next_slot > _MAX_BEHIND:
            history = await self._jump(peer, task, until - _HEAD_START)
        while history.next_slot < until:
            first = history.next_slot
            request = encode(SlotsRequest(task, first))
            answer = await self._core.network.request(peer.account, Kind.SLOTS, request)
            for slot in decode(answer, Slots).slots:
                await self.take(slot.record, slot.messages)
            if history.next_slot == first:
                return

    async def _jump(self, peer: PeerInfo, task: bytes, slot: int) -> SlotHistory:
        """Begin a task's history at a checkpoint of a peer's."""
        pieces, total = list[bytes](), 1
        first: Weights | None = None
        while sum(map(len, pieces)) < total:
            request = WeightsRequest(task, slot, len(pieces))
            answer = await self._core.network.request(peer.account, Kind.THETA, encode(request))
            found = decode(answer, Weights)
            first = first or found
            if found.slot != first.slot or not found.piece:
                raise SlotError("theta", "pieces of the weights do not belong together.")
            pieces.append(found.piece)
            total = found.num_bytes
        assert first is not None
        if first.previous is not None:
            epoch = first.previous.certificate.epoch
            committee = self._core.chain.tip.state.committee(epoch)
            if committee is None:
                raise SlotError("missing", f"epoch {epoch} is not known here yet.")
            await self.in_slots(verify_signed, first.previous, committee)
        start = Checkpoint(first.previous, b"".join(pieces))
        spec = spec_of(self._core.genesis, self._core.chain.tip.state, task)
        async with self._lock:
            history = await self.in_slots(SlotHistory, spec, self._core.genesis.network, start)
            await self.in_slots(self._store.write_checkpoint, start)
            self._histories[task] = history
        return history
