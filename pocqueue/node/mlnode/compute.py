"""Computes given nonces for the chain: by this node's own engine, or on the pool, ahead of rounds that search.

Promises:
- What passes by itself is waited for: no GPU, none of the model or none that holds a pass, no scheduler, a Redis that is
  away or was restarted, an engine that the next run of this program may load.
- A request that a later run of this program goes on with finds what the pool has computed of it meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ParamSpec, TypeVar

from pocqueue.errors import (
    EngineError,
    EngineUnavailable,
    InvalidRound,
    ModelConflict,
    NodeStateError,
    NoLiveGpu,
    StoreUnavailable,
    UnknownRound,
)
from pocqueue.node.searches import Searches
from pocqueue.poc.nonces import split
from pocqueue.poc.scheme import ProofSearch
from pocqueue.rounds.compute import Computation, Computed
from pocqueue.rounds.spec import MAX_GIVEN, RoundState
from pocqueue.rounds.start import ModelWish, choose_model, draft_spec, fitted

logger = logging.getLogger(__name__)

#: Requests that the pool works on at a time: one of 200 nonces is too small for many GPUs.
AT_ONCE = 16

P = ParamSpec("P")
T = TypeVar("T")


class JobSearch(ProofSearch):
    """What the nonces of a request are."""

    request_id: str
    model: str  #: that computes them

    @property
    def wish(self) -> ModelWish:
        return ModelWish(self.model)

    @property
    def fields(self) -> dict[str, Any]:
        """Its part of a `RoundSpec`."""
        return self.model_dump(exclude={"request_id", "model"})


@dataclass(eq=False)
class Computer:
    """Whatever this node computes given nonces with, for coroutines of one event loop."""

    searches: Searches
    #: Between two tries while something is away.
    pause_s: float = 1.0
    #: After which a round on the pool ends, if nobody ends it.
    window_s: float = 1800.0
    _closing: threading.Event = field(default_factory=threading.Event, init=False)

    def __post_init__(self) -> None:
        # Not asyncio's own threads: those that wait here would keep the outbox from its work.
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="compute")

    @property
    def at_once(self) -> int:
        """How many requests are worth working on at a time."""
        return AT_ONCE if self.searches.local_work == "queue" else 1

    async def check(self, search: JobSearch) -> None:
        """Refuse what cannot be computed now.

        Raises:
            NodeStateError, NoLiveGpu, EngineUnavailable, StoreError: there is nothing to compute it with.
            ModelConflict, InvalidRound: what there is has another model, or cannot run such a pass.
        """
        if (engine := self.searches.engine) is not None:
            if engine.info is None:
                raise EngineUnavailable(engine.error or "The engine of this node is being loaded.")
            self.searches.check_model(search, search.wish, engine.info)
        elif self.searches.local_work == "queue":
            # Not one of ours, as each may be held by a request that runs.
            await asyncio.to_thread(self._check_pool, search)
        else:
            raise NodeStateError(
                "This node computes nothing itself: set POCQUEUE_NODE_WORK=engine or queue"
            )

    async def __call__(self, search: ProofSearch, nonces: Sequence[int]) -> Sequence[str | None]:
        """Return the artifact of each nonce, as text, in their order; None for one that has none.

        Args:
            search: a `JobSearch`; its request_id again goes on with what there is.
            nonces: of any node.

        Raises:
            PocqueueError: they cannot be computed; says why.
        """
        assert isinstance(search, JobSearch)
        values: dict[int, str] = {}
        # Each once, whatever was asked for.
        for number, piece in enumerate(split(list(dict.fromkeys(nonces)), MAX_GIVEN)):
            if self.searches.engine is not None:
                values |= await self._by_engine(search, piece)
            else:
                values |= await self._on_pool(search, piece, number)
        return [values.get(nonce) for nonce in nonces]

    def close(self) -> None:
        """Wait for nothing more; what the pool computes goes on there."""
        self._closing.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _by_engine(self, search: JobSearch, nonces: Sequence[int]) -> dict[int, str]:
        engine = self.searches.engine
        assert engine is not None
        while True:
            try:
                self.searches.check_model(search, search.wish, await engine.ready())
                values = await engine.values(search, nonces)
            except EngineUnavailable as exc:
                await self._pause(exc)
            else:
                return dict(search.proof.sift(nonces, values)[0])

    async def _on_pool(
        self, search: JobSearch, nonces: Sequence[int], number: int
    ) -> dict[int, str]:
        tries = 0
        while True:
            # Of the same name in every run of this program.
            round_id = str(uuid.uuid5(uuid.UUID(search.request_id), f"{number}/{tries}"))
            try:
                found, state = await self._round(search, nonces, round_id)
            except (StoreUnavailable, NoLiveGpu, ModelConflict, InvalidRound) as exc:
                # The last two as workers of the model start again, or while only small GPUs are there: it was checked
                # when it was taken.
                await self._pause(exc)
                continue
            except UnknownRound:
                # Redis has lost it, with its last second.
                tries += 1
                continue
            if not found.missing:
                return found.values
            if state is not RoundState.STOPPED:
                num_missing = len(nonces) - len(found.values)
                raise EngineError(
                    f"{num_missing:,} of {len(nonces):,} nonces were not computed: {found.missing}"
                )
            # By hand, or where Redis went away while it was started.
            tries += 1

    async def _round(
        self, search: JobSearch, nonces: Sequence[int], round_id: str
    ) -> tuple[Computed, RoundState]:
        """Start a round or find it, and wait for its end; where this is cancelled it is ended, too."""
        backend = await self._in_thread(self.searches.backend)
        is_over = threading.Event()
        try:
            computation = await self._in_thread(
                partial(
                    Computation.start,
                    backend,
                    nonces,
                    asked_by=f"request {search.request_id}",
                    timeout_s=self.window_s,
                    wish=search.wish,
                    round_id=round_id,
                    **search.fields,
                )
            )
            while True:
                found = await self._in_thread(
                    partial(
                        computation.wait,
                        gives_up=lambda: is_over.is_set() or self._closing.is_set(),
                    )
                )
                status = await self._in_thread(backend.store.status, round_id)
                if not (found.missing and status.state.is_active):
                    return found, status.state
                # The pool's scheduler is away.
                await self._pause(found.missing)
        except asyncio.CancelledError:
            is_over.set()
            if not self._closing.is_set():
                await self._in_thread(Computation(backend, round_id, self.window_s).stop)
            raise

    def _check_pool(self, search: JobSearch) -> None:
        gpus = self.searches.backend().pool.live()
        info, _ = choose_model(gpus, search.wish)
        fitted(draft_spec(**search.fields), gpus, info)

    async def _pause(self, why: object) -> None:
        logger.info("The nonces of a request wait: %s", why)
        await asyncio.sleep(self.pause_s)

    async def _in_thread(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        call = partial(method, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)
