"""Blocks: checked, trained over, taken into the chain, announced.

They wait in a queue of their own: training over takes time in which the same peer's messages of the next slot
have to get through.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from pocqueue.pouw.chain.chain import Change
from pocqueue.pouw.chain.mining import spec_of
from pocqueue.pouw.errors import (
    BadEncoding,
    ChainError,
    InvalidBlock,
    PeerFault,
    TrainingError,
    UnknownParent,
)
from pocqueue.pouw.flow.core import Core, now_ms
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.wire.blocks import Block, Trained
from pocqueue.pouw.wire.codec import decode
from pocqueue.pouw.wire.slots import Iteration

_BAD_POINTS = 100
_TRAINER_TRIES = 3
_MAX_QUEUE = 64
#: Rules that say nothing against whoever sent the block.
_NOBODYS_FAULT = ("time", "anchor")

_log = logging.getLogger(__name__)


class BlockFlow:
    """Blocks on their way into the chain; one at a time.

    Args:
        core: of the node.
        slots: has what a winner's lap is trained over with.
        on_change: hears what a block did to the chain.
        on_missing: hears of a peer that has a block whose parent is not here.
    """

    def __init__(
        self,
        core: Core,
        slots: SlotFlow,
        on_change: Callable[[Change], None],
        on_missing: Callable[[PeerInfo], None],
    ) -> None:
        self._core = core
        self._slots = slots
        self._on_change = on_change
        self._on_missing = on_missing
        self._lock = asyncio.Lock()
        self._queue: asyncio.Queue[tuple[Block, PeerInfo]] = asyncio.Queue(_MAX_QUEUE)

    def receive(self, peer: PeerInfo, body: bytes) -> None:
        """Queue a peer's block; where too many wait it is left to sync.

        Raises:
            PeerFault: it is no block.
        """
        try:
            block = decode(body, Block)
        except BadEncoding as exc:
            raise PeerFault(_BAD_POINTS, str(exc)) from None
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait((block, peer))

    async def run(self) -> None:
        """Take what is queued."""
        while True:
            block, peer = await self._queue.get()
            try:
                await self.take(block, peer)
            except PeerFault as fault:
                self._core.network.charge(peer.account, fault.points, str(fault))

    async def take(self, block: Block, peer: PeerInfo | None, *, is_final: bool = False) -> bool:
        """Take a block into the chain and announce it; True if it is good and new.

        Args:
            block: decoded, so canonical.
            peer: who sent it; None: it is our own.
            is_final: a committee has signed that it is; then nobody trains over it.

        Raises:
            PeerFault: it breaks a rule.
        """
        async with self._lock:
            # In its thread: it may have to look on the disk, where a block is being written.
            if await self._core.in_chain(self._core.chain.__contains__, block.id):
                return False
            try:
                change = await self._checked(block, peer, is_final=is_final)
            except UnknownParent:
                if peer is not None:
                    self._on_missing(peer)
                return False
            except InvalidBlock as exc:
                self._refused(block, peer, exc)
                return False
            except (ChainError, TrainingError) as exc:
                # It may be good; it is asked for again when the next one comes.
                _log.warning("%s Block %s waits: %s", self._core.name, block.id.hex(), exc)
                return False
        _log.info(
            "%s Block %d %s by %s",
            *(
                self._core.name,
                block.header.height,
                block.id.hex()[:16],
                block.header.miner.hex()[:16],
            ),
        )
        self._on_change(change)
        if self._core.retrains or is_final or not isinstance(block.proof, Trained):
            self._core.network.announce(Kind.BLOCK, block.id)
        return True

    async def settle_anchor(self, block: bytes) -> None:
        """Make a block final, as a certificate says; one that is not here yet is left to sync."""
        async with self._lock:
            try:
                change = await self._core.in_chain(self._core.chain.set_anchor, block)
            except ChainError as exc:
                _log.debug("%s %s", self._core.name, exc)
                return
        self._on_change(change)
        if not self._core.retrains:  # it has told nobody yet; those below, others ask for
            self._core.network.announce(Kind.BLOCK, block)

    async def retrain(self, block: Block, peer: PeerInfo | None) -> str:
        """Train a winner's lap over; return what came of it in a sentence. See `train_over`."""
        assert isinstance(block.proof, Trained)
        return await self.train_over(block.proof.winner.iteration, peer)

    async def train_over(self, winner: Iteration, peer: PeerInfo | None) -> str:
        """Train the lap of a certified message over; return what came of it in a sentence.

        Raises:
            InvalidBlock: the rule ``re-execution``: its map or weights are not what its samples give.
            ChainError: what is needed for it is not to be had any more.
            TrainingError: the trainer fails again and again.
        """
        core = self._core
        lap, own_map = await self._slots.lap_of(winner, peer)
        spec = spec_of(core.genesis, core.chain.tip.state, winner.task)
        for tries_left in reversed(range(_TRAINER_TRIES)):
            try:
                verdict = await core.trainer.reexecute(
                    spec, lap, winner.miner, winner.lane, own_map
                )
                break
            except TrainingError:
                if not tries_left:
                    raise
        if not verdict.is_honest:
            raise InvalidBlock(
                "re-execution",
                f"{verdict.violations} of {verdict.compared} entries of its map are not what its samples give; honest "
                f"work looks so with a chance of {verdict.probability:.1g}.",
            )
        self._slots.check_weights_end(winner, lap, own_map)
        return (
            f"{len(lap)} gradients done over: {verdict.violations} of {verdict.compared} entries differ, weights_end "
            "is exact."
        )

    async def _checked(self, block: Block, peer: PeerInfo | None, *, is_final: bool) -> Change:
        core = self._core
        await core.in_chain(core.chain.check, block, now_ms(), is_final=is_final)
        if isinstance(block.proof, Trained) and core.retrains and not is_final and peer is not None:
            try:
                await self.retrain(block, peer)
            except InvalidBlock as exc:
                await core.in_chain(core.chain.refuse, block, exc)
                raise
        return await core.in_chain(core.chain.add, block, now_ms(), is_final=is_final)

    def _refused(self, block: Block, peer: PeerInfo | None, exc: InvalidBlock) -> None:
        _log.warning("%s Block %s refused: %s", self._core.name, block.id.hex(), exc)
        if exc.rule in _NOBODYS_FAULT or peer is None:
            return
        kind = "gradient_poisoning" if exc.rule == "re-execution" else "invalid_block"
        self._core.alert(
            kind,
            f"block {block.id.hex()[:16]} of {block.header.miner.hex()[:16]}: {exc}",
            source=peer.account,
            slot=block.header.slot,
            evidence=block.id,
        )
        raise PeerFault(_BAD_POINTS, f"a block: {exc}")
