"""Certified slots of all tasks: messages and records that arrive, and the weights that follow from them.

What is trained is what the newest certificate is of: a committee that turns to another task certifies an empty
slot of it, and everybody follows. Histories are used by one thread at a time: their own, or the event loop's (`OneThread`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, ParamSpec, TypeVar

from pocqueue.pouw.chain.mining import lanes_of
from pocqueue.pouw.chain.records import Committee
from pocqueue.pouw.errors import BadEncoding, PeerFault, SlotError
from pocqueue.pouw.flow.certificate_clock import CertificateClock, is_by
from pocqueue.pouw.flow.core import Bell, Core, now_ms
from pocqueue.pouw.flow.histories import Histories
from pocqueue.pouw.flow.offices import Offices
from pocqueue.pouw.flow.one_thread import OneThread
from pocqueue.pouw.flow.pruning import prune
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.slots import messages
from pocqueue.pouw.slots.certificate import verify_signed, verify_turn
from pocqueue.pouw.slots.collector import Collector
from pocqueue.pouw.slots.history import Advance, Checkpoint, SlotHistory, Unsigned
from pocqueue.pouw.slots.slot_store import SlotStore
from pocqueue.pouw.wire.codec import decode
from pocqueue.pouw.wire.evidence import TwoMessages
from pocqueue.pouw.wire.requests import IterationWithMap
from pocqueue.pouw.wire.slots import Certificate, SignedCertificate, SlotRecord

#: Rules that say nothing against whoever sent a message or slot: this node may lack something, its clock may be
#: wrong, or a committee has contradicted itself.
_NOBODYS_FAULT = frozenset(
    (
        *("slot", "lane", "missing", "history", "epoch", "clock", "previous", "anchor", "time"),
        *("theta", "turn", "parent"),
    )
)
#: Rules that only who makes certificates up can break.
_FORGED = frozenset(("signature", "beacon"))
_POINTS = 50
#: What is done with the weights of a model of so many in a slot takes less than a millisecond, ...
_SMALL_WEIGHTS = 65_536
#: ... and with so many messages, each of which is decoded and added: 200 took 20.
_FEW_MESSAGES = 16

_P = ParamSpec("_P")
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class SlotFlow:
    """What this node knows of slots.

    Args:
        core: of the node.
        store: its slots on disk.
        on_missing: hears of a peer that has slots which are not here.
        on_anchor: hears that a new certificate names another block as final.

    Attributes:
        on_advance: is awaited with each slot that was taken in, before the next turn is open.
        on_contradiction: hears what a lane has said twice.
        complete: has the slots of a task here that peers have; see `SlotSync.complete`.
    """

    def __init__(
        self,
        core: Core,
        store: SlotStore,
        on_missing: Callable[[PeerInfo], None],
        on_anchor: Callable[[], None],
    ) -> None:
        self._core, self._store = core, store
        self._on_missing, self._on_anchor = on_missing, on_anchor
        self._histories = Histories(core, store, self.in_slots)
        self._newest: SignedCertificate | None = None
        #: The newest slot; None: it was not the last one that was written before the start.
        self.newest_record: SlotRecord | None = None
        self._now = CertificateClock(core, self.in_slots)
        self._thread = OneThread("slots")
        #: Slots are taken in one after another. Nobody waits for anything of blocks while he has it.
        self._lock = asyncio.Lock()
        self.on_advance: Callable[[SlotHistory, Advance], Coroutine[Any, Any, None]] | None = None
        self.on_contradiction: Callable[[TwoMessages], None] | None = None
        self.complete: Callable[[bytes], Awaitable[None]] | None = None
        #: How often a certificate came of a turn that was not the open one: those between are of slots that may not be here.
        self.num_skipped = 0
        #: What this node, as a member, has found right of the open turn, by the certificate's id.
        self.judged: dict[bytes, Unsigned] = {}
        self._collector: tuple[SlotHistory, Collector] | None = None
        self._offices = Offices(core)
        #: A slot more is certified.
        self.changed = Bell()
        #: When the newest one came, in seconds since 1970; 0: none did.
        self.heard_at = 0.0
        #: There is a message more of an open slot.
        self.heard = Bell()

    async def open(self) -> None:
        """Go on from what is on disk."""
        self._newest = await self.in_slots(self._store.newest)
        await self.forget_others()
        last = await self.in_slots(self._store.last, 1)
        self.newest_record = next((one for one in last if one.signed == self._newest), None)
        if self._newest is not None:
            self._on_anchor()

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

    @property
    def next_turn(self) -> int:
        """Return the turn that is open: certificates are counted over all tasks."""
        return 0 if self._newest is None else self._newest.certificate.turn + 1

    async def committee(self) -> Committee | None:
        """Return who certifies the next slot; see `Offices.open`."""
        return await self._offices.open(self._newest)

    async def in_slots(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Do something with histories or their store in their thread."""
        return await self._thread.run(work, *args, **kwargs)

    async def with_history(
        self, history: SlotHistory, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Do with a history what each slot asks for, in memory alone; of a small model at once, if the thread is idle."""
        # What is shown of a private task is on disk.
        is_short = history.task.num_weights <= _SMALL_WEIGHTS and history.task.noise is None
        run = self._thread.run_short if is_short else self._thread.run
        return await run(work, *args, **kwargs)

    async def with_messages(
        self, history: SlotHistory, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Do with a history what takes all that is kept for its open slot: as `with_history`, while that is little."""
        if history.num_kept > _FEW_MESSAGES:
            return await self.in_slots(work, *args, **kwargs)
        return await self.with_history(history, work, *args, **kwargs)

    async def history(self, task: bytes) -> SlotHistory:
        """Return a task's history as far as this node has it; one that it has nothing of begins at slot 0.

        Raises:
            SlotError: ``missing``: the task's order is not in the chain here, and it is no filler.
        """
        return await self._histories.of(task)

    async def certified_next(self, task: bytes) -> SlotHistory:
        """Return a task's history for whoever certifies its next slot: with what peers have of it.

        Raises:
            SlotError: as `history`.
        """
        if self.complete is not None:
            await self.complete(task)
        return await self.history(task)

    def collect(self, collector: tuple[SlotHistory, Collector] | None) -> None:
        """Tell a collector of the messages of its history; None: tell nobody any more."""
        self._collector = collector

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
            if self.is_nobodys_fault(exc):
                return False
            raise PeerFault(_POINTS, f"a message: {exc}") from None

    async def keep(
        self, history: SlotHistory, message: IterationWithMap, *, is_own: bool = False
    ) -> bool:
        """Keep a message until its slot is certified; True if it is new.

        Args:
            history: of its task.
            message: from anybody.
            is_own: this node has made it; then it is not checked.

        Raises:
            SlotError: it breaks a rule.
        """
        lanes = lanes_of(self._core.chain.tip.state, message.iteration.miner)
        lanes_or_none = None if is_own else lanes
        is_new = await self.with_history(history, self._kept, history, message, lanes_or_none)
        self._tell(history)
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

    async def take(
        self,
        record: SlotRecord,
        messages: Iterable[IterationWithMap] = (),
        *,
        is_asked: bool = False,
    ) -> bool:
        """Take in the record of a task's open slot; False: it is not the open one's.

        Args:
            record: from anybody.
            messages: of the slot, beside those that are kept.
            is_asked: it is on the way to a certificate that was checked, so it may be of an epoch that is over.

        Raises:
            SlotError: it breaks a rule; ``missing``: something is not here that it follows from.
        """
        signed = record.signed
        certificate = signed.certificate
        await self._now.check(signed)
        async with self._lock:
            known = self._histories.get(certificate.task)
            if known is not None and certificate.slot != known.next_slot:
                return False
            # Nothing is made of what a stranger may have signed.
            committee = await self._committee_of(certificate, is_asked)
            if known is None:
                await self.in_slots(verify_signed, signed, committee)
            history = known or await self.history(certificate.task)
            if certificate.slot != history.next_slot:
                return False

            def checked() -> Advance:
                verify_signed(signed, committee)
                verify_turn(certificate, self._newest.certificate if self._newest else None)
                judged = self.judged.get(certificate.id)
                if judged is not None and judged.certificate.previous == history.previous:
                    return judged.certified(signed)
                return history.check(record, messages)

            await self._take_in(history, certificate, checked, is_own=False)
        return True

    async def is_ahead(self, signed: SignedCertificate) -> bool:
        """Check the newest certificate of a peer; say whether it is newer than what is here.

        Raises:
            SlotError: it breaks a rule.
        """
        certificate, chain = signed.certificate, self._core.chain
        await self._now.check(signed)
        is_old = self._newest is not None and certificate.turn < self.next_turn
        if is_old or certificate.anchor_height < chain.anchor.height:
            return False
        office = await self.committee()
        committee = chain.tip.state.committee(certificate.epoch)
        if office is None or committee is None:
            raise SlotError("missing", f"epoch {certificate.epoch} is not known here yet.")
        if certificate.epoch < office.epoch:
            return False
        await self.in_slots(verify_signed, signed, committee)
        return True

    async def begin_at(self, start: Checkpoint, *, is_asked: bool) -> SlotHistory:
        """Go on with a task from a checkpoint that is ahead of its history; `is_asked` as in `take`.

        Raises:
            SlotError: it breaks a rule.
        """
        signed = start.signed
        if signed is None:
            raise SlotError("theta", "weights of slot 0 were sent for those of a later one.")
        await self._now.check(signed)
        async with self._lock:
            committee = await self._committee_of(signed.certificate, is_asked)
            await self.in_slots(verify_signed, signed, committee)
            history = await self.history(signed.certificate.task)
            if start.slot <= history.next_slot:
                return history
            ahead = await self.in_slots(SlotHistory, history.task, history.network, start)
            await self.in_slots(self._store.write_checkpoint, start)
            return self._histories.put(ahead)

    async def forget_others(self) -> None:
        """Forget the slots of a committee if the epoch is another one's by now: the chain has turned to another branch.

        That happens before there is an anchor: to supervisors that founded apart and were linked then.
        """
        async with self._lock:
            newest = self._newest
            if newest is None:
                return
            epoch = newest.certificate.epoch
            committee = self._core.chain.tip.state.committee(epoch)
            if committee is None or await self.in_slots(is_by, newest, committee):
                return
            for task in await self.in_slots(self._store.forget, epoch):
                self._histories.forget(task)
            self._newest, self.newest_record = await self.in_slots(self._store.newest), None
            self._collector = None
        _log.warning(
            "%s Slots of epoch %d are forgotten: its committee is another one on the heavier branch, %s",
            *(self._core.name, epoch, committee.group_key.hex()[:16]),
        )
        self.changed.ring()

    async def prune(self) -> None:
        """Forget maps and weights that no block above the anchor needs."""
        await self.in_slots(prune, self._core, self._store)

    async def decide(self, history: SlotHistory, advance: Advance, *, is_alone: bool) -> bool:
        """Take in a slot that this node's own committee has certified; False: somebody's record of it came first.

        Args:
            history: of its task.
            advance: the slot, checked.
            is_alone: nobody else has it: it is on disk on return.
        """
        async with self._lock:
            certificate = advance.certificate
            if certificate.previous != history.previous:
                return False
            await self._take_in(history, certificate, lambda: advance, is_own=is_alone)
        return True

    async def num_slots(self, task: bytes) -> int:
        """Return how many slots of a task are certified, as far as this node knows."""
        known = self._histories.get(task)
        if known is not None:
            return known.next_slot
        return await self.in_slots(self._store.num_slots, task)

    async def last(self, limit: int) -> list[SlotRecord]:
        """Return the newest slots of all tasks that are here, newest first."""
        return await self.in_slots(self._store.last, limit)

    async def _take_in(
        self,
        history: SlotHistory,
        certificate: Certificate,
        checked: Callable[[], Advance],
        *,
        is_own: bool,
    ) -> None:
        """Take in a slot; `checked` returns it, in the slots' thread, or raises what is wrong with it."""
        last = self._newest
        # A chain may hold an anchor only after the slot that names it: after a failure of power a member would open
        # the turn again, in the epoch that the anchor has begun.
        has_new_anchor = last is None or last.certificate.anchor != certificate.anchor
        is_durable = is_own or has_new_anchor
        advance = await self.in_slots(self._written, history, checked, is_durable)
        record = advance.slot.record
        self._tell(history)
        try:
            if self.on_advance is not None:
                await self.on_advance(history, advance)
        finally:
            # It is written: whatever came of that, the next turn is open.
            newest, self.heard_at = self._newest, time.time()
            if certificate.turn >= self.next_turn:
                self.num_skipped += certificate.turn > self.next_turn
                self._newest, self.newest_record = record.signed, record
                if newest is None or newest.certificate.anchor != certificate.anchor:
                    self._on_anchor()
            self.changed.ring()

    def _tell(self, history: SlotHistory) -> None:
        """Tell what contradictions were noticed."""
        while history.contradictions:
            found = history.contradictions.popleft()
            if self.on_contradiction is not None:
                self.on_contradiction(found)

    async def _receive(self, peer: PeerInfo, record: SlotRecord) -> bool:
        certificate = record.signed.certificate
        try:
            is_new = await self.take(record)
        except SlotError as exc:
            if not self.is_nobodys_fault(exc):
                self.tell_forged(peer, exc)
                raise PeerFault(_POINTS, f"a record: {exc}") from None
            _log.debug("%s A record of %s: %s", self._core.name, peer.node_id, exc)
            if exc.rule in ("missing", "signature"):
                self._on_missing(peer)
            return False
        known = self._histories.get(certificate.task)
        if not is_new and known is not None and certificate.slot > known.next_slot:
            self._on_missing(peer)
        return is_new

    def is_nobodys_fault(self, exc: SlotError) -> bool:
        """Say whether whoever sent what broke a rule may be honest."""
        # Before there is an anchor a supervisor may have founded a chain of its own; the heavier one counts.
        is_apart = exc.rule == "signature" and self._core.chain.anchor.height == 0
        return is_apart or exc.rule in _NOBODYS_FAULT

    def tell_forged(self, peer: PeerInfo, exc: SlotError) -> None:
        """Tell of a peer whose certificate has a signature that is not its committee's: of a history of its own."""
        if exc.rule in _FORGED:
            self._core.alert("forged_history", f"{peer.node_id}: {exc}", source=peer.account)

    async def _committee_of(self, certificate: Certificate, is_asked: bool) -> Committee:
        return await self._offices.of(certificate, self._newest, is_asked=is_asked)

    def _written(
        self, history: SlotHistory, checked: Callable[[], Advance], is_durable: bool
    ) -> Advance:
        advance = checked()
        self._store.write(advance, durable=is_durable)
        history.add(advance)
        return advance

    def _kept(self, history: SlotHistory, message: IterationWithMap, lanes: int | None) -> bool:
        if lanes is not None:
            messages.check(message, history.task, history.network, history.next_slot, lanes)
        if self._collector is not None and self._collector[0] is history:
            return self._collector[1].add(message, now_ms())
        return history.keep(message)
