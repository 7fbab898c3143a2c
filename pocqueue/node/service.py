"""The small node: one round at a time for the chain, by delegation or by itself.

Promises:
- What was read is signed and on disk before anything else happens to it, and leaves the disk with the
  receiver's 200. Open searches go on after a restart of this process.
- A stop, or another round, ends the search at hand; what it found meanwhile is still sent.
- Where the big node cannot be reached, or cheats, the reason is in the status, and local work takes
  over if the settings say so.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from enum import Enum
from typing import Any

from pocqueue.errors import (
    DelegationError,
    NodeStateError,
    OutboxError,
    PocqueueError,
)
from pocqueue.node.dispatcher import Dispatcher
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.follower import Follower
from pocqueue.node.keys import SigningKey
from pocqueue.node.metrics import NodeMetrics
from pocqueue.node.outbox import Counts, NewMessage, Outbox, Session
from pocqueue.node.round import NodeRound
from pocqueue.node.searches import VERDICTS, Search, Searches, work_kind
from pocqueue.node.signing import sign_body
from pocqueue.poc.data import ProofBatch
from pocqueue.poc.proofs import Proofs, Verdict, check_length
from pocqueue.settings import DelegationSettings, NodeSettings, Settings

logger = logging.getLogger(__name__)

PRUNE_EVERY_S = 3600.0
#: Before a dispatcher that failed begins again.
AGAIN_S = 1.0
NOT_HERE = "Validation phase not supported in delegation mode"


class NodeState(Enum):
    """What the node does for the chain, in the words of WIRE.md."""

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
        engine: its own, where it works with one; None: that of the settings.
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
        self._outbox = outbox
        kind = work_kind(delegation, node)
        self.engine = (engine or EngineHost(settings)) if kind == "engine" else None
        self._dispatcher = Dispatcher(outbox, on_delivered=self._delivered)
        self._stop = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None
        self._pruning: asyncio.Task[None] | None = None
        self._searches = Searches(
            settings,
            delegation,
            kind,
            self.engine,
            outbox=outbox,
            key=key,
            dispatcher=self._dispatcher,
            metrics=self.metrics,
            on_lost=self._after_loss,
        )
        #: Of the round at hand, or of the one that was stopped last.
        self._search: Search | None = None
        self._changing = asyncio.Lock()
        #: Set, and replaced, by a stop: for those that came before it and wait for the engine.
        self._stopped = asyncio.Event()
        self._error: str | None = None

    # Life

    async def start(self) -> None:
        """Load the engine in the background, send what waits, and go on with open searches."""
        if self.engine is not None:
            self.engine.start()
        self._sending = asyncio.create_task(self._send(), name="dispatcher")
        self._pruning = asyncio.create_task(self._prune(), name="prune")
        for session in await asyncio.to_thread(self._outbox.open_sessions):
            await self._resume(session)

    async def close(self) -> None:
        """End this process's part; searches on big nodes and in the store go on."""
        self._stop.set()
        if self._pruning is not None:
            self._pruning.cancel()
        await self._searches.close()
        if self._sending is not None:
            await asyncio.wait([self._sending])
        if self.engine is not None:
            await self.engine.close()
        await asyncio.to_thread(self._outbox.close)

    # What the chain asks for

    async def init(self, node_round: NodeRound) -> None:
        """Take a round, without starting it. Another one that is searched is stopped."""
        async with self._changing:
            await self._init(node_round)

    async def generate(self, node_round: NodeRound | None = None) -> None:
        """Search the nonces of a round; None: of the one at hand.

        The same round again changes nothing.

        Raises:
            NodeStateError: there is no round, or it was stopped meanwhile.
            DelegationError: the big node cannot be reached or refuses, and nothing else can be done.
            PocqueueError: local work cannot begin; says why.
        """
        stopped = self._stopped
        async with self._changing:
            if node_round is not None:
                await self._init(node_round)
            if self.round is None:
                raise NodeStateError("PoW is not running")
            if self._current is not None and self._current.is_searching:
                self.state = NodeState.GENERATING
                return
            if self._has_had_its_window():
                logger.info("Node %d: this round has had its window.", self.round.node_id)
                self.state = NodeState.GENERATING
                return
            self._error = None
            try:
                await self._begin(self.round, stopped)
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
            if self.engine is None:
                raise NodeStateError(self._cannot_validate())
            if node_round is not None:
                await self._init(node_round)
            if self.round is None:
                raise NodeStateError("PoW is not running")
            await self._stop_search()
            self.state = NodeState.VALIDATING

    async def validate(self, proof: ProofBatch) -> Verdict:
        """Recompute somebody's proof for the round's block; the signed verdict goes to the callback URL.

        Returns once the verdict is on disk. The block is the round's whatever the proof says, so that
        one made for another block fails.

        Raises:
            NodeStateError: there is no round, or nothing to check with.
            EngineUnavailable: the engine cannot be used.
            EngineError: it failed on a batch.
            InvalidRound: there is not one distance for each nonce, or the shape cannot be run.
        """
        if self.engine is None:
            raise NodeStateError(self._cannot_validate())
        node_round = self.round
        if node_round is None:
            raise NodeStateError("PoW is not running")
        claimed = Proofs(proof.nonces, proof.dist)
        # The nonces of whoever is judged, in the block of the round.
        search = node_round.model_copy(
            update={"public_key": proof.public_key, "node_id": proof.node_id}
        )
        check_length(search.proof.field, claimed.values, claimed.nonces, search.proof.noun)
        verdict = search.proof.judge(claimed, await self.engine.values(search, proof.nonces))
        await self._post_verdict(node_round.url, search, verdict)
        return verdict

    async def stop(self) -> bool:
        """End the round; what was found is still sent. Return whether there was one."""
        # A model may take minutes to load, and a search that waits for it holds the lock.
        self._stopped.set()
        self._stopped = asyncio.Event()
        async with self._changing:
            had = self.round is not None
            await self._stop_search()
            self.round = None
            self.state = NodeState.STOPPED
            return had

    async def status(self) -> dict[str, Any]:
        """Return how the node stands, for `GET /status`.

        Raises:
            OutboxError: see the class.
        """
        counts = await asyncio.to_thread(self._outbox.counts)
        follower = self._current
        lag = None
        if follower is not None and follower.source.origin == "delegation" and not follower.over:
            lag = time.monotonic() - follower.heard_at
        return {
            "status": self._status_word(),
            "is_model_initialized": self.round is not None,
            "delegation_mode": self._delegates(self.round)
            if follower is None
            else follower.source.origin == "delegation",
            "gpu_count": follower.source.gpu_count if follower else 0,
            "session_id": follower.source.session_id if follower else None,
            "block_hash": self.round.block_hash if self.round else None,
            "node_id": self.round.node_id if self.round else None,
            "total_batches": follower.batches if follower else 0,
            "total_nonces": follower.nonces if follower else 0,
            "poll_lag_seconds": None if lag is None else round(lag, 3),
            "sampled_nonces": follower.spot_check.sampled
            if follower and follower.spot_check
            else 0,
            "fraud_detected": follower is not None and follower.fraud is not None,
            "error": self._trouble(follower),
            "signer": self.key.public_hex,
            "outbox": {
                "waiting": counts.waiting,
                "refused": counts.refused,
                "held": counts.held,
                "oldest_seconds": round(_age_s(counts.oldest_s), 3),
            },
        }

    @property
    def unhealthy(self) -> str | None:
        """Why the node cannot work; None where it can."""
        # One that delegates can do without: its status says what is missing.
        if self.engine is None or self.engine.error is None or self._delegation.is_delegating:
            return None
        return f"The engine of this node cannot be used: {self.engine.error}"

    async def render_metrics(self) -> tuple[bytes, str]:
        """Return what `/metrics` answers.

        Raises:
            OutboxError: see the class.
        """
        counts: Counts = await asyncio.to_thread(self._outbox.counts)
        for name in ("waiting", "refused", "held"):
            self.metrics.messages.labels(name).set(getattr(counts, name))
        self.metrics.oldest.set(_age_s(counts.oldest_s))
        lags = [
            time.monotonic() - follower.heard_at
            for follower in self._searches.followers
            if not follower.over and follower.source.origin == "delegation"
        ]
        self.metrics.poll_lag.set(max(lags, default=0.0))
        return self.metrics.render()

    # Helpers

    @property
    def _current(self) -> Follower | None:
        return None if self._search is None else self._search.follower

    def _has_had_its_window(self) -> bool:
        """Say whether the round at hand was searched until its end: again it would find the same."""
        search = self._search
        return (
            search is not None
            and self.round is not None
            and search.request.round.is_same_search(self.round)
            and not search.follower.lost
            and search.follower.fraud is None
            and time.time() >= search.request.deadline_s
        )

    async def _stop_search(self) -> None:
        if self._search is not None:
            await self._searches.stop(self._search)

    async def _resume(self, session: Session) -> None:
        search = await self._searches.resume(session)
        if search is None or search.request.stopped or time.time() >= search.request.deadline_s:
            return
        # One round at a time; the stop of the one before may not have arrived.
        await self._stop_search()
        self.round, self._search = search.request.round, search
        self.state = NodeState.GENERATING

    async def _init(self, node_round: NodeRound) -> None:
        if self.round is not None and self.round.is_same_search(node_round):
            if self._current is None or not self._current.is_searching:
                # It may name another URL or big node than one that could not begin, or is over.
                self.round = node_round
            return
        if self._current is not None and not self._current.over:
            logger.info("%s another round begins; this one is stopped.", self._current.tag)
            await self._stop_search()
        self._search = None
        self.round = node_round
        self.state = NodeState.IDLE
        self._error = None

    def _trouble(self, follower: Follower | None) -> str | None:
        """Return what is wrong, in one sentence."""
        check = follower.spot_check if follower else None
        found = (
            follower.error if follower else None,
            self._error,
            check.error if check else None,
            self.engine.error if self.engine else None,
        )
        return next((error for error in found if error is not None), None)

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

    def _delegates(self, node_round: NodeRound | None) -> bool:
        if (
            node_round is not None
            and node_round.delegation_url
            and node_round.delegation_auth_token
        ):
            return True
        return self._delegation.is_delegating

    def _cannot_validate(self) -> str:
        if self._delegates(self.round):
            return NOT_HERE
        return (
            "Validation phase not supported without an engine of this node's own: set "
            "POCQUEUE_NODE_WORK=engine"
        )

    async def _begin(self, node_round: NodeRound, stopped: asyncio.Event) -> None:
        window_s = self._delegation.window_seconds
        if not self._delegates(node_round):
            self._search = await self._searches.begin_locally(node_round, window_s, stopped)
            return
        try:
            self._search = await self._searches.begin_remotely(node_round)
        except DelegationError as exc:
            logger.error(
                "DELEGATION node %d: Failed to start delegation session: %s",
                node_round.node_id,
                exc,
            )
            self.metrics.delegation_errors.inc()
            reason = f"Failed to start delegation session: {exc}"
            if self._may_take_over:
                logger.warning("DELEGATION node %d: local work takes over.", node_round.node_id)
                try:
                    self._search = await self._searches.begin_locally(node_round, window_s, stopped)
                except PocqueueError as local:
                    reason = f"{reason} Local work cannot take over: {local}"
                else:
                    self._error = reason
                    return
            raise DelegationError(reason, is_final=exc.is_final, status=exc.status) from exc

    @property
    def _may_take_over(self) -> bool:
        return self._delegation.fallback == "local" and self._searches.kind != "none"

    async def _after_loss(self, search: Search) -> None:
        """Let local work take over the rest of the round from a big node, where it can and may."""
        stopped, follower = self._stopped, search.follower
        if follower.source.origin != "delegation" or follower is not self._current:
            return
        async with self._changing:
            if follower is not self._current or self.state is not NodeState.GENERATING:
                return
            reason = f"The big node's session ended early: {follower.error}"
            if follower.fraud is not None:
                reason = f"The big node's session was fraud: {follower.fraud}"
            self._error = reason
            left_s = search.request.deadline_s - time.time()
            if not self._may_take_over or left_s <= 0:
                return
            try:
                # After fraud nobody knows what of it was sent; receivers ignore what comes twice.
                seen = follower.seen if follower.fraud is None else ()
                self._search = await self._searches.begin_locally(
                    follower.round, left_s, stopped, seen
                )
            except PocqueueError as exc:
                logger.error("LOCAL node %d cannot take over: %s", follower.round.node_id, exc)
                self._error = f"{reason}. Local work cannot take over: {exc}"
                return
        logger.warning("LOCAL node %d: local work takes over.", follower.round.node_id)

    async def _send(self) -> None:
        """Keep the dispatcher running."""
        while not self._stop.is_set():
            try:
                await self._dispatcher.run(self._stop)
            except Exception:
                logger.exception("The sending of signed batches failed and begins again.")
                await asyncio.sleep(AGAIN_S)

    def _delivered(self, latency_s: float) -> None:
        self.metrics.delivered.inc()
        self.metrics.delivery.observe(latency_s)

    async def _prune(self) -> None:
        """Forget, once an hour, the sessions that need no remembering."""
        while True:
            try:
                await asyncio.to_thread(self._outbox.prune)
            except OutboxError as exc:
                logger.error("%s", exc)
            await asyncio.sleep(PRUNE_EVERY_S)

    async def _post_verdict(self, url: str, search: NodeRound, verdict: Verdict) -> None:
        body = sign_body(search.proof.verdict_body(search, verdict), self.key)
        self.metrics.signed.inc()
        message = NewMessage(
            position=uuid.uuid4().hex,
            kind="validated",
            url=url,
            body=body,
            nonces=len(verdict.proofs),
        )
        # A session with no search of its own; it has no pages, and so its cursor stays.
        session_id = f"{VERDICTS}{uuid.uuid4()}"
        await asyncio.to_thread(self._keep_verdict, session_id, message)
        self._dispatcher.notify()

    def _keep_verdict(self, session_id: str, message: NewMessage) -> None:
        self._outbox.open_session(session_id, "engine", request="{}")
        self._outbox.accept(session_id, "", "", [message])
        self._outbox.close_session(session_id)


def _age_s(since_s: float | None) -> float:
    return 0.0 if since_s is None else max(0.0, time.time() - since_s)
