"""The small node: one round at a time for the chain, by delegation or by itself.

Promises:
- What was read is signed and on disk before anything else happens to it, and leaves the disk with the
  receiver's 200. Open searches go on after a restart of this process.
- A stop, or another round, ends the search at hand; what it found meanwhile is still sent.
- If the big node cannot be reached, or cheats, the reason is in the status, and local work takes over if
  the settings say so.
"""

from __future__ import annotations

import asyncio
import logging

from pocqueue.errors import DelegationError, NodeStateError, PocqueueError
from pocqueue.node.at_hand import AtHand, NodeState
from pocqueue.node.dispatcher import Dispatcher
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.follower import Follower
from pocqueue.node.keys import SigningKey
from pocqueue.node.messages import Session
from pocqueue.node.metrics import NodeMetrics
from pocqueue.node.mlnode.compute import Computer
from pocqueue.node.mlnode.jobs import Jobs
from pocqueue.node.outbox import Outbox
from pocqueue.node.report import Report
from pocqueue.node.round import NodeRound
from pocqueue.node.searches import Searches, local_work
from pocqueue.node.verdicts import Verdicts
from pocqueue.poc.proofs import ReceivedBatch, Verdict
from pocqueue.settings import DelegationSettings, NodeSettings, Settings

logger = logging.getLogger(__name__)


