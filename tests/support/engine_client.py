"""vLLM's engine client in memory: distances and artifacts by a formula, and all that may go wrong with an engine."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from pocqueue.engine.base import EXTENSION
from pocqueue.engine.vllm.ranks import BatchLimits
from pocqueue.poc.artifact.data import encode
from pocqueue.poc.batch import Batch
from pocqueue.served.artifacts import make_round_sender
from pocqueue.served.gate import InferenceGate
from pocqueue.served.model import ServedModel
from pocqueue.served.prover import Prover, ServedRound
from pocqueue.settings import ArtifactSettings
from tests.support.factories import make_info, make_spec
from tests.support.waiting import until

#: Of the described model.
MAX_BATCH_SIZE = 16
MAX_SEQ_LEN = 64


class EngineDeadError(Exception):
    """What vLLM raises once its engine is dead."""


def distance_of(block_hash: str, public_key: str, nonce: int) -> float:
    """Return the distance of a nonce: spread evenly over [0, 2), of block, key and nonce."""
    digest = hashlib.sha256(f"{block_hash}|{public_key}|{nonce}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**31


def artifact_of(block_hash: str, public_key: str, nonce: int, k_dim: int = 12) -> str:
    """Return the artifact of a nonce: of block, key and nonce, and far from any other."""
    digest = hashlib.sha512(f"{block_hash}|{public_key}|{nonce}".encode()).digest()
    numbers = [byte - 127.5 for byte in digest[:k_dim]]
    norm = math.hypot(*numbers)
    return encode([[number / norm for number in numbers]])[0]


def round_of(**changes: Any) -> ServedRound:
    """Make a round of batches of 4 nonces, about half of which are valid."""
    return ServedRound(**make_spec(batch_size=4).model_dump() | changes)


class EngineTwin:
    """Implements what is used of vLLM's ``EngineClient``.

    Attributes:
        errored: as vLLM has it.
        vllm_config: what the plugin reads of it; a test replaces parts.
        description: what ``poc_describe`` answers.
        gate: batches wait here while it is cleared, as behind a pass that takes long.
        hold_after: clears the gate when this many batches have begun; None: never.
        failure: raised in place of an answer.
        failures: the same, of one batch each, and None for a batch that is answered.
        fails_for: the public key whose batches fail so; None: all.
        dies: answers no more: the batch at hand fails, and `errored` is true from then on.
        is_nan: says of a nonce whether its distance is NaN, or its artifact missing.
        ranks: what all ranks answer, made of the values.
        on_batch: called where a batch begins.
        calls: (method, arguments) of every call.
        running: batches that are being computed.
        answered: batches that were answered.
        output_processor: where vLLM counts requests; None: its client does not tell.
    """

    def __init__(self) -> None:
        self.errored = False
        self.vllm_config = SimpleNamespace(
            parallel_config=SimpleNamespace(worker_extension_cls=EXTENSION),
            model_config=SimpleNamespace(model="no-such-folder", revision=None),
            load_config=SimpleNamespace(download_dir=None),
        )
        info = make_info(fingerprint="", max_seq_len=MAX_SEQ_LEN)
        self.description: dict[str, Any] = {
            "info": info.to_dict(),
            "max_batch_size": MAX_BATCH_SIZE,
            "max_tokens": None,
        }
        self.gate = asyncio.Event()
        self.gate.set()
        self.hold_after: int | None = None
        self.failure: BaseException | None = None
        self.failures: Iterator[BaseException | None] = iter(())
        self.fails_for: str | None = None
        self.dies = False
        self.is_nan: Callable[[int], bool] = lambda _: False
        self.ranks: Callable[[list[Any]], list[Any]] = lambda values: [{"values": values}]
        self.on_batch: Callable[[], None] = lambda: None
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.running = 0
        self.most_running = 0
        self.answered = 0
        self.output_processor: Any = None

    @property
    def batches(self) -> list[list[int]]:
        """The nonces of each batch that began."""
        return [list(args[0][2]) for method, args in self.calls if method == "poc_values"]

    @property
    def released(self) -> int:
        """How often the workers were told to free what they hold."""
        return sum(method == "poc_release" for method, _ in self.calls)

    async def collective_rpc(
        self,
        method: str,
        args: tuple[Any, ...] = (),
    ) -> list[Any]:
        self.calls.append((method, args))
        if method == "poc_values":
            return await self._values(*args)
        if self.failure is not None:
            raise self.failure
        return [dict(self.description) if method == "poc_describe" else None]

    async def _values(self, fields: list[Any], _upcoming: list[Any] | None) -> list[Any]:
        batch = Batch.from_wire(fields)
        assert len(batch.nonces) <= batch.batch_size <= MAX_BATCH_SIZE
        assert batch.seq_len <= MAX_SEQ_LEN
        self.on_batch()
        if len(self.batches) == self.hold_after:
            self.gate.clear()
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.gate.wait()
            if self.dies:
                self.errored = True
                raise EngineDeadError("EngineCore encountered an issue.")
            if (failure := next(self.failures, None)) is not None:
                raise failure
            if self.failure is not None and self.fails_for in {None, batch.public_key}:
                raise self.failure
        finally:
            self.running -= 1
        self.answered += 1
        names = (batch.block_hash, batch.public_key)
        if batch.scheme == "artifact":
            k_dim = dict(batch.options)["k_dim"]
            return self.ranks(
                [None if self.is_nan(n) else artifact_of(*names, n, k_dim) for n in batch.nonces]
            )
        return self.ranks(
            [math.nan if self.is_nan(n) else distance_of(*names, n) for n in batch.nonces]
        )


@asynccontextmanager
async def serving(
    twin: EngineTwin,
    *,
    drain_s: float = 30.0,
    max_round_s: float = 60.0,
    pass_timeout_s: float = 60.0,
    decode_share: float = 0.0,
    flush_s: float = 10.0,
    retry_pauses_s: Sequence[float] = (0.001, 0.001),
    settings: ArtifactSettings | None = None,
    **sending: Any,
) -> AsyncIterator[Prover]:
    """Set up a prover on a twin, and end it.

    Args:
        settings: of artifacts; None: the defaults.
        sending: timings of its callback queues.
    """
    info, limits = make_info(max_seq_len=MAX_SEQ_LEN), BatchLimits(MAX_BATCH_SIZE)
    model = ServedModel(twin, info, limits, pass_timeout_s, decode_share=decode_share)
    prover = Prover(
        model,
        InferenceGate(330.0),
        drain_s=drain_s,
        max_round_s=max_round_s,
        make_sender=make_round_sender(settings or ArtifactSettings(), **sending),
        flush_s=flush_s,
        retry_pauses_s=retry_pauses_s,
    )
    try:
        yield prover
    finally:
        twin.gate.set()
        await prover.close()


def found(prover: Prover) -> dict[int, float]:
    """Return the valid nonces of the round at hand with their distances, in the order found."""
    _, blocks = prover.found.valid()
    return {n: d for block in blocks for n, d in zip(*block, strict=True)}


async def passes_over(twin: EngineTwin) -> None:
    """Wait until no batch is being computed, and whoever waited for one has heard of it."""
    await until(lambda: not twin.running)
    for _ in range(5):
        await asyncio.sleep(0)
