"""The noise of private tasks at a node: a miner's own, and what a member of the committee was shown.

A member certifies no message that it could not execute again, with those before it in the lap; what it was shown is
on its disk before it says so. So whoever has certified a block's messages can judge the block, after a restart too. A
committee that comes into office within a lap was not shown the slots before: it certifies messages of lanes that have
none there, and takes the last blocks of the committee before it on that one's word.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from pocqueue.pouw.chain.mining import lanes_of
from pocqueue.pouw.chain.records import MINER, SUPERVISOR
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.committee.dealing import Dealer
from pocqueue.pouw.committee.noise import check_sealed, open_noise, seal_noise
from pocqueue.pouw.errors import BadEncoding, ChainError, PeerFault, SlotError
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.slots import bls
from pocqueue.pouw.slots.history import Lane, SlotHistory
from pocqueue.pouw.slots.messages import WINDOW
from pocqueue.pouw.slots.slot_store import SlotStore
from pocqueue.pouw.slots.task import LapSlot, TaskSpec
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.noise import SealedNoise
from pocqueue.pouw.wire.slots import noise_digest

#: NOISEs that are remembered as passed on: some laps of a few tasks.
_KEPT: Final = 4096
_POINTS = 50

#: Epoch of the committee, task, slot, miner and lane.
_Place = tuple[int, bytes, int, bytes, int]


class Noises:
    """Signatures that noise follows from. Of the node's event loop, but for what says otherwise.

    Args:
        core, slots, store: of the node.
        secret: BLS key of its ticket.
        dealer: of its account.
    """

    def __init__(
        self,
        core: Core,
        slots: SlotFlow,
        store: SlotStore,
        secret: bls.SecretKey,
        dealer: Dealer,
    ) -> None:
        self._core, self._slots, self._store = core, slots, store
        self._secret, self._dealer = secret, dealer
        self._passed: OrderedDict[_Place, None] = OrderedDict()

    def own(self, task: TaskSpec, slot: int, lane: int) -> bytes | None:
        """Return what the noise of a message of this node follows from; None: the task is not private."""
        if task.noise is None:
            return None
        return self._secret.sign(noise_digest(self._core.genesis.network, task.id, slot, lane))

    async def show(self, task: TaskSpec, slot: int, lane: int) -> None:
        """Show it to the committee; nothing happens if the task is not private, or nobody is in office."""
        core, committee = self._core, await self._slots.committee()
        if task.noise is None or committee is None:
            return
        state = core.chain.tip.state
        sealed = seal_noise(
            core.key,
            self._secret,
            (core.genesis.network, task.id, slot, lane),
            committee.epoch,
            [_seal_key(state, member) for member in committee.members],
        )
        core.network.push(Kind.NOISE, encode(sealed))

    async def receive(self, peer: PeerInfo, body: bytes) -> bool:
        """Take a NOISE; True if it is a miner's, of about this slot, and new."""
        try:
            sealed = decode(body, SealedNoise)
        except BadEncoding as exc:
            raise PeerFault(_POINTS, str(exc)) from None
        task, slot, _ = self._slots.newest
        committee = await self._slots.committee()
        place = (sealed.epoch, sealed.task, sealed.slot, sealed.miner, sealed.lane)
        state = self._core.chain.tip.state
        if (
            committee is None
            or (sealed.network, sealed.epoch, sealed.task)
            != (self._core.genesis.network, committee.epoch, task)
            or abs(sealed.slot - slot) > WINDOW
            or sealed.lane >= lanes_of(state, sealed.miner)
            or place in self._passed
        ):
            return False
        try:
            check_sealed(sealed)
        except SlotError as exc:
            raise PeerFault(_POINTS, f"a NOISE: {exc}") from None
        self._passed[place] = None
        if len(self._passed) > _KEPT:
            self._passed.popitem(last=False)
        if self._core.account in committee.members:
            member = committee.members.index(self._core.account)
            for group_key in _group_keys(state, sealed.miner):
                found = open_noise(sealed, member, self._dealer, group_key)
                if found is not None:
                    at = (sealed.task, sealed.slot, (sealed.miner, sealed.lane))
                    await self._slots.in_slots(self._store.write_noise, *at, found)
                    self._slots.heard.ring()
        return True

    def is_shown(self, history: SlotHistory, slot: int, lane: Lane) -> bool:
        """Say whether a message of the open slot may be certified: this node, a member, could execute it again.

        In the history's thread.
        """
        if history.task.noise is None or lane[0] == self._core.account:
            return True
        slots = (*(one.slot for one in history.own(lane)), slot)
        return all(self._store.noise(history.task.id, at, lane) is not None for at in slots)

    def may_judge(self, task: TaskSpec, epoch: int) -> bool:
        """Say whether this node can execute messages again that were certified in an epoch: of a private task whoever
        was in its committee."""
        if task.noise is None:
            return True
        committee = self._core.chain.tip.state.committee(epoch)
        return committee is not None and self._core.account in committee.members

    def filled(
        self, task: TaskSpec, lap: Sequence[LapSlot], miner: bytes, lane: int
    ) -> tuple[LapSlot, ...]:
        """Return a lane's lap of a private task with its noise. In the slots' thread.

        Raises:
            ChainError: that of a message is not known here.
        """
        return tuple(
            one
            if one.map is None and one is not lap[-1]
            else replace(one, noise=self._known(task, one.slot, (miner, lane)))
            for one in lap
        )

    def _known(self, task: TaskSpec, slot: int, lane: Lane) -> bytes:
        own = self.own(task, slot, lane[1]) if lane[0] == self._core.account else None
        found = own or self._store.noise(task.id, slot, lane)
        if found is None:
            raise ChainError(
                f"the noise of slot {slot} of {lane[0].hex()} is not known here: its miner shows it to the committee."
            )
        return found


def _seal_key(state: State, account: bytes) -> bytes | None:
    ticket = state.live_ticket(account, SUPERVISOR)
    record = None if ticket is None else state.ticket(ticket)
    return None if record is None else record.seal_key


def _group_keys(state: State, account: bytes) -> set[bytes]:
    """Return the BLS keys of an account's tickets that it may mine by."""
    found = set()
    for role in (MINER, SUPERVISOR):
        ticket = state.live_ticket(account, role)
        record = None if ticket is None else state.ticket(ticket)
        if record is not None and record.group_key is not None:
            found.add(record.group_key)
    return found
