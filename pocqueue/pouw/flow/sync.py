"""Catching up with others, and the answers for those who do.

Blocks that a committee has signed to be final are not trained over again: a certificate in a later block, or the
newest one of all, names them or one above them. Those behind it are, and wait here for that.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise

from pocqueue.pouw.chain.fork import Position
from pocqueue.pouw.errors import BadEncoding, LinkError, PeerFault, SlotError, UnknownTask
from pocqueue.pouw.flow.blocks import BlockFlow
from pocqueue.pouw.flow.core import Core
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

#: A node asks somebody where it stands this often, even if nobody has anything new for it.
_LOOK_S = 10.0
_POINTS = 50

_log = logging.getLogger(__name__)


class Sync:
    """Asks peers for what this node lacks; one peer at a time."""

    def __init__(self, core: Core, blocks: BlockFlow, slots: SlotFlow) -> None:
        self._core, self._blocks, self._slots = core, blocks, slots
        self._asked: asyncio.Queue[PeerInfo] = asyncio.Queue()
        self._queued: set[bytes] = set()

    def wish(self, peer: PeerInfo) -> None:
        """Catch up with this peer soon."""
        if peer.account not in self._queued:
            self._queued.add(peer.account)
            self._asked.put_nowait(peer)

    async def run(self) -> None:
        """Catch up with those whom a wish names, and with anybody now and then."""
        while True:
            try:
                peer = await asyncio.wait_for(self._asked.get(), _LOOK_S)
            except TimeoutError:
                for peer in self._core.network.peers[:1]:
                    self.wish(peer)
                continue
            self._queued.discard(peer.account)
            try:
                await self._follow(peer)
            except (LinkError, UnknownTask) as exc:
                _log.debug("%s %s: %s", self._core.name, peer.node_id, exc)
            except (BadEncoding, SlotError) as exc:
                self._core.network.charge(peer.account, _POINTS, str(exc))
            except PeerFault as fault:
                self._core.network.charge(peer.account, fault.points, str(fault))

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

    async def _follow(self, peer: PeerInfo) -> None:
        status = decode(await self._ask(peer, Kind.STATUS, b""), Status)
        if not await self._core.in_chain(self._core.chain.__contains__, status.tip):
            await self._fetch_blocks(peer, status)
        await self._slots.follow(peer, status)
        self._core.is_current.set()

    async def _fetch_blocks(self, peer: PeerInfo, status: Status) -> None:
        chain, waiting = self._core.chain, list[Block]()
        locator = await self._core.in_chain(chain.locator)
        while True:
            first = (waiting[-1].id,) if waiting else ()
            request = BlocksRequest((*first, *locator)[:64])
            found = decode(await self._ask(peer, Kind.BLOCKS, encode(request)), Blocks).blocks
            waiting += found
            final = self._num_final(waiting, status.newest)
            for block in waiting[:final]:
                await self._blocks.take(block, peer, is_final=True)
            del waiting[:final]
            if not found or (not final and len(waiting) > MAX_BLOCKS):
                break
            if final:
                locator = await self._core.in_chain(chain.locator)
        for block in waiting:
            await self._blocks.take(block, peer)

    def _num_final(self, blocks: list[Block], newest: SignedCertificate | None) -> int:
        """Return how many of these blocks, which follow each other, a committee that is known has signed to be final.

        Founding blocks need no training over; they count as long as nothing else came before them.
        """
        for below, block in pairwise(blocks):
            if block.header.parent != below.id:
                raise PeerFault(_POINTS, "it sent blocks that do not follow each other")
        place = {block.id: index for index, block in enumerate(blocks, 1)}
        final = 0
        for block in blocks:
            if isinstance(block.proof, Trained):
                break
            final += 1
        state = self._core.chain.tip.state
        signed = [one.proof.winner.signed for one in blocks if isinstance(one.proof, Trained)]
        for one in (*signed, *([newest] if newest else [])):
            certificate = one.certificate
            index, committee = place.get(certificate.anchor, 0), state.committee(certificate.epoch)
            if index <= final or committee is None:
                continue
            try:
                verify_signed(one, committee)
            except SlotError:
                continue
            if certificate.network == self._core.genesis.network:
                final = index
        return final

    async def _ask(self, peer: PeerInfo, kind: Kind, body: bytes) -> bytes:
        return await self._core.network.request(peer.account, kind, body)
