"""Slots between those that a node has, as it went on from weights of another one: who worked in them, to be paid.

They are had without their maps, which nobody keeps for ever. None of their signatures is looked at: the slot after them
names the last one's certificate, and each certificate the one before it and the ids of its messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import SystemRandom

from pocqueue.pouw.errors import BadEncoding, LinkError, SlotError
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.flow.following import of_one
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.slots.slot_store import Gap, SlotStore
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.hashes import merkle_root
from pocqueue.pouw.wire.requests import MAX_SLOTS, Slot, Slots, SlotsRequest

_random = SystemRandom()


class Gaps:
    """Fills them.

    Args:
        core, slots, store: of the node.
    """

    def __init__(self, core: Core, slots: SlotFlow, store: SlotStore) -> None:
        self._core, self._slots, self._store = core, slots, store

    async def fill(self, task: bytes) -> None:
        """Have all slots of a task here that come before others that are.

        Raises:
            SlotError: ``missing``: nobody gives them.
        """
        while (gap := await self._slots.in_slots(self._store.gap, task)) is not None:
            # The last ones first: the slot after them says what they have to be.
            gap = gap._replace(first=max(gap.first, gap.end - MAX_SLOTS))
            peers = self._core.network.peers

            async def get(peer: PeerInfo, gap: Gap = gap) -> list[Slot]:
                return await self._given(peer, task, gap)

            try:
                found = await of_one(self._core, _random.sample(peers, len(peers)), get)
            except (LinkError, BadEncoding, SlotError) as exc:
                raise SlotError(
                    "missing", f"slots {gap.first} to {gap.end - 1} are not to be had: {exc}"
                ) from None
            await self._slots.in_slots(self._store.write_bare, found)

    async def _given(self, peer: PeerInfo, task: bytes, gap: Gap) -> list[Slot]:
        found: list[Slot] = []
        while gap.first + len(found) < gap.end:
            request = SlotsRequest(task, gap.first + len(found), is_bare=True)
            answer = await self._core.ask(peer, Kind.SLOTS, encode(request))
            given = decode(answer, Slots).slots
            if not given:
                raise LinkError("it has them no more")
            found += given
        del found[gap.end - gap.first :]
        await self._slots.in_slots(_check, task, gap, found)
        return found


def _check(task: bytes, gap: Gap, slots: Sequence[Slot]) -> None:
    """Return if these are the slots of a gap.

    Raises:
        SlotError: ``slot``, ``root`` or ``previous``.
    """
    previous = gap.previous
    for number, slot in zip(reversed(range(gap.first, gap.end)), reversed(slots), strict=True):
        certificate = slot.record.signed.certificate
        if (certificate.task, certificate.slot) != (task, number):
            raise SlotError("slot", f"another one was given as slot {number}.")
        ids = tuple(message.iteration.id for message in slot.messages)
        if ids != slot.record.ids or certificate.root != merkle_root(ids):
            raise SlotError("root", f"slot {number} was given with other messages.")
        if certificate.id != previous:
            raise SlotError("previous", f"slot {number} was given with another certificate.")
        previous = certificate.previous