class NodeService:
    """The state of a small node, for coroutines of one event loop.

    Args:
        settings: engine, model and Redis of local work.
        delegation: the big node.
        node: what this one can do by itself.
        key: signs what is sent.
        outbox: on disk; closed with this.
        engine: its own, if it works with one; None: that of the settings.
    """

    def __init__(
        self,
        settings: Settings,
        delegation: DelegationSettings,
        node: NodeSettings,
        key: SigningKey,
        outbox: Outbox,
        engine: EngineHost | None = None,
    ) -> None:
        self.key = key
        self._delegation = delegation
        local = local_work(delegation, node)
        self.engine = (engine or EngineHost(settings)) if local == "engine" else None
        self._outgoing = Dispatcher(outbox, key, NodeMetrics())
        self._searches = Searches(
            settings, delegation, local, self.engine, self._outgoing, on_lost=self._after_loss
        )
        self.jobs = Jobs(self._outgoing, Computer(self._searches))
        self._at_hand = AtHand()
        self.report = Report(self._at_hand, self._searches, self._outgoing, self.engine)
        self._changing = asyncio.Lock()
        #: Set, and replaced, by a stop: for requests that came before it and wait for the engine.
        self._stopped = asyncio.Event()

    # Life

    async def start(self) -> None:
        """Load the engine in the background, send what waits, and go on with open searches and requests."""
        if self.engine is not None:
            self.engine.start()
        self._outgoing.start()
        for session in await asyncio.to_thread(self._outgoing.outbox.open_sessions):
            if not await self.jobs.resume(session):
                await self._resume(session)

    async def close(self) -> None:
        """End this process's part; searches on big nodes and in the store go on."""
        await self.jobs.close()
        await self._searches.close()
        await self._outgoing.close()
        if self.engine is not None:
            await self.engine.close()
        await asyncio.to_thread(self._outgoing.outbox.close)

    # What the chain asks for

    async def init(self, node_round: NodeRound) -> None:
        """Take a round, without starting it. Another one that is searched is stopped."""
        async with self._changing:
            await self._take(node_round)

    async def generate(
        self, node_round: NodeRound | None = None, window_s: float | None = None
    ) -> None:
        """Search the nonces of a round; None: of the one at hand.

        The same round again changes nothing.

        Args:
            node_round: what to search.
            window_s: seconds that a search by the node itself may take; None: as the settings say. A big node
                has a window of its own.

        Raises:
            NodeStateError: there is no round, or it was stopped meanwhile.
            DelegationError: the big node cannot be reached or refuses, and nothing else can be done.
            PocqueueError: local work cannot begin; says why.
        """
        stopped = self._stopped
        async with self._changing:
            wanted = await self._take(node_round)
            if self._at_hand.has_had_its_window(wanted):
                logger.info("Node %d: this round has had its window.", wanted.node_id)
            elif not self._at_hand.is_searching:
                self._at_hand.error = None
                try:
                    await self._begin(wanted, window_s or self._delegation.window_seconds, stopped)
                except PocqueueError as exc:
                    self._at_hand.error = str(exc)
                    raise
            self._at_hand.state = NodeState.GENERATING

    async def validate_phase(self, node_round: NodeRound | None = None) -> None:
        """Stop searching and check proofs of others.

        Raises:
            NodeStateError: there is no round, or nothing to check with.
        """
        async with self._changing:
            self._own_engine()
            await self._take(node_round)
            await self._stop_search()
            self._at_hand.state = NodeState.VALIDATING

    async def validate(self, proof: ReceivedBatch) -> Verdict:
        """Recompute somebody's proof; the signed verdict goes to the callback URL, and is on disk by now.

        The block is the round's whatever the proof says, so that one made for another block fails.

        Raises:
            NodeStateError: there is no round, or nothing to check with.
            EngineUnavailable: the engine cannot be used.
            EngineError: it failed on a batch.
            InvalidRound: there is not one value for each nonce, or the shape cannot be run.
            OutboxError: the verdict cannot be kept.
        """
        engine = self._own_engine()
        return await Verdicts(self._outgoing).judge(engine, await self._take(), proof)

    async def stop(self) -> bool:
        """End the round; what was found is still sent. Return whether there was one."""
        # A search that waits for the model, which may take minutes to load, holds the lock.
        self._stopped.set()
        self._stopped = asyncio.Event()
        async with self._changing:
            had = self.round is not None
            await self._stop_search()
            self._at_hand.round = None
            self._at_hand.state = NodeState.STOPPED
            return had

    async def stop_all(self) -> bool:
        """End the round and all requests for given nonces. Return whether there was any of these."""
        had_jobs = await self.jobs.stop()
        return await self.stop() or had_jobs

    async def hurry(self, url: str) -> None:
        """Try at once what waits for a URL: the batches of a round that begins come behind it.

        Raises:
            OutboxError: the disk is in trouble.
        """
        await asyncio.to_thread(self._outgoing.outbox.hurry, url)
        self._outgoing.notify()

    async def has_gpus(self) -> bool:
        """Say whether there is something to search with now, as far as is known."""
        return await self._searches.has_gpus()

    @property
    def round(self) -> NodeRound | None:
        """The round at hand."""
        return self._at_hand.round

    @property
    def current(self) -> Follower | None:
        """The search of the round at hand, or of the one that was stopped last."""
        return self._at_hand.search

    @property
    def is_at_work(self) -> bool:
        """Whether there is a round, or a request for given nonces."""
        return self.round is not None or self.jobs.queue.num_open > 0

    # Helpers

    def _own_engine(self) -> EngineHost:
        """Return what proofs are recomputed with.

        Raises:
            NodeStateError: there is none.
        """
        if self.engine is not None:
            return self.engine
        if self._searches.delegates(self.round):
            raise NodeStateError("Validation phase not supported in delegation mode")
        raise NodeStateError(
            "Validation phase not supported without an engine of this node's own: set "
            "POCQUEUE_NODE_WORK=engine"
        )

    async def _stop_search(self) -> None:
        if self.current is not None:
            await self._searches.stop(self.current)

    async def _resume(self, session: Session) -> None:
        follower = await self._searches.resume(session)
        if follower is None or follower.request.stopped or follower.request.left_s <= 0:
            return
        # One round at a time; the stop of the one before may not have arrived.
        await self._stop_search()
        self._at_hand.round, self._at_hand.search = follower.round, follower
        self._at_hand.state = NodeState.GENERATING

    async def _take(self, node_round: NodeRound | None = None) -> NodeRound:
        """Take a round; None: keep the one at hand. Return the one that there is now."""
        at_hand = self._at_hand
        ours, search = at_hand.round, at_hand.search
        if node_round is None or (ours is not None and ours.is_same_search(node_round)):
            if node_round is not None and not at_hand.is_searching:
                # It may name another URL or big node than the request that failed or is over.
                ours = at_hand.round = node_round
            if ours is None:
                raise NodeStateError("PoW is not running")
            return ours
        if search is not None and not search.over:
            logger.info("%s another round begins; this one is stopped.", search.tag)
            await self._stop_search()
        at_hand.search, at_hand.round = None, node_round
        at_hand.state, at_hand.error = NodeState.IDLE, None
        return node_round

    async def _begin(self, node_round: NodeRound, window_s: float, stopped: asyncio.Event) -> None:
        if not self._searches.delegates(node_round):
            self._at_hand.search = await self._searches.begin_locally(node_round, window_s, stopped)
            return
        try:
            self._at_hand.search = await self._searches.begin_remotely(node_round)
        except DelegationError as exc:
            self._outgoing.metrics.delegation_errors.inc()
            reason = f"Failed to start delegation session: {exc}"
            logger.error("DELEGATION node %d: %s", node_round.node_id, reason)
            if not await self._take_over(reason, node_round, window_s, stopped):
                raise DelegationError(
                    str(self._at_hand.error), is_final=exc.is_final, status=exc.status
                ) from exc

    async def _after_loss(self, follower: Follower) -> None:
        """Let local work take over the rest of a round from a big node, if it can and may."""
        stopped = self._stopped
        if not follower.is_remote:
            return
        async with self._changing:
            is_at_it = self._at_hand.state is NodeState.GENERATING
            if follower is not self.current or not is_at_it:
                return
            reason = f"The big node's session ended early: {follower.error}"
            if follower.fraud is not None:
                reason = f"The big node's session was fraud: {follower.fraud}"
            await self._take_over(reason, follower.round, follower.request.left_s, stopped)

    async def _take_over(
        self,
        reason: str,
        node_round: NodeRound,
        left_s: float,
        stopped: asyncio.Event,
    ) -> bool:
        """Let local work go on with a round, if it can and may; the status says why, and why not."""
        self._at_hand.error = reason
        may = self._delegation.fallback == "local" and self._searches.local_work != "none"
        if not may or left_s <= 0:
            return False
        try:
            self._at_hand.search = await self._searches.begin_locally(node_round, left_s, stopped)
        except PocqueueError as exc:
            logger.error("LOCAL node %d cannot take over: %s", node_round.node_id, exc)
            self._at_hand.error = f"{reason.removesuffix('.')}. Local work cannot take over: {exc}"
            return False
        logger.warning("LOCAL node %d: local work takes over.", node_round.node_id)
        return True
