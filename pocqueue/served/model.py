"""The model that a server serves, as its API process sees it: reached by name through the engine client.

What crosses to the workers is block hash, public key, nonces and a shape; what comes back is their values.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pocqueue.engine.base import EngineInfo
from pocqueue.engine.vllm.ranks import BatchLimits, read_values
from pocqueue.errors import EngineError, EngineUnavailable, InvalidRound
from pocqueue.poc.batch import Batch

#: How often it is looked whether requests still run.
_POLL_S = 0.02


class EngineClient(Protocol):
    """What is used of vLLM's engine client."""

    @property
    def errored(self) -> bool: ...

    async def collective_rpc(self, method: str, *, args: tuple[Any, ...] = ()) -> list[Any]: ...


@dataclass(eq=False)
class ServedModel:
    """What the workers of a vLLM server compute. Used from the event loop of its engine client only."""

    client: EngineClient
    info: EngineInfo  #: its fingerprint may be filled in later
    limits: BatchLimits  #: what it can run
    #: Longest time for one batch. vLLM's core does nothing else meanwhile, so this also bounds how long a
    #: try of a batch that hangs keeps a round alive.
    pass_timeout_s: float = 300.0
    #: The same for batches of a proof scheme, by its name, where it is another one.
    timeouts_s: Mapping[str, float] = field(default_factory=dict)
    idle_s: float = 30.0  #: the workers keep their scratch this long after a batch
    look_every_s: float = 1.0  #: how often a call that waits looks whether the engine still lives
    #: Share of the time that batches leave to requests which run beside them: vLLM's core computes either.
    decode_share: float = 0.0
    #: Held for the length of a batch by whoever has it computed.
    turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    def __post_init__(self) -> None:
        self._release: asyncio.Task[None] | None = None
        self._rest_until = 0.0  #: monotonic seconds

    async def take_turn(self) -> None:
        """Take `turn`, and wait until what runs beside the proof has had its share since the last batch.

        The caller releases it. A batch without a turn would be computed all the same, but at the cost of the others.
        """
        await self.turn.acquire()
        try:
            while self.num_unfinished():
                left_s = self._rest_until - time.monotonic()
                if left_s <= 0:
                    break
                await asyncio.sleep(min(left_s, _POLL_S))
        except BaseException:
            self.turn.release()
            raise

    def check(self, batch_size: int, seq_len: int) -> None:
        """Refuse a shape that the model cannot run.

        Raises:
            InvalidRound: names the field.
        """
        self.limits.check(self.info, Batch.warm_up(batch_size, seq_len))

    def fit(self, batch_size: int, seq_len: int) -> int:
        """Return the largest number of sequences in one pass that the model can run, up to a wish; at least 1."""
        most = min(batch_size, self.limits.max_batch_size)
        if self.limits.max_tokens is not None:
            most = min(most, self.limits.max_tokens // seq_len)
        return max(1, most)

    async def values(self, batch: Batch, upcoming: Batch | None = None) -> list[Any]:
        """Compute the values of one batch.

        Args:
            batch: what is asked for.
            upcoming: the next batch, whose inputs are made meanwhile; ignored if the model cannot run it.

        Raises:
            InvalidRound: the shape, or the number of nonces, is out of bounds.
            EngineUnavailable: the engine is dead, or did not answer in time.
            EngineError: it failed; says why.
        """
        self.limits.check(self.info, batch)
        if not batch.nonces:
            return []
        following = None
        if upcoming is not None:
            with contextlib.suppress(InvalidRound):  # said when it is asked for
                self.limits.check(self.info, upcoming)
                following = upcoming.to_wire()
        began = time.monotonic()
        try:
            timeout_s = self.timeouts_s.get(batch.scheme, self.pass_timeout_s)
            answers = await self.call("poc_values", batch.to_wire(), following, timeout_s=timeout_s)
        finally:
            now = time.monotonic()
            self._rest_until = now + (now - began) * self.decode_share / (1 - self.decode_share)
            if self._release is not None:
                self._release.cancel()
            self._release = asyncio.create_task(self._release_later(), name="poc-release")
        return read_values(answers, len(batch.nonces))

    def num_unfinished(self) -> int:
        """Return how many requests vLLM has at work; 0 if its client does not tell."""
        processor = getattr(self.client, "output_processor", None)
        return 0 if processor is None else int(processor.get_num_unfinished_requests())

    @property
    def is_dead(self) -> bool:
        """Whether vLLM says that its engine is dead, which only a restart of the server mends."""
        return self.client.errored

    def check_alive(self) -> None:
        """Check that the engine is not dead.

        Raises:
            EngineUnavailable: vLLM says that its engine is dead.
        """
        if self.is_dead:
            raise EngineUnavailable(
                "Engine not available: vLLM's engine is dead. Restart the server."
            )

    async def call(self, method: str, *args: Any, timeout_s: float | None = None) -> list[Any]:
        """Call a method of the worker extension on every rank.

        Args:
            timeout_s: seconds for the answer; None: `pass_timeout_s`.

        Raises:
            EngineUnavailable, EngineError: as `values` does.
        """
        self.check_alive()
        timeout_s = self.pass_timeout_s if timeout_s is None else timeout_s
        call = asyncio.ensure_future(
            # Without a timeout of vLLM's: it would leave the late answer in the queue of the next call.
            self.client.collective_rpc(method, args=args)
        )
        try:
            async with asyncio.timeout(timeout_s):
                # An engine that died leaves the calls that it had without an answer.
                while not (await asyncio.wait([call], timeout=self.look_every_s))[0]:
                    self.check_alive()
        except TimeoutError:
            raise EngineUnavailable(
                f"Engine not available: no answer to a batch within {timeout_s:.0f} s."
            ) from None
        finally:
            call.cancel()  # if it is not done; the engine itself cannot be interrupted
        try:
            return call.result()
        except asyncio.CancelledError:
            # vLLM's doing, not ours: passed on, it would end a search as if somebody had stopped it.
            raise EngineUnavailable("Engine not available: vLLM dropped the batch.") from None
        except Exception as exc:
            if self.client.errored:
                raise EngineUnavailable(
                    f"Engine not available: vLLM's engine died ({type(exc).__name__}). Restart the server."
                ) from exc
            # What a worker raises arrives as text, of whatever class it was.
            raise EngineError(f"The engine failed: {str(exc)[:500]}") from exc

    async def _release_later(self) -> None:
        """Free the workers' scratch, unless a batch comes meanwhile."""
        await asyncio.sleep(self.idle_s)
        with contextlib.suppress(EngineError):  # a dead engine holds nothing
            await self.call("poc_release")

    async def close(self) -> None:
        """Leave the workers' scratch as it is: the server ends, and with it the workers."""
        if self._release is not None:
            self._release.cancel()
            await asyncio.wait([self._release])
