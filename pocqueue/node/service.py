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
import contextlib
import logging
import time
import uuid
from collections.abc import Coroutine
from enum import Enum
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from pocqueue.engine.base import EngineInfo
from pocqueue.errors import (
    DelegationError,
    EngineError,
    EngineUnavailable,
    ModelConflict,
    NodeStateError,
    OutboxError,
    PocqueueError,
)
from pocqueue.node.delegation_client import DelegationClient, RemoteModel
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.keys import SigningKey
from pocqueue.node.metrics import NodeMetrics
from pocqueue.node.node_round import NodeRound
from pocqueue.node.outbox import Counts, Letter, NewLetter, Outbox, Session
from pocqueue.node.postman import Postman
from pocqueue.node.runner import SessionRunner
from pocqueue.node.signing import sign_body
from pocqueue.node.spot_check import SpotCheck
from pocqueue.node.work import EngineWork, QueueWork, RemoteWork, Work
from pocqueue.poc.data import ProofBatch, ValidatedBatch, check_length
from pocqueue.poc.sender import validated_body
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.session_model import dimensions
from pocqueue.rounds.start import check_seq_len
from pocqueue.rounds.store import KEEP_ENDED_MS
from pocqueue.settings import DelegationSettings, NodeSettings, Settings

logger = logging.getLogger(__name__)

#: Beginning of the ids of sessions that hold one verdict.
VERDICTS = "verdict-"
PRUNE_EVERY_S = 3600.0
#: Seconds that a new search waits for the stop of the one before to arrive, which takes up a place.
STOP_S = 2.0
#: Before a postman that failed is sent out again.
AGAIN_S = 1.0
NOT_HERE = "Validation phase not supported in delegation mode"


class NodeState(Enum):
    """What the node does for the chain, in the words of WIRE.md."""

    IDLE = "IDLE"  #: it has a round and has not begun
    GENERATING = "GENERATING"
    VALIDATING = "VALIDATING"
    STOPPED = "STOPPED"  #: it has no round


