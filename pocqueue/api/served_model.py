"""The model that a server serves, as its API process sees it: reached by name through the engine client.

What crosses to the workers is block hash, public key, nonces and a shape; what comes back is distances.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pocqueue.engine.base import EngineInfo, check_batch
from pocqueue.errors import EngineError, EngineUnavailable, PocqueueError
from pocqueue.poc.config import PoCConfig
from pocqueue.poc.nonces import split_range

if TYPE_CHECKING:
    import torch

#: Longest time for one batch. vLLM's core does nothing else meanwhile, so this also bounds how long a
#: batch that hangs keeps a round alive.
PASS_TIMEOUT_S = 300.0
#: How much longer it is waited for than the engine itself waits for its workers.
_GRACE_S = 5.0


class EngineClient(Protocol):
    """What is used of vLLM's engine client."""

    @property
    def errored(self) -> bool: ...

    async def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,  # noqa: ASYNC109 - the name is vLLM's
        args: tuple[Any, ...] = (),
    ) -> list[Any]: ...


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """What a manager has to know of the model's configuration."""

    hidden_size: int
    vocab_size: int


class ServedModel:
    """Distances by the workers of a vLLM server; a `DistanceSource` for its `PoCManager`.

    Made and closed in the event loop that the engine client lives in.

    Args:
        client: vLLM's engine client.
        info: the model; its fingerprint may be filled in later.
        max_batch_size: most sequences of a pass.
        pass_timeout_s: seconds that one batch may take.

    Attributes:
        lock: held by a thread during a pass.
    """

    def __init__(
        self,
        client: EngineClient,
        info: EngineInfo,
        max_batch_size: int,
        pass_timeout_s: float = PASS_TIMEOUT_S,
    ) -> None:
        self.info = info
        self.max_batch_size = max_batch_size
        self.lock = threading.RLock()
        self._client = client
        self._pass_timeout_s = pass_timeout_s
        self._loop = asyncio.get_running_loop()

    @property
    def sizes(self) -> ModelSizes:
        return ModelSizes(self.info.hidden_size, self.info.vocab_size)

    def check(self, batch_size: int, seq_len: int, nonces: Sequence[int] = ()) -> None:
        """Refuse a shape that the model cannot run.

        Raises:
            InvalidRound: names the field.
        """
        config = PoCConfig("-", 0, "-", 2.0, batch_size=batch_size, seq_len=seq_len)
        check_batch(self.info, config, nonces, max_batch_size=self.max_batch_size)

    def distances(
        self, config: PoCConfig, public_key: str, target: torch.Tensor, nonces: Sequence[int]
    ) -> list[float]:
        """Compute the distances of nonces, blocking this thread, which must not be the loop's.

        Args:
            config: the round; its block hash, batch size and sequence length are used.
            public_key: whose nonces they are.
            target: not used; each worker makes its own.
            nonces: any number of them.

        Raises:
            EngineError: as `batch_distances` does.
        """
        del target
        distances: list[float] = []
        for start, stop in split_range(0, len(nonces), config.batch_size):
            batch = self.batch_distances(
                config.block_hash,
                public_key,
                nonces[start:stop],
                config.batch_size,
                config.seq_len,
            )
            with self.lock:
                distances += asyncio.run_coroutine_threadsafe(batch, self._loop).result()
        return distances

    async def batch_distances(
        self,
        block_hash: str,
        public_key: str,
        nonces: Sequence[int],
        batch_size: int,
        seq_len: int,
    ) -> list[float]:
        """Compute the distances of one batch.

        Raises:
            InvalidRound: the shape, or the number of nonces, is out of bounds.
            EngineUnavailable: the engine is dead, or did not answer in time.
            EngineError: it failed; says why.
        """
        self.check(batch_size, seq_len, nonces)
        if not nonces:
            return []
        answers = await self.call(
            "poc_distances", block_hash, public_key, list(nonces), batch_size, seq_len
        )
        # Every rank of a tensor-parallel group that has the logits has the same.
        distances: list[float] = next((answer for answer in answers if answer is not None), [])
        if len(distances) != len(nonces):
            raise EngineError(
                f"The engine failed: it gave {len(distances)} distances for {len(nonces)} nonces."
            )
        return distances

    def check_alive(self) -> None:
        """Refuse what needs an engine where that is dead.

        Raises:
            EngineUnavailable: vLLM says that its engine is dead.
        """
        if self._client.errored:
            raise EngineUnavailable(
                "Engine not available: vLLM's engine is dead. Restart the server."
            )

    async def call(self, method: str, *args: Any) -> list[Any]:
        """Call a method of the worker extension on every rank.

        Raises:
            EngineUnavailable, EngineError: as `batch_distances` does.
        """
        self.check_alive()
        try:
            # Bounded here too: a core that hangs would not tell that the time is up.
            async with asyncio.timeout(self._pass_timeout_s + _GRACE_S):
                return await self._client.collective_rpc(
                    method, timeout=self._pass_timeout_s, args=args
                )
        except TimeoutError:
            raise EngineUnavailable(
                f"Engine not available: no answer to a batch within {self._pass_timeout_s:.0f} s."
            ) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not this call was cancelled but what it waits for. Passed on, it would end a search as
            # if somebody had stopped it.
            raise EngineUnavailable("Engine not available: vLLM dropped the batch.") from None
        except PocqueueError:
            raise
        except Exception as exc:
            if self._client.errored:
                raise EngineUnavailable(
                    f"Engine not available: vLLM's engine died ({type(exc).__name__}). Restart the server."
                ) from exc
            # What a worker raises arrives as text, of whatever class it was.
            raise EngineError(f"The engine failed: {str(exc)[:500]}") from exc
