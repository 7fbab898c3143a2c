"""Slots between nodes: what a peer has of them that is not here, and the answers for those who ask.

A peer is followed to a certificate that was checked before. Further behind, a node goes on from weights that the
peer has instead of from all slots between; forward alone, and as a member of the committee itself only if the
peer has the slots between no more.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from random import SystemRandom
from typing import Final

from pocqueue.pouw.errors import BadEncoding, ChainError, LinkError, SlotError
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.flow.following import of_one
from pocqueue.pouw.flow.histories import MAX_HISTORIES
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.slots.history import Checkpoint, Lane, SlotHistory
from pocqueue.pouw.slots.slot_store import SlotStore
from pocqueue.pouw.slots.task import LapSlot, TaskSpec
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.requests import (
    MAX_ANSWER_BYTES,
    MAX_SLOTS,
    PIECE_BYTES,
    Slots,
    SlotsRequest,
    Status,
    Weights,
    WeightsRequest,
)
from pocqueue.pouw.wire.slots import Iteration, SignedCertificate

#: Further behind than so many slots a node takes a checkpoint of another one instead of all slots between.
_MAX_BEHIND = 512
#: A peer that takes longer than so for the slots that are missing, or for weights, is left for others: they are to be
#: had of all. What it gave of slots is kept, of weights it is not.
_TURN_S, _WEIGHTS_S = 15.0, 60.0
#: Before a member certifies a task's slot so many peers, members first, are asked for those before it, so long at most.
_COMPLETED_OF, _COMPLETE_S = 16, 5.0
#: Peers beside the one that has a block that are asked for the slots of its lap.
_OTHERS = 3
#: Slots before the newest one that a newcomer begins at: enough for blocks that are not final yet.
_HEAD_START = 128
#: Requests of peers that are in the slots' thread at once; the node's own work waits behind no more of them.
_MAX_GIVEN: Final = 2

_random = SystemRandom()


class SlotSync:
    """Gets slots from peers, and gives them.

    Args:
        core, slots, store: of the node.
    """

    def __init__(self, core: Core, slots: SlotFlow, store: SlotStore) -> None:
        self._core, self._slots, self._store = core, slots, store
        self._giving = asyncio.Semaphore(_MAX_GIVEN)
        #: Tasks whose slots are here as peers have them, since as many turns were skipped as stands beside them.
        self._complete: dict[bytes, int] = {}
        self._completing = asyncio.Lock()

    async def follow(self, peer: PeerInfo, status: Status) -> None:
        """Take in what a peer has of the task that it trains, if it is ahead.

        Raises:
            LinkError: it does not answer.
            BadEncoding, SlotError: what it sends breaks a rule.
        """
        if status.newest is None:
            return
        certificate = status.newest.certificate
        if (certificate.task, certificate.slot + 1) != (status.task, status.slot):
            raise SlotError("status", f"slot {status.slot} does not follow on its certificate.")
        if await self._slots.is_ahead(status.newest):
            committee = await self._slots.committee()
            if committee is not None and committee.members == (self._core.account,):
                # It has signed what is not here: until it is, it must sign nothing. A member of several has its own
                # words of an open turn on disk, and is behind the others now and then.
                self._core.is_current.clear()
            await self._catch_up(peer, status.task, status.slot, is_asked=True)

    async def complete(self, task: bytes) -> None:
        """Have the slots of a task here that peers have; asked of them once, as long as no turn is skipped.

        Whoever went on beyond turns, because it came later or was away, has none of the slots that were certified in
        them of other tasks than the newest one. Nothing shows those before the task's next slot, and members of whom
        most lack them would certify another one in their place.
        """
        async with self._completing:
            skipped, network = self._slots.num_skipped, self._core.network
            if self._complete.get(task) == skipped:  # in nearly every turn
                return
            peers = [peer for peer in network.peers if not self._core.is_silent(peer)]
            if not peers:
                return
            members = self._core.chain.tip.state.committee_in_office
            accounts = members.members if members is not None else ()
            peers = sorted(peers, key=lambda peer: peer.account not in accounts)[:_COMPLETED_OF]
            came = await asyncio.gather(*(self._has_all_of(peer, task) for peer in peers))
            if any(came):
                # The newest are at the end.
                self._complete.pop(task, None)
                self._complete[task] = skipped
                if len(self._complete) > MAX_HISTORIES:
                    del self._complete[next(iter(self._complete))]

    async def _has_all_of(self, peer: PeerInfo, task: bytes) -> bool:
        """Take in what a peer has of a task; say whether that is all here."""
        try:
            async with asyncio.timeout(_COMPLETE_S):
                first = -1
                while (history := await self._slots.history(task)).next_slot > first:
                    first = history.next_slot
                    request = encode(SlotsRequest(task, first))
                    answer = await self._core.ask(peer, Kind.SLOTS, request)
                    for slot in decode(answer, Slots).slots:
                        await self._slots.take(slot.record, slot.messages, is_asked=True)
        except (LinkError, BadEncoding, SlotError, TimeoutError):
            return False
        return True

    async def reach(self, peer: PeerInfo, winner: Iteration) -> None:
        """Have a winner's slot here, from the peer or others if need be; slots of an epoch that is over are left to
        `follow`.

        Raises:
            ChainError: nobody of them gives it.
        """
        task, until = winner.task, winner.slot + 1

        async def get(one: PeerInfo) -> None:
            await self._catch_up(one, task, until, is_asked=False)
            if (await self._slots.history(task)).next_slot < until:
                raise LinkError("it has not given it")

        try:
            if (await self._slots.history(task)).next_slot < until:
                others = [one for one in self._core.network.peers if one.account != peer.account]
                others = _random.sample(others, min(_OTHERS, len(others)))
                await of_one(self._core, [peer, *others], get)
        except (SlotError, LinkError, BadEncoding) as exc:
            raise ChainError(f"the lap of slot {winner.slot} is not to be had: {exc}") from None

    async def lap_of(self, winner: Iteration) -> tuple[tuple[LapSlot, ...], bytes]:
        """Return a winner's lap up to its slot, and its map there.

        Raises:
            ChainError: it is not here.
        """
        try:
            history = await self._slots.history(winner.task)
            lap = await self._slots.in_slots(self._lap, history, winner)
        except SlotError as exc:
            raise ChainError(f"the lap of slot {winner.slot} is not to be had: {exc}") from None
        own_map = lap[-1].map
        if own_map is None:
            raise ChainError(f"slot {winner.slot} has no message of its winner here.")
        return lap, own_map

    async def message(self, task: bytes, slot: int, miner: bytes, lane: int) -> Iteration:
        """Return a lane's certified message of a slot.

        Raises:
            ChainError: it is not here.
        """
        try:
            history = await self._slots.history(task)
            found = await self._slots.in_slots(self._message, history, slot, (miner, lane))
        except SlotError as exc:
            raise ChainError(f"slot {slot} is not here: {exc}") from None
        if found is None:
            raise ChainError(f"slot {slot} has no message of {miner.hex()} here.")
        return found

    async def slots(self, request: SlotsRequest) -> Slots:
        """Return slots of a task for whoever asks."""
        limits = (MAX_SLOTS, MAX_ANSWER_BYTES)
        async with self._giving:
            found = await self._slots.in_slots(
                self._store.slots, request.task, request.first, *limits, is_bare=request.is_bare
            )
        return Slots(tuple(found))

    async def piece(self, request: WeightsRequest) -> Weights:
        """Return a piece of the newest weights at or before a slot.

        Raises:
            LinkError: there are none, or they have fewer pieces.
        """
        async with self._giving:
            found = await self._slots.in_slots(self._piece, request)
        if found is None:
            raise LinkError("no such piece of weights is here")
        return found

    def _piece(self, request: WeightsRequest) -> Weights | None:
        first = request.piece * PIECE_BYTES
        # Weights are only read if something of them is given.
        if first >= self._store.checkpoint_bytes(request.task, request.slot):
            return None
        found = self._store.checkpoint(request.task, request.slot)
        assert found is not None
        return Weights(
            found.slot, found.signed, len(found.theta), found.theta[first : first + PIECE_BYTES]
        )

    async def weights(self, task: TaskSpec, num_slots: int, theta: bytes) -> bytes:
        """Return a task's weights after so many slots, by their SHA-256: from here, else from a peer that has them.

        Raises:
            SlotError: ``theta``: nobody gives them.
        """
        found = await self._slots.in_slots(self._own_weights, task, num_slots)
        if hashlib.sha256(found).digest() == theta:
            return found

        async def get(peer: PeerInfo) -> bytes:
            _, given = await self._weights_of(peer, task, num_slots)
            if hashlib.sha256(given).digest() != theta:
                raise SlotError("theta", "other weights were sent.")
            return given

        try:
            return await of_one(self._core, self._core.network.peers, get)
        except (LinkError, BadEncoding, SlotError):
            raise SlotError(
                "theta", f"nobody gives the weights after its slot {num_slots}."
            ) from None

    def _own_weights(self, task: TaskSpec, num_slots: int) -> bytes:
        """Return a task's weights after so many slots; none, if they are not here."""
        found = self._store.checkpoint(task.id, num_slots)
        if found is not None and found.slot == num_slots:
            return found.theta
        try:
            return self._store.history(task, num_slots - 1).theta
        except SlotError:
            return b""

    def _message(self, history: SlotHistory, slot: int, lane: Lane) -> Iteration | None:
        try:
            return history.message(slot, lane)
        except KeyError:  # it is in memory no more
            return self._store.history(history.task, slot).message(slot, lane)

    def _lap(self, history: SlotHistory, winner: Iteration) -> tuple[LapSlot, ...]:
        try:
            lap = history.lap(winner.slot, winner.order)
        except SlotError:
            history = self._store.history(history.task, winner.slot)
            lap = history.lap(winner.slot, winner.order)
        message = history.message(winner.slot, winner.order)
        # Whoever can sign a second certificate of a slot could put any message into it. The id has map hash and parts.
        if message is not None and message.id != winner.id:
            raise SlotError("history", "another message of this lane is certified here.")
        return lap

    async def _catch_up(self, peer: PeerInfo, task: bytes, until: int, *, is_asked: bool) -> None:
        """Take in a task's slots up to one that a peer has; `is_asked` as in `SlotFlow.take`.

        Raises:
            LinkError: it does not answer, or not all of it in time; what it gave is here.
        """
        history, until_s = await self._slots.history(task), time.monotonic() + _TURN_S
        if until - history.next_slot > _MAX_BEHIND and not await self._is_in_office():
            history = await self._jump(peer, history, until - _HEAD_START, is_asked=is_asked)
        while history.next_slot < until:
            first = history.next_slot
            request = encode(SlotsRequest(task, first))
            answer = await self._core.ask(peer, Kind.SLOTS, request)
            for slot in decode(answer, Slots).slots:
                await self._slots.take(slot.record, slot.messages, is_asked=is_asked)
            # Another one, if what others give beside this peer made this node go on further ahead.
            history = await self._slots.history(task)
            if history.next_slot == first and until - first > _MAX_BEHIND:
                # A supervisor that has lost slots whose maps nobody keeps any more.
                history = await self._jump(peer, history, until - _HEAD_START, is_asked=is_asked)
            if history.next_slot == first:
                return
            if history.next_slot < until and time.monotonic() >= until_s:
                raise LinkError(f"it has given slots up to {history.next_slot} in {_TURN_S:.0f} s")

    async def _is_in_office(self) -> bool:
        committee = await self._slots.committee()
        return committee is not None and self._core.account in committee.members

    async def _jump(
        self, peer: PeerInfo, behind: SlotHistory, slot: int, *, is_asked: bool
    ) -> SlotHistory:
        """Go on with a task's history at a checkpoint of a peer's."""
        signed, theta = await self._weights_of(peer, behind.task, slot)
        if signed is None or signed.certificate.task != behind.task.id:
            raise SlotError("theta", "weights of another task, or of its first slot, were sent.")
        return await self._slots.begin_at(Checkpoint(signed, theta), is_asked=is_asked)

    async def _weights_of(
        self, peer: PeerInfo, task: TaskSpec, slot: int
    ) -> tuple[SignedCertificate | None, bytes]:
        """Return the newest weights at or before a slot that a peer has, unchecked, with the certificate before them.

        Raises:
            LinkError: it does not answer, or not with all of them in time.
            BadEncoding, SlotError: what it sends breaks a rule.
        """
        first: Weights | None = None
        theta = bytearray()
        due, until_s = 4 * task.num_weights, time.monotonic() + _WEIGHTS_S
        while len(theta) < due:
            if theta and time.monotonic() >= until_s:
                raise LinkError(f"it has given {len(theta)} of {due} bytes in {_WEIGHTS_S:.0f} s")
            request = WeightsRequest(task.id, slot, len(theta) // PIECE_BYTES)
            answer = await self._core.ask(peer, Kind.THETA, encode(request))
            found = decode(answer, Weights)
            first = first or found
            rest = due - len(theta)
            if (found.slot, found.num_bytes, len(found.piece)) != (
                *(first.slot, due),
                min(rest, PIECE_BYTES),
            ):
                raise SlotError("theta", "pieces of the weights do not belong together.")
            theta += found.piece
        assert first is not None
        return first.previous, bytes(theta)
