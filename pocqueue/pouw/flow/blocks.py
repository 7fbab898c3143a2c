"""Blocks: checked, trained over, taken into the chain, announced.

They wait in a queue of their own: training over takes time in which the same peer's messages of the next slot
have to get through, and what a node lacks of slots and final blocks.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from random import SystemRandom

from pocqueue.pouw.chain.chain import RE_EXECUTION, Change
from pocqueue.pouw.chain.mining import spec_of
from pocqueue.pouw.errors import (
    BadEncoding,
    ChainError,
    InvalidBlock,
    PeerFault,
    TrainingError,
    UnknownParent,
    UnknownTask,
)
from pocqueue.pouw.flow.core import Core, now_ms
from pocqueue.pouw.flow.noise import Noises
from pocqueue.pouw.flow.slot_sync import SlotSync
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.training.trainer import PATIENT_S, URGENT_S
from pocqueue.pouw.wire.blocks import Block, Trained
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.slots import Iteration

_BAD_POINTS = 100
#: For a block that nobody worked for, or another one than the peer was asked for.
_UNWORKED_POINTS = 20
_TRAINER_TRIES = 3
_MAX_QUEUE = 64
#: Rules that say nothing against whoever sent the block.
_NOBODYS_FAULT = ("time", "anchor")

_random = SystemRandom()
_log = logging.getLogger(__name__)


class BlockFlow:
    """Blocks on their way into the chain; of those that are to be trained over one at a time.

    Args:
        core: of the node.
        slots: has the newest certificate.
        slot_sync: has what a winner's lap is trained over with.
        on_change: hears what a block did to the chain.
        on_missing: hears of a peer that has a block which has no place here yet.
        noises: knows the noise of private tasks, if it is shown to this node.

    Attributes:
        on_cheat: hears of the message of a winner that was trained over and is false.
    """

    def __init__(
        self,
        core: Core,
        slots: SlotFlow,
        slot_sync: SlotSync,
        on_change: Callable[[Change], None],
        on_missing: Callable[[PeerInfo], None],
        noises: Noises,
    ) -> None:
        self._core = core
        self._slots, self._slot_sync, self._noises = slots, slot_sync, noises
        self._on_change = on_change
        self._on_missing = on_missing
        self.on_cheat: Callable[[Iteration], None] | None = None
        #: Rows of blocks by the hashes of all their bytes, with who sent them: what peers push, one by one, and a row of
        #: those that sync found.
        self._queue: asyncio.Queue[tuple[dict[bytes, Block], PeerInfo]] = asyncio.Queue(_MAX_QUEUE)
        self._found_row: dict[bytes, Block] | None = None
        #: Of those in it, and of the row that is being taken, the ids by those hashes: signatures and paths are not in an
        #: id, and one with wrong ones must not keep the good one out.
        self._queued: dict[bytes, bytes] = {}
        #: There was no room for something.
        self._is_more = False
        #: The newest certificate may name a block as final that is here and is not the anchor.
        self._is_anchor_due = asyncio.Event()
        #: The last block that was named as final and contradicts the anchor.
        self._contradicts: bytes | None = None

    def receive(self, peer: PeerInfo, body: bytes, identifier: bytes) -> None:
        """Queue a peer's block whose parent is here or queued; others, and those that are too many, are left to sync.

        Raises:
            PeerFault: it is no block, not the one with this id, or nobody worked for it.
        """
        digest = hashlib.sha256(body).digest()
        if digest in self._queued or self._core.chain.knows(identifier):
            return
        try:
            block = decode(body, Block)
        except BadEncoding as exc:
            self._miss_of_others(peer)
            raise PeerFault(_BAD_POINTS, str(exc)) from None
        header, chain = block.header, self._core.chain
        if block.id != identifier or not header.meets_target:
            self._miss_of_others(peer)
            raise PeerFault(
                _UNWORKED_POINTS,
                f"block {block.id.hex()} for {identifier.hex()}, or not below its target",
            )
        if header.parent in self._queued.values() or chain.knows(header.parent):
            if not self._put({digest: block}, peer):
                self._on_missing(peer)
        elif header.height > chain.anchor.height:
            self._on_missing(peer)

    def wait(self, blocks: list[Block], peer: PeerInfo) -> None:
        """Queue blocks in a row that sync found, if none of its rows waits: what cannot be queued now it finds again."""
        by_digest = {hashlib.sha256(encode(block)).digest(): block for block in blocks}
        new = {digest: block for digest, block in by_digest.items() if digest not in self._queued}
        if new and self._found_row is None and self._put(new, peer):
            self._found_row = new

    async def take_row(
        self, blocks: Sequence[Block], peer: PeerInfo, *, is_final: bool = False
    ) -> bool:
        """Take blocks in a row up to the first that is not good now, as `take`; say whether all were."""
        for block in blocks:
            await self.take(block, peer, is_final=is_final)
            if not await self._core.in_chain(self._core.chain.__contains__, block.id):
                return False
        return True

    def _put(self, row: dict[bytes, Block], peer: PeerInfo) -> bool:
        try:
            self._queue.put_nowait((row, peer))
        except asyncio.QueueFull:
            self._is_more = True
            return False
        self._queued |= {digest: block.id for digest, block in row.items()}
        return True

    def _miss_of_others(self, peer: PeerInfo) -> None:
        """Have what a peer sent spoiled of the others: that they have it is forgotten once it came from anybody."""
        for other in self._core.network.peers:
            if other.account != peer.account:
                self._on_missing(other)

    async def run(self) -> None:
        """Take what is queued, and make final what certificates name."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take_queued())
            group.create_task(self._settle_anchors())

    def wish_anchor(self) -> None:
        """Make final soon what the newest certificate names."""
        self._is_anchor_due.set()

    async def take(self, block: Block, peer: PeerInfo | None, *, is_final: bool = False) -> bool:
        """Take a block into the chain and announce it; True if it is good and new.

        Args:
            block: decoded, so canonical.
            peer: who sent it; None: it is our own.
            is_final: a committee has signed that it is; then nobody trains over it.

        Raises:
            PeerFault: it breaks a rule.
        """
        core = self._core
        retrained_for = None if is_final or not core.retrains else peer
        try:
            if not await core.in_chain(self._is_new, block, is_final):
                return False
            if peer is None:  # it is good: the others' work on it need not wait for this disk
                core.network.push_block(block.id, encode(block))
            if retrained_for is not None and isinstance(block.proof, Trained):
                await self._slot_sync.reach(retrained_for, block.proof.winner.iteration)
                if core.chain.knows(block.id):
                    return False
                # Of a private task who has certified it alone can: others take the block until another one is final.
                winner = block.proof.winner
                spec = spec_of(core.genesis, core.chain.tip.state, winner.iteration.task)
                if self._noises.may_judge(spec, winner.signed.certificate.epoch):
                    await self._judge(block, winner.iteration)
            change = await core.in_chain(self._added, block, is_final)
            if change is None:
                return False
        except UnknownParent:
            if peer is not None:
                self._on_missing(peer)
            return False
        except InvalidBlock as exc:
            if peer is None and exc.rule == "transactions":
                # Our own next block would fail by them as well.
                await core.in_chain(core.mempool.remove, block.transactions)
            self._refused(block, peer, exc)
            return False
        except (ChainError, TrainingError) as exc:
            # It may be good; it is asked for again when the next one comes.
            _log.warning("%s Block %s waits: %s", core.name, block.id.hex(), exc)
            return False
        _log.info(
            "%s Block %d %s by %s",
            *(core.name, block.header.height, block.id.hex()[:16], block.header.miner.hex()[:16]),
        )
        self._on_change(change)
        self.wish_anchor()
        if peer is not None and (core.retrains or is_final or not isinstance(block.proof, Trained)):
            core.network.announce(Kind.BLOCK, block.id)
        return True

    async def settle_anchor(self, block: bytes, height: int) -> None:
        """Make a block final, as a certificate says; one that is not here yet is left to sync, which anybody may have.

        Args:
            block: its id.
            height: of the block, as the certificate says.
        """
        core, old = self._core, self._core.chain.anchor.id
        if block == old:
            return
        try:
            change = await core.in_chain(core.chain.set_anchor, block)
        except ChainError as exc:
            if height > core.chain.anchor.height:
                _log.debug("%s %s", core.name, exc)
                if peers := core.network.peers:
                    self._on_missing(_random.choice(peers))
            elif block != self._contradicts:
                self._contradicts = block
                _log.error(
                    "%s The committee has signed two histories: block %s at height %d is final for it now, and %s at "
                    "height %d was before. Ask the network's supervisors which one counts; a node on the other one "
                    "begins anew with an empty folder.",
                    *(core.name, block.hex(), height, old.hex(), core.chain.anchor.height),
                )
                core.alert("forged_history", f"block {block.hex()} at height {height}: {exc}")
            return
        if core.chain.anchor.id != old:
            self._on_change(change)
            if not core.retrains:  # it has told nobody yet; those below, others ask for
                core.network.announce(Kind.BLOCK, block)
            await self._slots.prune()

    async def retrain(self, block: Block) -> str:
        """Train a winner's lap over; return what came of it in a sentence. See `train_over`."""
        assert isinstance(block.proof, Trained)
        return await self.train_over(block.proof.winner.iteration)

    async def train_over(self, winner: Iteration, patience_s: float = PATIENT_S) -> str:
        """Train the lap of a certified message over; return what came of it in a sentence.

        Args:
            winner: the message.
            patience_s: as of `Trainer.reexecute`.

        Raises:
            InvalidBlock: the rule ``re-execution``: its map or weights are not what its samples give.
            ChainError: what is needed for it is not to be had any more.
            TrainingError: the trainer fails again and again.
        """
        core = self._core
        lap, own_map = await self._slot_sync.lap_of(winner)
        spec = spec_of(core.genesis, core.chain.tip.state, winner.task)
        if spec.noise is not None:
            lane = (winner.miner, winner.lane)
            lap = await self._slots.in_slots(self._noises.filled, spec, lap, *lane)
        for tries_left in reversed(range(_TRAINER_TRIES)):
            try:
                verdict = await core.trainer.reexecute(
                    spec, lap, winner.miner, winner.lane, own_map, patience_s
                )
                break
            except TrainingError:
                if not tries_left:
                    raise
        if not verdict.is_honest:
            raise InvalidBlock(
                RE_EXECUTION,
                f"{verdict.violations} of {verdict.compared} entries of its map are not what its samples give; honest "
                f"work looks so with a chance of {verdict.probability:.1g}.",
            )
        if verdict.weights_end != winner.weights_end:
            raise InvalidBlock(
                RE_EXECUTION, "its weights_end is not what its map makes of the slot's weights."
            )
        return (
            f"{len(lap)} gradients done over: {verdict.violations} of {verdict.compared} entries differ, weights_end "
            "is exact."
        )

    async def _take_queued(self) -> None:
        while True:
            row, peer = await self._queue.get()
            try:
                is_taken = await self.take_row([*row.values()], peer)
            except PeerFault as fault:
                is_taken = False
                self._core.network.charge(peer.account, fault.points, str(fault))
                self._miss_of_others(peer)
            finally:
                if row is self._found_row:
                    self._found_row = None
                for digest in row:
                    self._queued.pop(digest, None)
            is_waited_for = self._is_more or not self._core.is_current.is_set()
            if is_taken and is_waited_for and self._queue.empty():
                self._is_more = False
                self._on_missing(peer)

    async def _settle_anchors(self) -> None:
        # Again with each block that comes: a certificate may be here before the block that it names.
        while True:
            await self._is_anchor_due.wait()
            self._is_anchor_due.clear()
            newest = self._slots.newest[2]
            if newest is not None:
                certificate = newest.certificate
                await self.settle_anchor(certificate.anchor, certificate.anchor_height)

    def _is_new(self, block: Block, is_final: bool) -> bool:
        """Check a block that is not here; False: it is. In the chain's thread: it may have to look on the disk."""
        chain = self._core.chain
        if block.id in chain:
            return False
        chain.check(block, now_ms(), is_final=is_final)
        return True

    def _added(self, block: Block, is_final: bool) -> Change | None:
        """Take a block in; None: it is here by now, as final perhaps. In the chain's thread."""
        chain = self._core.chain
        return None if block.id in chain else chain.add(block, now_ms(), is_final=is_final)

    async def _judge(self, block: Block, winner: Iteration) -> None:
        """Train a block over; what comes of that is remembered if it is bad."""
        try:
            await self.train_over(winner, URGENT_S)
        except InvalidBlock as exc:
            await self._core.in_chain(self._core.chain.refuse, block, exc)
            if self.on_cheat is not None:
                self.on_cheat(winner)
            raise

    def _refused(self, block: Block, peer: PeerInfo | None, exc: InvalidBlock) -> None:
        _log.warning("%s Block %s refused: %s", self._core.name, block.id.hex(), exc)
        if exc.rule in _NOBODYS_FAULT or peer is None:
            return
        is_poisoned = exc.rule == RE_EXECUTION
        # Who is not in the committee passes a private task's block on without having been able to execute it again.
        may_know = not is_poisoned or self._is_open(block)
        self._core.alert(
            "gradient_poisoning" if is_poisoned else "invalid_block",
            f"block {block.id.hex()[:16]} of {block.header.miner.hex()[:16]}: {exc}",
            source=peer.account if may_know else block.header.miner,
            slot=block.header.slot,
            evidence=block.id,
        )
        if may_know:
            raise PeerFault(_BAD_POINTS, f"a block: {exc}")

    def _is_open(self, block: Block) -> bool:
        """Say whether everybody can execute a block's messages again."""
        core = self._core
        try:
            return spec_of(core.genesis, core.chain.tip.state, block.header.task).noise is None
        except UnknownTask:  # the tip is on another branch by now
            return False