class _Request(BaseModel):
    """What is kept of a search on disk, beside its cursor."""

    round: NodeRound
    gpu_count: int
    #: Unix time at which its window closes.
    deadline_s: float
    #: What a big node searches with.
    model: RemoteModel = RemoteModel()


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
        self._settings = settings
        self._delegation = delegation
        self._outbox = outbox
        self._work_kind = work_kind(delegation, node)
        self.engine = None
        if self._work_kind == "engine":
            self.engine = engine or EngineHost(settings)
        self._backend: Backend | None = None
        self._postman = Postman(outbox, on_delivered=self._delivered)
        self._stop = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None
        self._pruning: asyncio.Task[None] | None = None
        self._runners: list[SessionRunner] = []
        self._current: SessionRunner | None = None
        self._changing = asyncio.Lock()
        #: Set, and replaced, by a stop: for those that came before it and wait for the engine.
        self._stopped = asyncio.Event()
        self._error: str | None = None

    # Life

    async def start(self) -> None:
        """Load the engine in the background, send what waits, and go on with open searches."""
        if self.engine is not None:
            self.engine.start()
        self._sending = asyncio.create_task(self._send(), name="postman")
        self._pruning = asyncio.create_task(self._prune(), name="prune")
        for session in await asyncio.to_thread(self._outbox.open_sessions):
            await self._resume(session)

    async def close(self) -> None:
        """End this process's part; searches on big nodes and in the store go on."""
        self._stop.set()
        if self._pruning is not None:
            self._pruning.cancel()
        while self._runners:
            # Local work may take over meanwhile, with a runner of its own.
            runners, self._runners = self._runners, []
            await asyncio.gather(*(runner.close() for runner in runners))
        if self._sending is not None:
            await asyncio.wait([self._sending])
        if self.engine is not None:
            await self.engine.close()
        if self._backend is not None:
            self._backend.client.close()
        await asyncio.to_thread(self._outbox.close)

    # What the chain asks for

    async def init(self, node_round: NodeRound) -> None:
        """Take a round, without starting it. Another one that is searched is stopped."""
        async with self._changing:
            self._init(node_round)

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
                self._init(node_round)
            if self.round is None:
                raise NodeStateError("PoW is not running")
            if self._current is not None and self._current.is_searching:
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
                self._init(node_round)
            if self.round is None:
                raise NodeStateError("PoW is not running")
            if self._current is not None:
                self._current.stop()
            self.state = NodeState.VALIDATING

    async def validate(self, proof: ProofBatch) -> ValidatedBatch:
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
        check_length("dist", proof.dist, proof.nonces)
        config = node_round.poc_config()
        config.public_key = proof.public_key
        await self._usable(self.engine)
        computed = await self.engine.distances(config, proof.nonces)
        verdict = ValidatedBatch(
            public_key=proof.public_key,
            block_hash=node_round.block_hash,
            block_height=node_round.block_height,
            nonces=proof.nonces,
            dist=computed,
            node_id=proof.node_id,
            received_dist=proof.dist,
            r_target=node_round.r_target,
            fraud_threshold=node_round.fraud_threshold,
        )
        await self._post_verdict(node_round, verdict)
        return verdict

    async def stop(self) -> bool:
        """End the round; what was found is still sent. Return whether there was one."""
        # A model may take minutes to load, and a search that waits for it holds the lock.
        self._stopped.set()
        self._stopped = asyncio.Event()
        async with self._changing:
            had = self.round is not None
            if self._current is not None:
                self._current.stop()
            self.round = None
            self.state = NodeState.STOPPED
            return had

    async def status(self) -> dict[str, Any]:
        """Return how the node stands, for `GET /status`.

        Raises:
            OutboxError: see the class.
        """
        counts = await asyncio.to_thread(self._outbox.counts)
        runner = self._current
        lag = None
        if runner is not None and runner.work.origin == "delegation" and not runner.over:
            lag = time.monotonic() - runner.heard_at
        return {
            "status": self._status_word(),
            "is_model_initialized": self.round is not None,
            "delegation_mode": self._delegates(self.round)
            if runner is None
            else runner.work.origin == "delegation",
            "gpu_count": runner.work.gpu_count if runner else 0,
            "session_id": runner.work.session_id if runner else None,
            "block_hash": self.round.block_hash if self.round else None,
            "node_id": self.round.node_id if self.round else None,
            "total_batches": runner.batches if runner else 0,
            "total_nonces": runner.nonces if runner else 0,
            "poll_lag_seconds": None if lag is None else round(lag, 3),
            "sampled_nonces": runner.spot_check.sampled if runner and runner.spot_check else 0,
            "fraud_detected": runner is not None and runner.fraud is not None,
            "error": self._trouble(runner),
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
            self.metrics.letters.labels(name).set(getattr(counts, name))
        self.metrics.oldest.set(_age_s(counts.oldest_s))
        lags = [
            time.monotonic() - runner.heard_at
            for runner in self._runners
            if not runner.over and runner.work.origin == "delegation"
        ]
        self.metrics.poll_lag.set(max(lags, default=0.0))
        return self.metrics.render()

    # Helpers

    def _init(self, node_round: NodeRound) -> None:
        if self.round is not None and self.round.is_same_search(node_round):
            if self._current is None or not self._current.is_searching:
                # It may name another URL or big node than one that could not begin, or is over.
                self.round = node_round
            return
        if self._current is not None and not self._current.over:
            logger.info("%s another round begins; this one is stopped.", self._current.tag)
            self._current.stop()
        self._current = None
        self.round = node_round
        self.state = NodeState.IDLE
        self._error = None

    def _trouble(self, runner: SessionRunner | None) -> str | None:
        """Return what is wrong, in one sentence."""
        check = runner.spot_check if runner else None
        found = (
            runner.error if runner else None,
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
            await self._begin_locally(node_round, window_s, stopped)
            return
        try:
            await self._begin_remotely(node_round)
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
                    await self._begin_locally(node_round, window_s, stopped)
                except PocqueueError as local:
                    reason = f"{reason} Local work cannot take over: {local}"
                else:
                    self._error = reason
                    return
            raise DelegationError(reason, is_final=exc.is_final, status=exc.status) from exc

    async def _begin_remotely(self, node_round: NodeRound) -> None:
        client = self._client(node_round)
        for runner in self._runners:
            await runner.stop_arrived(STOP_S)
        try:
            started = await client.start(node_round)
        except BaseException:
            await client.close()
            raise
        work = RemoteWork(
            client, started.session_id, started.gpu_count, self._delegation.poll_seconds
        )
        logger.info(
            "DELEGATION session %s node %d: started on %s: %s",
            started.session_id,
            node_round.node_id,
            client.url,
            _one_line(started.message),
        )
        await self._open(work, node_round, self._delegation.window_seconds, started.model)

    async def _begin_locally(
        self, node_round: NodeRound, window_s: float, stopped: asyncio.Event
    ) -> None:
        work: Work
        if self._work_kind == "engine":
            assert self.engine is not None
            info = await self._unless_stopped(self._usable(self.engine), stopped)
            self._check_model(node_round, info)
            work = EngineWork(self.engine, node_round, time.time() + window_s)
        elif self._work_kind == "queue":
            backend = await asyncio.to_thread(self._open_backend)
            work = await asyncio.to_thread(
                QueueWork.start,
                backend,
                node_round,
                window_s=window_s,
                any_model=self._delegation.any_model,
            )
        else:
            raise NodeStateError(
                "This node neither delegates nor works itself: set DELEGATION_URL and "
                "DELEGATION_AUTH_TOKEN, or POCQUEUE_NODE_WORK=engine or queue"
            )
        await self._open(work, node_round, window_s, RemoteModel())

    async def _usable(self, engine: EngineHost) -> EngineInfo:
        """Wait for the engine.

        Raises:
            EngineUnavailable: it cannot be used.
        """
        try:
            return await engine.ready()
        except EngineError as exc:
            raise EngineUnavailable(str(exc)) from exc

    async def _unless_stopped(
        self, coming: Coroutine[Any, Any, EngineInfo], stopped: asyncio.Event
    ) -> EngineInfo:
        """Return what comes, unless a stop comes first.

        Raises:
            NodeStateError: it did.
        """
        ready = asyncio.ensure_future(coming)
        waiting = asyncio.ensure_future(stopped.wait())
        try:
            await asyncio.wait({ready, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                raise NodeStateError("The round was stopped before the engine was loaded")
            return ready.result()
        finally:
            ready.cancel()
            waiting.cancel()

    def _check_model(self, node_round: NodeRound, info: EngineInfo) -> None:
        check_seq_len(node_round.seq_len, info)
        wish = node_round.wish
        if wish.fits(info):
            return
        shape = ", ".join(f"{name} {value}" for name, value in dimensions(info).items())
        conflict = f"Model conflict: params ask for {wish}; deployed here is {info.model} ({shape})"
        if not self._delegation.any_model:
            raise ModelConflict(
                f"{conflict}. Proofs of another model would be worth nothing: ask for the deployed one, or "
                "set POCQUEUE_MODEL (DELEGATION_ANY_MODEL=1 goes on with a warning)."
            )
        logger.warning("LOCAL node %d: %s.", node_round.node_id, conflict)

    async def _open(
        self, work: Work, node_round: NodeRound, window_s: float, model: RemoteModel
    ) -> None:
        request = _Request(
            round=node_round,
            gpu_count=work.gpu_count,
            deadline_s=time.time() + window_s,
            model=model,
        )
        try:
            await asyncio.to_thread(self._note, work, request)
            self._current = self._run(work, request)
        except BaseException as exc:
            # Nobody would read what it finds; unless that is another round's session.
            if not isinstance(exc, DelegationError):
                with contextlib.suppress(PocqueueError):
                    await work.stop()
            await work.close()
            raise

    def _note(self, work: Work, request: _Request) -> None:
        session_id = work.session_id
        if session_id.startswith(VERDICTS) or self._outbox.session(session_id) is not None:
            # Two rounds would share its cursor and its letters.
            raise DelegationError(
                f"The big node answers with session {session_id[:64]}, which is another one. "
                "Check DELEGATION_URL.",
                is_final=True,
            )
        self._outbox.open_session(
            session_id, work.origin, url=request.round.url, request=request.model_dump_json()
        )

    def _run(self, work: Work, request: _Request) -> SessionRunner:
        spot_check = None
        if work.origin == "delegation" and self.engine is not None:
            spot_check = SpotCheck(
                self.engine,
                request.round,
                request.model,
                self._outbox,
                work.session_id,
                self.metrics,
                any_model=self._delegation.any_model,
            )
        runner = SessionRunner(
            work,
            request.round,
            outbox=self._outbox,
            key=self.key,
            postman=self._postman,
            metrics=self.metrics,
            spot_check=spot_check,
            # As long as a big node keeps what it found.
            give_up_s=request.deadline_s + KEEP_ENDED_MS / 1000,
            on_lost=lambda lost: self._after_loss(lost, request.deadline_s),
        )
        self._runners = [other for other in self._runners if not other.is_done]
        self._runners.append(runner)
        runner.start()
        return runner

    async def _resume(self, session: Session) -> None:
        """Go on with a search that an earlier run of this program left open."""
        if session.session_id.startswith(VERDICTS):
            await asyncio.to_thread(self._outbox.close_session, session.session_id)
            return
        kept_until = session.created_s + KEEP_ENDED_MS / 1000
        try:
            request = _Request.model_validate_json(session.request)
            kept_until = request.deadline_s + KEEP_ENDED_MS / 1000
            work = await self._find_work(session, request)
        except (PocqueueError, ValidationError) as exc:
            reason = exc if isinstance(exc, PocqueueError) else "it cannot be read"
            if isinstance(exc, PocqueueError) and time.time() < kept_until:
                # A setting that is mended brings it back.
                logger.error(
                    "Session %s cannot go on until the next start: %s", session.session_id, reason
                )
                return
            logger.error("Session %s cannot go on and is closed: %s", session.session_id, reason)
            await asyncio.to_thread(self._outbox.close_session, session.session_id)
            return
        runner = self._run(work, request)
        logger.info("%s goes on after a restart.", runner.tag)
        if time.time() < request.deadline_s:
            if self._current is not None:
                # One round at a time; the stop of the one before may not have arrived.
                self._current.stop()
            self.round, self._current = request.round, runner
            self.state = NodeState.GENERATING

    async def _find_work(self, session: Session, request: _Request) -> Work:
        if session.origin == "delegation":
            return RemoteWork(
                self._client(request.round),
                session.session_id,
                request.gpu_count,
                self._delegation.poll_seconds,
            )
        if session.origin == "queue":
            backend = await asyncio.to_thread(self._open_backend)
            return QueueWork(backend, session.session_id, request.gpu_count)
        if self.engine is None:
            raise EngineError("it was searched by an engine, and this node has none any more")
        return EngineWork(self.engine, request.round, request.deadline_s, session.session_id)

    def _client(self, node_round: NodeRound) -> DelegationClient:
        url, token = node_round.delegation_url, node_round.delegation_auth_token
        if not url or not token:
            ours = self._delegation
            if ours.url is None or ours.auth_token is None:
                raise NodeStateError(
                    "DELEGATION_URL and DELEGATION_AUTH_TOKEN are not set any more"
                )
            url, token = ours.url, ours.auth_token.get_secret_value()
        return DelegationClient(url, token, ca=self._delegation.tls_ca)

    def _open_backend(self) -> Backend:
        if self._backend is None:
            self._backend = Backend.open(self._settings, start=True, check=False)
        return self._backend

    @property
    def _may_take_over(self) -> bool:
        return self._delegation.fallback == "local" and self._work_kind != "none"

    async def _after_loss(self, runner: SessionRunner, deadline_s: float) -> None:
        """Let local work take over the rest of the round from a big node, where it can and may."""
        stopped = self._stopped
        if runner.work.origin != "delegation" or runner is not self._current:
            return
        async with self._changing:
            if runner is not self._current or self.state is not NodeState.GENERATING:
                return
            reason = f"The big node's session ended early: {runner.error}"
            if runner.fraud is not None:
                reason = f"The big node's session was fraud: {runner.fraud}"
            self._error = reason
            left_s = deadline_s - time.time()
            if not self._may_take_over or left_s <= 0:
                return
            try:
                await self._begin_locally(runner.round, left_s, stopped)
            except PocqueueError as exc:
                logger.error("LOCAL node %d cannot take over: %s", runner.round.node_id, exc)
                self._error = f"{reason}. Local work cannot take over: {exc}"
                return
        logger.warning("LOCAL node %d: local work takes over.", runner.round.node_id)

    async def _send(self) -> None:
        """Keep a postman on its way."""
        while not self._stop.is_set():
            try:
                await self._postman.run(self._stop)
            except Exception:
                logger.exception("The sending of signed batches failed and begins again.")
                await asyncio.sleep(AGAIN_S)

    def _delivered(self, _letter: Letter, latency_s: float) -> None:
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

    async def _post_verdict(self, node_round: NodeRound, verdict: ValidatedBatch) -> None:
        body = sign_body(validated_body(verdict), self.key)
        self.metrics.signed.inc()
        letter = NewLetter(
            position=uuid.uuid4().hex,
            kind="validated",
            url=node_round.url,
            body=body,
            nonces=len(verdict),
        )
        # A session with no search of its own; it has no pages, and so its cursor stays.
        session_id = f"{VERDICTS}{uuid.uuid4()}"
        await asyncio.to_thread(self._keep_verdict, session_id, letter)
        self._postman.notify()

    def _keep_verdict(self, session_id: str, letter: NewLetter) -> None:
        self._outbox.open_session(session_id, "engine", url=letter.url, request="{}")
        self._outbox.accept(session_id, "", "", [letter])
        self._outbox.close_session(session_id)


def work_kind(
    delegation: DelegationSettings, node: NodeSettings
) -> Literal["engine", "queue", "none"]:
    """Return what a node works with itself."""
    if node.work == "auto":
        return "none" if delegation.is_delegating else "engine"
    return node.work


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:500])


def _age_s(since_s: float | None) -> float:
    return 0.0 if since_s is None else max(0.0, time.time() - since_s)
