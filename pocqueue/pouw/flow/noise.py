"""The noise of private tasks at a node: a miner's own, and what a member of the committee was shown."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, TypeVar

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
from pocqueue.pouw.slots.history import Lane
from pocqueue.pouw.slots.messages import WINDOW
from pocqueue.pouw.slots.task import LapSlot, TaskSpec
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.noise import SealedNoise
from pocqueue.pouw.wire.slots import noise_digest

_T = TypeVar("_T")
#: Messages whose noise is kept: some laps of a few tasks.
_KEPT: Final = 4096
_POINTS = 50

#: Task, slot, miner and lane.
_Place = tuple[bytes, int, bytes, int]


class Noises:
    """Signatures that noise follows from. Of the node's event loop.

    Args:
        core, slots: of the node.
        secret: BLS key of its ticket.
        dealer: of its account.
    """

    def __init__(self, core: Core, slots: SlotFlow, secret: bls.SecretKey, dealer: Dealer) -> None:
        self._core, self._slots = core, slots
        self._secret, self._dealer = secret, dealer
        self._shown: OrderedDict[_Place, bytes] = OrderedDict()
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
        place = (sealed.task, sealed.slot, sealed.miner, sealed.lane)
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
        _put(self._passed, place, None)
        if self._core.account in committee.members:
            member = committee.members.index(self._core.account)
            for group_key in _group_keys(state, sealed.miner):
                found = open_noise(sealed, member, self._dealer, group_key)
                if found is not None:
                    _put(self._shown, place, found)
                    self._slots.heard.ring()
        return True

    def is_shown(self, task: TaskSpec, slot: int, lane: Lane) -> bool:
        """Say whether a message may be certified: this node, a member, could execute it again."""
        place = (task.id, slot, *lane)
        return task.noise is None or lane[0] == self._core.account or place in self._shown

    async def may_judge(self, task: TaskSpec) -> bool:
        """Say whether this node can execute messages of a task again: of a private one the committee alone can."""
        if task.noise is None:
            return True
        committee = await self._slots.committee()
        return committee is not None and self._core.account in committee.members

    def filled(
        self, task: TaskSpec, lap: Sequence[LapSlot], miner: bytes, lane: int
    ) -> tuple[LapSlot, ...]:
        """Return a lane's lap with its noise.

        Raises:
            ChainError: that of a message is not known here.
        """
        if task.noise is None:
            return tuple(lap)
        return tuple(
            one
            if one.map is None and one is not lap[-1]
            else replace(one, noise=self._known((task.id, one.slot, miner, lane), task))
            for one in lap
        )

    def _known(self, place: _Place, task: TaskSpec) -> bytes:
        _, slot, miner, lane = place
        own = self.own(task, slot, lane) if miner == self._core.account else None
        found = own or self._shown.get(place)
        if found is None:
            raise ChainError(
                f"the noise of slot {slot} of {miner.hex()} is not known here: its miner shows it to the committee."
            )
        return found


def _put(known: OrderedDict[_Place, _T], place: _Place, value: _T) -> None:
    known[place] = value
    if len(known) > _KEPT:
        known.popitem(last=False)


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
