"""Catching up with others, and where this node stands for those who do.

Slots and blocks are caught up with apart from each other, so that neither waits for the other, and nothing here waits for
blocks that are to be trained over: those are left to `BlockFlow`. Blocks that a committee has signed to be final are not:
a certificate in a later block, or the newest one of all, names them or one above them.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from itertools import pairwise

from pocqueue.pouw.chain.fork import Position
from pocqueue.pouw.errors import BadEncoding, LinkError, PeerFault, PouwError, SlotError
from pocqueue.pouw.flow.blocks import BlockFlow
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.flow.following import Following, Outcome
from pocqueue.pouw.flow.slot_sync import SlotSync
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.slots.certificate import verify_signed
from pocqueue.pouw.wire.blocks import Block, Trained
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.hashes import ZERO
from pocqueue.pouw.wire.requests import (
    MAX_ANSWER_BYTES,
    MAX_BLOCKS,
    Blocks,
    BlocksRequest,
    Status,
)
from pocqueue.pouw.wire.slots import SignedCertificate

#: A peer that had nothing new is left alone for so long, and one that did not answer.
_REST_S, _SILENT_REST_S = 1.0, 5.0
#: Where a peer stands is said at once; blocks of one peer take so long at most before it is another one's turn.
_STATUS_S, _TURN_S = 5.0, 15.0
#: A supervisor that signs alone waits so long after its start for more links before it is told that it has all.
_GATHER_S = 3.0
_POINTS = 50
_FAILED = Outcome(_SILENT_REST_S, has_failed=True)

_log = logging.getLogger(__name__)


class Sync:
    """Asks peers for what this node lacks."""

    def __init__(self, core: Core, blocks: BlockFlow, slots: SlotFlow, slot_sync: SlotSync) -> None:
        self._core, self._blocks = core, blocks
        self._slots, self._slot_sync = slots, slot_sync

        def following(
            follow: Callable[[PeerInfo], Awaitable[bool]], standing: Callable[[], Hashable]
        ) -> Following:
            return Following(core, functools.partial(self._tried, follow, standing))

        self._for_slots = following(self._follow_slots, lambda: slots.newest[:2])
        self._for_blocks = following(
            self._follow_blocks, lambda: (core.chain.tip.id, core.chain.anchor.id)
        )
        self._gathered_at_s = time.monotonic() + _GATHER_S
        #: Whose slots were asked for once, whatever came of it, and the newest turn that a supervisor that signs alone was
        #: shown.
        self._asked: set[bytes] = set()
        self._signed_turn = -1

    def wish(self, peer: PeerInfo) -> None:
        """Catch up with this peer soon."""
        self._for_slots.wish(peer)
        self._for_blocks.wish(peer)

    async def run(self) -> None:
        """Catch up with those whom a wish names, and with anybody now and then."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._for_slots.run())
            group.create_task(self._for_blocks.run())

    def status(self) -> Status:
        """Return where this node stands, for whoever asks."""
        tip, anchor = self._vouched(), self._core.chain.anchor
        task, slot, newest = self._slots.newest
        return Status(tip.id, tip.height, anchor.id, anchor.height, task, slot, newest)

    async def blocks(self, request: BlocksRequest) -> Blocks:
        """Return what follows the newest block that an asker has in common with this node."""
        found = await self._core.in_chain(
            self._core.chain.blocks_after, request.locator, MAX_BLOCKS, MAX_ANSWER_BYTES
        )
        highest = self._vouched().height
        return Blocks(tuple(block for block in found if block.header.height <= highest))

    def _vouched(self) -> Position:
        """Return the newest block that nobody can hold against this node: if it trains over none, below those of
        miners that are not final."""
        above = [*self._core.chain.tip.down()][:-1]
        trained = [] if self._core.retrains else [at for at in above if at.header.message != ZERO]
        return (trained[-1].parent if trained else None) or self._core.chain.tip

    async def _tried(
        self,
        follow: Callable[[PeerInfo], Awaitable[bool]],
        standing: Callable[[], Hashable],
        peer: PeerInfo,
    ) -> Outcome:
        """Take in what a peer has; whatever comes of that, others are followed.

        Args:
            follow: does that; returns whether all of it is here.
            standing: returns what differs when something new is here.
            peer: whom.
        """
        before, has_all = standing(), False
        try:
            has_all = await follow(peer)
        except PeerFault as fault:
            # Before LinkError, which it is one of.
            self._core.network.charge(peer.account, fault.points, str(fault))
            return _FAILED
        except (BadEncoding, SlotError) as exc:
            return self._broken(peer, exc)
        except LinkError as exc:
            _log.debug("%s %s: %s", self._core.name, peer.node_id, exc)
            if standing() == before:
                return _FAILED
        except PouwError as exc:
            _log.error("%s Nothing is taken of %s: %s", self._core.name, peer.node_id, exc)
            return _FAILED
        return Outcome(0.0, has_more=not has_all) if standing() != before else Outcome(_REST_S)

    def _broken(self, peer: PeerInfo, exc: BadEncoding | SlotError) -> Outcome:
        """Hold against a peer what it sent, if it is its fault."""
        if isinstance(exc, SlotError) and self._slots.is_nobodys_fault(exc):
            _log.debug("%s %s: %s", self._core.name, peer.node_id, exc)
            return Outcome(_REST_S)
        if isinstance(exc, SlotError):
            self._slots.tell_forged(peer, exc)
        self._core.network.charge(peer.account, _POINTS, str(exc))
        return _FAILED

    async def _status(self, peer: PeerInfo) -> Status:
        return decode(await self._core.ask(peer, Kind.STATUS, timeout_s=_STATUS_S), Status)

    async def _follow_slots(self, peer: PeerInfo) -> bool:
        try:
            status = await self._status(peer)
            newest = status.newest
            if newest and await self._signs_alone() and await self._slots.is_ahead(newest):
                self._signed_turn = max(newest.certificate.turn, self._signed_turn)
            await self._slot_sync.follow(peer, status)
        finally:
            self._asked.add(peer.account)
        has_all = newest is None or not await self._slots.is_ahead(newest)
        if has_all and await self._has_tip(status) and await self._have_all_been_asked():
            self._core.is_current.set()
        return has_all

    async def _follow_blocks(self, peer: PeerInfo) -> bool:
        status, before = await self._status(peer), self._core.chain.tip
        has_all = await self._has_tip(status)
        if not has_all:
            await self._fetch_blocks(peer, status)
            has_all = await self._has_tip(status)
        if self._core.chain.tip is not before or (has_all and not self._core.is_current.is_set()):
            # An epoch may have begun in them, whose slots could not be taken before; or these blocks were all that lacked.
            self._for_slots.wish_now(peer)
        return has_all

    async def _signs_alone(self) -> bool:
        committee = await self._slots.committee()
        return committee is not None and committee.members == (self._core.account,)

    async def _have_all_been_asked(self) -> bool:
        """Say whether one peer's word is enough, or there is no other one to ask.

        A supervisor that signs alone and has lost slots would sign them again, and an empty newcomer has nothing newer
        either. So it asks all that are linked, and leaves some time for more to be. Whoever shows what it has signed
        may keep it from going on; whoever shows nothing may not.
        """
        if not await self._signs_alone() or self._slots.newest[2] is None:
            return True
        rest = [one for one in self._core.network.peers if one.account not in self._asked]
        if time.monotonic() < self._gathered_at_s:
            rest = self._core.network.peers
        for one in rest:
            self._for_slots.wish(one)
        return not rest and self._slots.next_turn > self._signed_turn

    async def _has_tip(self, status: Status) -> bool:
        chain = self._core.chain
        is_below = status.height <= chain.anchor.height
        return is_below or await self._core.in_chain(chain.__contains__, status.tip)

    async def _fetch_blocks(self, peer: PeerInfo, status: Status) -> None:
        """Take a peer's blocks, as long as there are new ones and they are taken; leave those that follow and are to be
        trained over to `BlockFlow`.
        """
        core, waiting = self._core, list[Block]()
        until_s = time.monotonic() + _TURN_S
        while time.monotonic() < until_s:
            locator = await core.in_chain(core.chain.locator)
            first = (waiting[-1].id,) if waiting else ()
            request = encode(BlocksRequest((*first, *locator)[:64]))
            answer = await core.ask(peer, Kind.BLOCKS, request)
            found = await core.in_chain(self._unknown, decode(answer, Blocks).blocks)
            if not found:
                break
            waiting += found
            if any(block.header.parent != below.id for below, block in pairwise(waiting)):
                raise LinkError(
                    "its blocks do not follow each other: it may have turned to a branch"
                )
            if not await self._take_final(waiting, peer, status.newest):
                return
            if len(waiting) > MAX_BLOCKS:
                break
        if core.retrains:
            self._blocks.wait(waiting, peer)
        else:
            await self._blocks.take_row(waiting, peer)

    async def _take_final(
        self, waiting: list[Block], peer: PeerInfo, newest: SignedCertificate | None
    ) -> bool:
        """Take those of blocks in a row that need no training over; False: one of them is not good now."""
        # Each time with the state after those before: they may have put a committee into office.
        while waiting:
            num_final, anchor = await self._core.in_chain(self._num_final, waiting, newest)
            if not num_final:
                break
            if not await self._blocks.take_row(waiting[:num_final], peer, is_final=True):
                return False
            if anchor is not None:
                await self._blocks.settle_anchor(*anchor)
            del waiting[:num_final]
        return True

    def _unknown(self, blocks: tuple[Block, ...]) -> list[Block]:
        return [block for block in blocks if block.id not in self._core.chain]

    def _num_final(
        self, blocks: list[Block], newest: SignedCertificate | None
    ) -> tuple[int, tuple[bytes, int] | None]:
        """Return how many of these blocks, which follow each other, need no training over.

        Founding blocks do not, as long as nothing else came before them, and none up to one that a committee has
        signed to be final. In the chain's thread.

        Returns:
            Their number, and the last one's id and height if it is final.

        Raises:
            SlotError: what is said to be signed is not.
        """
        chain, parent = self._core.chain, blocks[0].header.parent
        place = {block.id: index for index, block in enumerate(blocks, 1)}
        kinds = [isinstance(block.proof, Trained) for block in blocks]
        num_founding = kinds.index(True) if True in kinds else len(blocks)
        if not chain.knows(parent):
            return num_founding, None
        # Of their own branch: before there is an anchor it may have another committee than the tip's.
        state, office = chain.state_at(parent), chain.anchor.state.office
        signed = [one.proof.winner.signed for one in blocks if isinstance(one.proof, Trained)]
        # The highest first: it says all that those below it do.
        for one in reversed([*signed, *([newest] if newest else [])]):
            certificate = one.certificate
            index, committee = place.get(certificate.anchor, 0), state.committee(certificate.epoch)
            is_old = office is not None and certificate.epoch < office.epoch
            is_ours = certificate.network == self._core.genesis.network
            if index > num_founding and committee is not None and is_ours and not is_old:
                verify_signed(one, committee)
                return index, (certificate.anchor, certificate.anchor_height)
        return num_founding, None
