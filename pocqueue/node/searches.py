"""The searches of a small node: begins them at a big node or here, and goes on with them after a restart.

A search is on disk (`outbox.py`) before its pages are read: what it takes to go on with it, and, once the
chain has stopped it, that it is to be stopped. Each has a `Follower` of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from pydantic import ValidationError

from pocqueue.delegation.client import DelegationClient, RemoteModel
from pocqueue.engine.base import EngineInfo
from pocqueue.errors import (
    DelegationError,
    EngineError,
    ModelConflict,
    NodeStateError,
    OutboxError,
    PocqueueError,
)
from pocqueue.node.dispatcher import Dispatcher
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.follower import Follower
from pocqueue.node.messages import Session
from pocqueue.node.page_check import first_unsearched
from pocqueue.node.round import NodeRound, SearchRequest
from pocqueue.node.sources import EngineSource, QueueSource, RemoteSource, Source
from pocqueue.node.spot_check import SpotCheck, other_model
from pocqueue.node.trust import TRUST_NAME, TrustFile
from pocqueue.poc.scheme import ProofSearch
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.pool import Gpu
from pocqueue.rounds.start import ModelWish, check_seq_len, dimensions
from pocqueue.settings import DelegationSettings, NodeSettings, Settings

logger = logging.getLogger(__name__)

#: Seconds that a new search waits until the stop of the one before has reached the big node, which may
#: have room for one session only.
STOP_S = 2.0

#: In place of the search in a session that holds one verdict.
NO_SEARCH = "{}"
#: What a node searches with by itself.
LocalWork = Literal["engine", "queue", "none"]


@dataclass(eq=False)
class Searches:
    """All searches of a node that are not over."""

    settings: Settings  #: engine, model and Redis of local work
    delegation: DelegationSettings  #: the big node
    local_work: LocalWork  #: what the node searches with by itself
    engine: EngineHost | None  #: its engine, if it works with one
    outgoing: Dispatcher  #: where batches go
    #: Called with the follower of a search that its big node ended early or cheated in.
    on_lost: Callable[[Follower], Awaitable[None]]
    #: Of the searches that are not over, and of some that are.
    followers: list[Follower] = field(default_factory=list, init=False)
    _backend: Backend | None = field(default=None, init=False)
    #: Held while that is opened: several threads may want it.
    _opening: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        #: Big nodes that are not used any more.
        self.trust = TrustFile(self.settings.state_dir / TRUST_NAME)

    async def close(self) -> None:
        """Stop following; searches on big nodes and in the store go on."""
        while self.followers:
            # Local work may take over meanwhile, with a follower of its own.
            followers, self.followers = self.followers, []
            await asyncio.gather(*(follower.close() for follower in followers))
        if self._backend is not None:
            self._backend.close()

    async def stop(self, follower: Follower) -> None:
        """Have a search end, if need be after a restart; what it found is still read."""
        follower.stop()
        request = follower.request.model_copy(update={"stopped": True}).model_dump_json()
        try:
            await asyncio.to_thread(
                self.outgoing.outbox.set_request, follower.source.session_id, request
            )
        except OutboxError as exc:
            logger.error("%s the stop is not on disk: %s", follower.tag, exc)

    async def begin_remotely(self, node_round: NodeRound) -> Follower:
        """Start a session on the big node and follow it.

        Raises:
            DelegationError: it cannot be reached, refuses, has another engine than it has to have, or was
                caught cheating.
            OutboxError: the disk is in trouble.
        """
        client = self._client(node_round)
        await asyncio.gather(*(follower.stop_arrived(STOP_S) for follower in self.followers))
        try:
            await asyncio.to_thread(self.trust.check, client.url)
            # Before it is asked for: what the big node calls the end of its window must not be earlier.
            # Proofs that are signed are taken as long as the window lasts.
            stage_s = None if node_round.proof.is_signed else self.delegation.stage_seconds
            request = SearchRequest.begin(node_round, self.delegation.window_seconds, stage_s)
            started = await client.start(node_round.start_body())
        except BaseException:
            await client.close()
            raise
        source = RemoteSource(
            client, started.session_id, started.gpu_count, self.delegation.poll_seconds
        )
        logger.info(
            "DELEGATION session %s node %d: started on %s: %s",
            started.session_id,
            node_round.node_id,
            client.url,
            "".join(c if c.isprintable() else " " for c in started.message[:500]),
        )
        return await self._open(source, request, started)

    async def begin_locally(
        self,
        node_round: NodeRound,
        window_s: float,
        stopped: asyncio.Event,
    ) -> Follower:
        """Search with the node's own engine or queues.

        Args:
            window_s: seconds that the search takes.
            stopped: ends the wait for an engine that is still being loaded.

        Raises:
            NodeStateError: it has neither, or was stopped meanwhile.
            PocqueueError: they cannot be used for this round; says why.
        """
        source: Source
        request = SearchRequest.begin(node_round, window_s)
        if self.local_work == "engine":
            assert self.engine is not None
            info = await _unless_stopped(self.engine.ready(), stopped)
            self.check_model(node_round, node_round.wish, info)
            source = EngineSource(self.engine, request)
        elif self.local_work == "queue":
            backend = await asyncio.to_thread(self.backend)
            kept = await self._nonces_kept(node_round)
            source = await asyncio.to_thread(
                QueueSource.start,
                backend,
                node_round,
                window_s=window_s,
                any_model=self.delegation.any_model,
                first_index=await asyncio.to_thread(first_unsearched, node_round, kept),
            )
        else:
            raise NodeStateError(
                "This node neither delegates nor works itself: set DELEGATION_URL and "
                "DELEGATION_AUTH_TOKEN, or POCQUEUE_NODE_WORK=engine or queue"
            )
        return await self._open(source, request)

    def delegates(self, node_round: NodeRound | None) -> bool:
        """Say whether a big node searches a round, or any; one may name a big node of its own."""
        has_own = node_round is not None and node_round.own_big_node is not None
        return has_own or self.delegation.is_delegating

    async def has_gpus(self) -> bool:
        """Say whether there is something to search with now; a big node is taken to have it."""
        if self.delegation.is_delegating:
            return True
        if self.local_work != "queue":
            return self.engine is not None and self.engine.info is not None
        try:
            return any(not gpu.draining for gpu in await asyncio.to_thread(self._live_gpus))
        except PocqueueError as exc:
            logger.warning("The pool is not known: %s", exc)
            return False

    def check_model(self, search: ProofSearch, wish: ModelWish, info: EngineInfo) -> None:
        """Refuse a search that an engine of this node cannot do, or does with another model than it wants.

        Raises:
            InvalidRound: its model has no positions for the search.
            ModelConflict: it is another model; names both.
        """
        check_seq_len(search.seq_len, info)
        if wish.fits(info):
            return
        shape = ", ".join(f"{name} {value}" for name, value in dimensions(info).items())
        conflict = f"Model conflict: params ask for {wish}; deployed here is {info.model} ({shape})"
        if not self.delegation.any_model:
            raise ModelConflict(
                f"{conflict}. Proofs of another model would be worth nothing: ask for the deployed one, or "
                "set POCQUEUE_MODEL (DELEGATION_ANY_MODEL=1 goes on with a warning)."
            )
        logger.warning("LOCAL node %d: %s.", search.node_id, conflict)

    async def _open(
        self, source: Source, request: SearchRequest, model: RemoteModel | None = None
    ) -> Follower:
        session_id, model = source.session_id, model or RemoteModel()
        request = request.model_copy(update={"gpu_count": source.gpu_count, "model": model})
        is_ours = True
        try:
            other_model(model, self.engine.info if self.engine else None, self.delegation)
            is_ours = await asyncio.to_thread(
                self.outgoing.outbox.open_session,
                session_id,
                source.origin,
                request.model_dump_json(),
            )
            if not is_ours:
                # Two rounds would share its cursor and its messages.
                raise DelegationError(
                    f"The big node answers with session {session_id[:64]}, which is another one. "
                    "Check DELEGATION_URL.",
                    is_final=True,
                )
            return await self._run(source, request)
        except BaseException:
            # Its results would not be read. But a session that is another round's is not ours to stop.
            if is_ours:
                with contextlib.suppress(PocqueueError):
                    await source.stop()
            await source.close()
            raise

    async def _run(self, source: Source, request: SearchRequest) -> Follower:
        spot_check = note_fraud = None
        if isinstance(source, RemoteSource):
            note_fraud = partial(self.trust.add, source.client.url, source.session_id)
            if self.engine is not None:
                spot_check = SpotCheck(
                    self.engine,
                    request,
                    source.session_id,
                    self.outgoing.outbox,
                    self.outgoing.metrics,
                    delegation=self.delegation,
                )
        seen = await self._nonces_kept(request.round)
        if isinstance(source, EngineSource):
            source.kept = seen
            if not request.round.proof.keeps_all:
                # Those that were not valid were searched as well, and it is not known which.
                source.first_index = await asyncio.to_thread(first_unsearched, request.round, seen)
        follower = Follower(
            source,
            request,
            self.outgoing,
            spot_check=spot_check,
            seen=seen,
            note_fraud=note_fraud,
            on_lost=self.on_lost,
        )
        self.followers = [other for other in self.followers if not other.is_done]
        self.followers.append(follower)
        follower.start()
        return follower

    async def _nonces_kept(self, node_round: NodeRound) -> set[int]:
        """Return the nonces of a round that were kept; its searches share the set while they run."""
        for other in self.followers:
            # Of one that was fraud, nonces are in it that are held and were not sent.
            if other.fraud is None and other.round.sends_the_same(node_round):
                return other.check.seen
        return await asyncio.to_thread(self.outgoing.outbox.nonces_kept, _is_search_of(node_round))

    async def resume(self, session: Session) -> Follower | None:
        """Go on with a search that an earlier run of this program left open; None: it cannot.

        Raises:
            OutboxError: the disk is in trouble.
        """
        session_id = session.session_id
        if session.request == NO_SEARCH:
            await asyncio.to_thread(self.outgoing.outbox.close_session, session_id)
            return None
        try:
            request = SearchRequest.model_validate_json(session.request)
            source = await self._find_source(session, request)
        except ValidationError:
            reason = "it cannot be read"
        except PocqueueError as exc:
            if not request.is_forgotten:
                # It goes on once the setting is mended.
                logger.error("Session %s cannot go on until the next start: %s", session_id, exc)
                return None
            reason = str(exc)
        else:
            follower = await self._run(source, request)
            logger.info("%s goes on after a restart.", follower.tag)
            if request.stopped:
                # Its source may not know of that yet.
                follower.stop()
            return follower
        logger.error("Session %s cannot go on and is closed: %s", session_id, reason)
        await asyncio.to_thread(self.outgoing.outbox.close_session, session_id)
        return None

    async def _find_source(self, session: Session, request: SearchRequest) -> Source:
        if session.origin == "delegation":
            return RemoteSource(
                self._client(request.round),
                session.session_id,
                request.gpu_count,
                self.delegation.poll_seconds,
            )
        if session.origin == "queue":
            backend = await asyncio.to_thread(self.backend)
            return QueueSource(backend, session.session_id, request.gpu_count)
        if self.engine is None:
            raise EngineError("it was searched by an engine, and this node has none any more")
        return EngineSource(self.engine, request, session.session_id)

    def _client(self, node_round: NodeRound) -> DelegationClient:
        ours = self.delegation
        if node_round.own_big_node is not None:
            url, token = node_round.own_big_node
        elif ours.url is None or ours.auth_token is None:
            raise NodeStateError("DELEGATION_URL and DELEGATION_AUTH_TOKEN are not set any more")
        else:
            url, token = ours.url, ours.auth_token.get_secret_value()
        return DelegationClient(url, token, ca=ours.tls_ca, scheme=node_round.scheme)

    def backend(self) -> Backend:
        """Return the node's own pool and store; blocks.

        Raises:
            StoreError, ProcessError: see `Backend.open`.
        """
        with self._opening:
            if self._backend is None:
                self._backend = Backend.open(self.settings, service=True)
            return self._backend

    def _live_gpus(self) -> list[Gpu]:
        return self.backend().pool.live()


def _is_search_of(node_round: NodeRound) -> Callable[[str], bool]:
    """Return what says whether the request of a session on disk is for a round."""

    def is_one(request: str) -> bool:
        try:
            return SearchRequest.model_validate_json(request).round.sends_the_same(node_round)
        except ValidationError:
            return False

    return is_one


def local_work(delegation: DelegationSettings, node: NodeSettings) -> LocalWork:
    """Return what a node searches with by itself."""
    if node.work == "auto":
        return "none" if delegation.is_delegating else "engine"
    return node.work


async def _unless_stopped(
    coming: Coroutine[Any, Any, EngineInfo], stopped: asyncio.Event
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
