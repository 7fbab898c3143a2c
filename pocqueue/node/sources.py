"""Where the nonces of a small node come from: a big node, its own GPU queues, or an engine of its own.

All three are read page by page with a cursor, which is kept on disk beside what was read. So a restart
begins behind the last page that was kept, and a page that is read twice is noticed.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Set
from dataclasses import dataclass, field

from typing_extensions import override

from pocqueue.delegation.client import DelegationClient
from pocqueue.errors import DelegationError, EngineUnavailable, InvalidRound, StoreError
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.messages import Origin
from pocqueue.node.round import NodeRound, SearchRequest
from pocqueue.poc.proofs import ReceivedBatch
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.records import RoundStatus
from pocqueue.rounds.spec import RoundState
from pocqueue.rounds.start import (
    choose_model,
    decided,
    draft_spec,
    fitted,
    num_serving,
)
from pocqueue.rounds.store import START

logger = logging.getLogger(__name__)

#: How long a big node may hold a request (long poll) until it has batches.
WAIT_S = 20.0
#: The same for our own store. A thread waits there, and a stop is noticed between two waits.
STORE_WAIT_S = 0.5
#: Proofs of one page from the store, at most.
ENTRIES = 1000
#: Between two requests if the big node answers at once although it was asked to hold them.
IDLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Page:
    """Valid nonces that were found since the page before."""

    #: Where the next page begins.
    cursor: str
    batches: list[ReceivedBatch]
    #: Nothing comes after this page.
    over: bool
    #: Why it is over, or the state of the search; in the words of the source.
    status: str = ""
    #: It cannot be read again.
    is_only_copy: bool = False


class Source(ABC):
    """A search that runs somewhere, whose results can be read."""

    origin: Origin
    session_id: str
    #: GPUs that search.
    gpu_count: int
    #: A read under way must not be cut off: its page is handed out only once.
    must_end = False

    @abstractmethod
    async def read(self, cursor: str) -> Page:
        """Return the page behind a cursor (empty: the first page); may wait for it.

        Raises:
            DelegationError, StoreError, EngineError: it cannot be read now, or never again (`is_final`).
        """

    @abstractmethod
    async def stop(self) -> None:
        """End the search; what it found can still be read.

        Raises:
            DelegationError, StoreError: see the classes.
        """

    async def close(self) -> None:
        """Close its connections; one without any has nothing to do."""
        return


@dataclass
class RemoteSource(Source):
    """A session on a big node."""

    #: Of the big node; closed with this.
    client: DelegationClient
    session_id: str
    #: As the big node said.
    gpu_count: int
    #: Seconds between two requests to a big node without long polling.
    poll_s: float
    origin = "delegation"
    #: Whether it has cursors and long polling; None: not known before its first answer.
    has_cursors: bool | None = field(default=None, init=False)
    #: Seconds to wait before the next request.
    pause_s: float = field(default=0.0, init=False)

    @override
    async def read(self, cursor: str) -> Page:
        if self.pause_s:
            await asyncio.sleep(self.pause_s)
            self.pause_s = 0.0
        # No long poll until it is known to have cursors: until then a read must not be cut off, and a long
        # one would hold up the end of this process.
        wait_s = WAIT_S if self.has_cursors else 0.0
        begun = time.monotonic()
        self.must_end = not self.has_cursors
        try:
            page = await self.client.batches(self.session_id, cursor, wait_s)
        finally:
            self.must_end = False
        self.has_cursors = page.cursor is not None
        if page.cursor is None:
            # Without cursors each reply is a page of its own; it gets a name, so that it counts once.
            self.pause_s = self.poll_s
            behind = f"poll-{uuid.uuid4().hex}"
            return Page(behind, page.batches, not page.active, page.status, is_only_copy=True)
        if page.batches and page.cursor == cursor:
            raise DelegationError(
                f"The big node hands out batches and leaves the cursor at {cursor[:40]!r}",
                is_final=True,
            )
        if wait_s and not page.batches and time.monotonic() - begun < IDLE_S:
            self.pause_s = min(IDLE_S, self.poll_s)
        return Page(page.cursor, page.batches, not page.active, page.status)

    @override
    async def stop(self) -> None:
        await self.client.stop(self.session_id)
        # What is left is fetched at once, not after the rest of the pause.
        self.pause_s = 0.0

    @override
    async def close(self) -> None:
        await self.client.close()


@dataclass
class QueueSource(Source):
    """A round on the GPU queues of the node's own Redis."""

    backend: Backend
    session_id: str
    gpu_count: int
    origin = "queue"

    @classmethod
    def start(
        cls,
        backend: Backend,
        node_round: NodeRound,
        *,
        window_s: float,
        any_model: bool,
        first_index: int = 0,
    ) -> QueueSource:
        """Start the round.

        Args:
            first_index: of its nonces: those before it are searched.

        Raises:
            NoLiveGpu, ModelConflict, InvalidRound, StoreError: see the classes.
        """
        draft = draft_spec(**node_round.search, window_s=window_s)
        gpus = backend.pool.live()
        info, warning = choose_model(gpus, node_round.wish, any_model=any_model)
        draft, notes = fitted(draft, gpus, info)
        for text in filter(None, [warning, *notes]):
            logger.warning("LOCAL node %d: %s", node_round.node_id, text)
        round_id = backend.store.create(decided(draft, info), first_index=first_index)
        return cls(backend, round_id, num_serving(gpus, backend.store.status(round_id).spec))

    @override
    async def read(self, cursor: str) -> Page:
        return await asyncio.to_thread(self._read, cursor)

    @override
    async def stop(self) -> None:
        await asyncio.to_thread(
            self.backend.store.close, self.session_id, RoundState.STOPPED, "stopped by the node"
        )

    def _read(self, cursor: str) -> Page:
        # The state before the proofs: once it is not active, no proof is added after this read.
        status: RoundStatus = self.backend.store.status(self.session_id)
        block_ms = round(1000 * min(STORE_WAIT_S, status.remaining_s)) or None
        entries = self.backend.store.read_proofs(
            status, cursor or START, count=ENTRIES, block_ms=block_ms
        )
        over = not status.state.is_active and len(entries) < ENTRIES
        behind = entries[-1].cursor if entries else cursor
        batches = [ReceivedBatch.of(status.spec, entry.proofs) for entry in entries]
        return Page(behind, batches, over, status.state.value)


