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
import uuid
from enum import Enum
from typing import Any

from prometheus_client import generate_latest

from pocqueue.errors import DelegationError, NodeStateError, PocqueueError
from pocqueue.node.dispatcher import Dispatcher
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.follower import Follower
from pocqueue.node.keys import SigningKey
from pocqueue.node.messages import NewMessage, Session
from pocqueue.node.metrics import NodeMetrics
from pocqueue.node.mlnode.compute import Computer
from pocqueue.node.mlnode.jobs import Jobs
from pocqueue.node.outbox import Outbox
from pocqueue.node.round import NodeRound
from pocqueue.node.searches import NO_SEARCH, Searches, local_work
from pocqueue.poc.proofs import ReceivedBatch, Verdict, check_length
from pocqueue.settings import DelegationSettings, NodeSettings, Settings

logger = logging.getLogger(__name__)


class NodeState(Enum):
    """What the node does for the chain, in the words of docs/wire.md."""

    IDLE = "IDLE"  #: it has a round and has not begun
    GENERATING = "GENERATING"
    VALIDATING = "VALIDATING"
    STOPPED = "STOPPED"  #: it has no round


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
        self.metrics = NodeMetrics()
        self.key = key
        self.state = NodeState.STOPPED
        self.round: NodeRound | None = None
        self._delegation = delegation
        local = local_work(delegation, node)
        self.engine = (engine or EngineHost(settings)) if local == "engine" else None
        self._outgoing = Dispatcher(outbox, key, self.metrics)
        self._searches = Searches(
            settings, delegation, local, self.engine, self._outgoing, on_lost=self._after_loss
        )
        self.jobs = Jobs(self._outgoing, Computer(self._searches))
        #: Of the round at hand, or of the one that was stopped last.
        self._current: Follower | None = None
        self._changing = asyncio.Lock()
        #: Set, and replaced, by a stop: for requests that came before it and wait for the engine.
        self._stopped = asyncio.Event()
        self._error: str | None = None

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
            if self._has_had_its_window(wanted):
                logger.info("Node %d: this round has had its window.", wanted.node_id)
            elif self._current is None or not self._current.is_searching:
                self._error = None
                try:
                    await self._begin(wanted, window_s or self._delegation.window_seconds, stopped)
                except PocqueueError as exc:
                    self._error = str(exc)
                    raise
            self.state = NodeState.GENERATING

    async def validate_phase(self, node_round: NodeRound | None = None) -> None:
        """Stop searching and check proofs of others.

        Raises:
            NodeStateError: there is no round, or nothing to check with.
        """
        async with self._changing:
            self._own_engine()
            await self._take(node_round)
            await self._stop_search()
            self.state = NodeState.VALIDATING

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
        engine, claimed = self._own_engine(), proof.proofs
        # The nonces of the node whose proof it is, in the block of the round.
        whose = {"public_key": proof.public_key, "node_id": proof.node_id}
        search = (await self._take()).model_copy(update=whose)
        check_length(search.proof.field, claimed.values, claimed.nonces, search.proof.noun)
        verdict = search.proof.judge(claimed, await engine.values(search, claimed.nonces))
        body = search.proof.verdict_body(search, verdict)
        message = self._outgoing.message(
            *(uuid.uuid4().hex, "validated", search.url, body, claimed.nonces),
            is_signed=search.proof.is_signed,
        )
        await asyncio.to_thread(self._keep_verdict, message)
        self._outgoing.notify()
        return verdict

    async def stop(self) -> bool:
        """End the round; what was found is still sent. Return whether there was one."""
        # A search that waits for the model, which may take minutes to load, holds the lock.
        self._stopped.set()
        self._stopped = asyncio.Event()
        async with self._changing:
            had = self.round is not None
            await self._stop_search()
            self.round = None
            self.state = NodeState.STOPPED
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
    def current(self) -> Follower | None:
        """The search of the round at hand, or of the one that was stopped last."""
        return self._current

    @property
    def is_at_work(self) -> bool:
        """Whether there is a round, or a request for given nonces."""
        return self.round is not None or self.jobs.queue.num_open > 0

    async def status(self) -> dict[str, Any]:
        """Return how the node stands, for `GET /status`.

        Raises:
            OutboxError: see the class.
        """
        counts = await asyncio.to_thread(self._outgoing.outbox.counts)
        cheats = await asyncio.to_thread(self._searches.trust.read)
        found: dict[str, Any] = {
            "status": self._status_word(),
            "is_model_initialized": self.round is not None,
            "delegation_mode": self._delegates,
            "gpu_count": 0,
            "block_hash": self.round.block_hash if self.round else None,
            "node_id": self.round.node_id if self.round else None,
            "error": self._trouble() or counts.last_error,
            "signer": self.key.public_hex,
            "outbox": counts.model_dump(),
            "distrusted": [cheat.url for cheat in cheats],
        }
        if (follower := self._current) is not None:
            lag_s = follower.lag_s
            found |= {
                "delegation_mode": follower.is_remote,
                "gpu_count": follower.source.gpu_count,
                "session_id": follower.source.session_id,
                "total_batches": follower.batches,
                "total_nonces": follower.nonces,
                "poll_lag_seconds": None if lag_s is None else round(lag_s, 3),
                "sampled_nonces": follower.spot_check.sampled if follower.spot_check else 0,
                "fraud_detected": follower.fraud is not None,
            }
        return found

    @property
    def unhealthy(self) -> str | None:
        """Why the node cannot work; None if it can."""
        # A node that delegates works without an engine; its status says what is missing.
        if self.engine is None or self._delegation.is_delegating:
            return None
        return self.engine.error

    async def render_metrics(self) -> bytes:
        """Return what `/metrics` answers: the text format of Prometheus.

        Raises:
            OutboxError: see the class.
        """
        counts = await asyncio.to_thread(self._outgoing.outbox.counts)
        for name in ("waiting", "refused", "held"):
            self.metrics.messages.labels(name).set(getattr(counts, name))
        self.metrics.oldest.set(counts.oldest_seconds)
        lags = [follower.lag_s or 0.0 for follower in self._searches.followers]
        self.metrics.poll_lag.set(max(lags, default=0.0))
        return generate_latest(self.metrics.registry)

    # Helpers

    def _keep_verdict(self, message: NewMessage) -> None:
        # A session with no search of its own; it has no pages, and so its cursor stays.
        outbox, session_id = self._outgoing.outbox, f"verdict-{uuid.uuid4()}"
        outbox.open_session(session_id, "engine", NO_SEARCH)
        outbox.accept(session_id, "", "", [message])
        outbox.close_session(session_id)

    def _own_engine(self) -> EngineHost:
        """Return what proofs are recomputed with.

        Raises:
            NodeStateError: there is none.
        """
        if self.engine is not None:
            return self.engine
        if self._delegates:
            raise NodeStateError("Validation phase not supported in delegation mode")
        raise NodeStateError(
            "Validation phase not supported without an engine of this node's own: set "
            "POCQUEUE_NODE_WORK=engine"
        )

    def _has_had_its_window(self, node_round: NodeRound) -> bool:
        """Say whether a round was searched until its end: again it would find the same."""
        current = self._current
        return (
            current is not None and current.is_finished and current.round.is_same_search(node_round)
        )

    async def _stop_search(self) -> None:
        if self._current is not None:
            await self._searches.stop(self._current)

    async def _resume(self, session: Session) -> None:
        follower = await self._searches.resume(session)
        if follower is None:
            return
        if follower.request.stopped or follower.request.left_s <= 0:
            return
        # One round at a time; the stop of the one before may not have arrived.
        await self._stop_search()
        self.round, self._current = follower.round, follower
        self.state = NodeState.GENERATING

    async def _take(self, node_round: NodeRound | None = None) -> NodeRound:
        """Take a round; None: keep the one at hand. Return the one that there is now."""
        current = self._current
        if node_round is None or (self.round is not None and self.round.is_same_search(node_round)):
            if node_round is not None and (current is None or not current.is_searching):
                # It may name another URL or big node than the request that failed or is over.
                self.round = node_round
            if self.round is None:
                raise NodeStateError("PoW is not running")
            return self.round
        if current is not None and not current.over:
            logger.info("%s another round begins; this one is stopped.", current.tag)
            await self._stop_search()
        self._current, self.round = None, node_round
        self.state, self._error = NodeState.IDLE, None
        return node_round

    def _trouble(self) -> str | None:
        """Return what is wrong, in one sentence."""
        follower = self._current
        check = follower.spot_check if follower else None
        return (
            (follower.error if follower else None)
            or self._error
            or (check.error if check else None)
            or (self.engine.error if self.engine else None)
        )

    def _status_word(self) -> str:
        over = self._current is None or self._current.over
        if self.state is NodeState.GENERATING and over:
            return NodeState.STOPPED.value
        if self.state in {NodeState.IDLE, NodeState.STOPPED} and self.engine is not None:
            if self.engine.is_loading:
                return "LOADING"
            if self.engine.error is not None and not self._delegation.is_delegating:
                return "NOT_LOADED"
        return self.state.value

    @property
    def _delegates(self) -> bool:
        has_own = self.round is not None and self.round.own_big_node is not None
        return has_own or self._delegation.is_delegating

    async def _begin(self, node_round: NodeRound, window_s: float, stopped: asyncio.Event) -> None:
        if not self._delegates:
            self._current = await self._searches.begin_locally(node_round, window_s, stopped)
            return
        try:
            self._current = await self._searches.begin_remotely(node_round)
        except DelegationError as exc:
            self.metrics.delegation_errors.inc()
            reason = f"Failed to start delegation session: {exc}"
            logger.error("DELEGATION node %d: %s", node_round.node_id, reason)
            if not await self._take_over(reason, node_round, window_s, stopped):
                raise DelegationError(
                    str(self._error), is_final=exc.is_final, status=exc.status
                ) from exc

    async def _after_loss(self, follower: Follower) -> None:
        """Let local work take over the rest of a round from a big node, if it can and may."""
        stopped = self._stopped
        if not follower.is_remote:
            return
        async with self._changing:
            if follower is not self._current or self.state is not NodeState.GENERATING:
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
        self._error = reason
        may = self._delegation.fallback == "local" and self._searches.local_work != "none"
        if not may or left_s <= 0:
            return False
        try:
            self._current = await self._searches.begin_locally(node_round, left_s, stopped)
        except PocqueueError as exc:
            logger.error("LOCAL node %d cannot take over: %s", node_round.node_id, exc)
            self._error = f"{reason.removesuffix('.')}. Local work cannot take over: {exc}"
            return False
        logger.warning("LOCAL node %d: local work takes over.", node_round.node_id)
        return True
