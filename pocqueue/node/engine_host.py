"""The small node's own engine: loaded once in the background, used by one thread, a batch at a time.

Callers take turns between two forward passes, so that checking a proof does not wait for local work to
end. Before the engine is loaded, callers wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pocqueue.engine import Engine, load_local_engine
from pocqueue.engine.base import EngineInfo, largest_pass
from pocqueue.errors import EngineError, EngineUnavailable, PocqueueError
from pocqueue.poc.batch import batches_of
from pocqueue.poc.scheme import ProofSearch
from pocqueue.poc.search import MAX_BATCH_SIZE
from pocqueue.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class EngineHost:
    """One engine, for coroutines of one event loop."""

    settings: Settings  #: which engine and model
    #: Makes the engine, in its thread.
    load: Callable[..., Engine] = load_local_engine
    #: Why it cannot be used, in a sentence; None if it can, or is being loaded.
    error: str | None = field(default=None, init=False)
    _loading: asyncio.Task[None] | None = field(default=None, init=False)
    _engine: Engine | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        # One thread for everything: CPU kernels keep their helper threads by the thread that calls.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    def start(self) -> None:
        """Begin to load the model."""
        self._loading = asyncio.create_task(self._load(), name="engine")

    @property
    def is_loading(self) -> bool:
        """Whether it is not known yet if the engine can be used."""
        return self._engine is None and self.error is None

    @property
    def info(self) -> EngineInfo | None:
        """What is loaded; None: nothing yet."""
        return None if self._engine is None else self._engine.info

    async def ready(self) -> EngineInfo:
        """Wait until the model is loaded.

        Raises:
            EngineUnavailable: it cannot be; says why.
        """
        assert self._loading is not None
        await asyncio.shield(self._loading)
        if self._engine is None:
            raise EngineUnavailable(self.error)
        return self._engine.info

    async def values(self, search: ProofSearch, nonces: Sequence[int]) -> list[Any]:
        """Compute the values of any number of nonces, in passes of the search's shape.

        A batch_size above the limit, or none that was asked for, becomes the default, or what a pass holds.

        Raises:
            EngineUnavailable: the engine cannot be used.
            EngineError: it failed on a batch.
            InvalidRound: it cannot run that shape.
        """
        await self.ready()
        assert self._engine is not None
        if search.batch_size > MAX_BATCH_SIZE:
            size = largest_pass(self._engine.info, search.seq_len, search.pass_size)
            search = search.model_copy(update={"batch_size": size})
        loop, computed = asyncio.get_running_loop(), []
        try:
            for batch in batches_of(search, nonces):
                computed += await loop.run_in_executor(self._thread, self._engine.values, batch)
        except PocqueueError:
            raise
        except Exception as exc:
            # Whatever the runtime below raises: out of memory, a kernel that fails.
            reason = str(exc) or type(exc).__name__
            raise EngineError(f"The engine failed on a batch: {reason}") from exc
        return computed

    async def close(self) -> None:
        """Free the engine after the pass at hand."""
        if self._loading is not None:
            self._loading.cancel()
        if self._engine is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.close)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _load(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            engine = await loop.run_in_executor(
                self._thread, self.load, self.settings, None, logger.info
            )
            info = engine.info
        except Exception as exc:  # noqa: BLE001 - whatever a model runtime raises: the node goes on without
            reason = str(exc) or type(exc).__name__
            self.error = f"The engine of this node cannot be used: {reason}"
            logger.error("%s", self.error)
            return
        self._engine = engine
        logger.info("The engine of this node is ready: %s on %s.", info.model, info.device)