@dataclass
class EngineSource(Source):
    """A search with an engine in this process. The cursor is the next nonce index.

    Nonces that were kept are left out: another search of the round has found them.
    """

    engine: EngineHost
    #: What is searched; nothing counts once its window is closed.
    request: SearchRequest
    session_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    origin = "engine"
    gpu_count = 1
    is_stopped: bool = field(default=False, init=False)
    #: Nonces of the round that were kept already; grows while this search runs.
    kept: Set[int] = field(default=frozenset(), init=False)
    #: Where a search without a cursor begins: the nonces before it were searched by another one.
    first_index: int = field(default=0, init=False)

    @override
    async def read(self, cursor: str) -> Page:
        wanted = self.request.round
        if self.is_stopped or self.request.left_s <= 0:
            return self._end(cursor)
        # In a thread: all that was kept is gone through once.
        nonces, behind = await asyncio.to_thread(self._next, int(cursor or self.first_index))
        if not nonces:
            return Page(cursor, [], over=True, status="every nonce of this node is searched")
        values = await self.engine.values(wanted, nonces)
        # A pass cannot be interrupted; its result does not count after a stop or the deadline.
        if self.is_stopped or self.request.left_s <= 0:
            return self._end(cursor)
        valid, _ = wanted.proof.sift(nonces, values)
        found = [ReceivedBatch.of(wanted, valid)] if len(valid) else []
        return Page(str(behind), found, over=False)

    @override
    async def stop(self) -> None:
        self.is_stopped = True

    def _next(self, start: int) -> tuple[list[int], int]:
        """Return the nonces of the next pass, and the index behind the last one that was looked at.

        Args:
            start: index of the first.
        """
        wanted, nonces = self.request.round, list[int]()
        while (lacking := wanted.pass_size - len(nonces)) > 0:
            try:
                some = wanted.nonces(start, start + lacking)
            except InvalidRound:
                break
            some = [nonce for nonce in some if nonce <= wanted.proof.max_nonce]
            if not some:
                break
            start += len(some)
            nonces += [nonce for nonce in some if nonce not in self.kept]
        return nonces, start

    def _end(self, cursor: str) -> Page:
        return Page(cursor, [], over=True, status="stopped" if self.is_stopped else "expired")


def is_refused(exc: Exception) -> bool:
    """Say whether a source refuses our token, which a change on either node may mend."""
    return isinstance(exc, DelegationError) and exc.status in {401, 403}


def is_final(exc: Exception) -> bool:
    """Say whether a source that failed in the middle of a search is lost for good."""
    if isinstance(exc, DelegationError):
        return exc.is_final and not is_refused(exc)
    return not isinstance(exc, StoreError | EngineUnavailable)
