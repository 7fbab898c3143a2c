"""Runs rounds on one deployed model: searches nonces, validates those of others, keeps the results.

The face (names, signatures, messages) is that of seed 004. Behind it:

- One forward pass at a time, whoever asks; `run_batch_async` and `validate_async` wait for theirs in a
  worker thread, so the event loop stays free.
- A forward pass cannot be interrupted. Its result counts only if its round is still the one that is
  being searched when it comes back; a pass that a stop overtook is thrown away.
- Every pass has the shape [batch_size, seq_len], because a nonce's distance must not depend on its
  batch; see docs/protocol.md.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pocqueue.errors import InvalidRound
from pocqueue.poc.config import PoCConfig, PoCState
from pocqueue.poc.data import ProofBatch, ValidatedBatch, is_valid
from pocqueue.poc.forward import DistanceSource, ForwardPass, ModelConfig
from pocqueue.poc.gpu_random import generate_target
from pocqueue.poc.nonces import check_node, nonces_of, split_range
from pocqueue.poc.proofs import check_length
from pocqueue.poc.stats import PoCStats

if TYPE_CHECKING:
    from pocqueue.poc.sender import PoCCallbackSender

__all__ = ["KEPT_VALID", "PoCManager", "PoCStats"]

logger = logging.getLogger(__name__)

#: Valid nonces that a manager keeps for `get_status`: the latest this many of the round. Older ones
#: have been handed out by `run_batch` and the callbacks; `total_valid` counts them all.
KEPT_VALID = 10_000


@dataclass(frozen=True)
class _Work:
    """The nonces of one forward pass, tied to the round they were taken from."""

    round_number: int
    config: PoCConfig
    target: torch.Tensor
    nonces: list[int]


class PoCManager:
    """Orchestrates rounds on a deployed model.

    Args:
        model: a model as vLLM runs it; `ForwardPass` says what is called. Its first parameter tells
            device and dtype. None where `source` is given.
        model_config: has ``hidden_size`` and ``vocab_size``.
        source: computes the distances instead, on a model that is not in this process. Targets are
            then made on the CPU.

    Attributes:
        state: what the manager is doing.
        error: why the round ended as failed; None where it did not.
        config: the round; None before the first.
        target: float32 ``[vocab_size]`` on the model's device; None before the first round.
        stats: counters and clock of the round.
        valid_nonces: the latest `KEPT_VALID` valid nonces, in the order found.
        valid_distances: their distances.

    Methods may be called from any thread.
    """

    def __init__(
        self, model: Any, model_config: ModelConfig, *, source: DistanceSource | None = None
    ) -> None:
        self.model = model
        self.model_config = model_config
        self.device = torch.device("cpu")
        if source is None:
            # Taken once: some models hand out an iterator that cannot be started again.
            parameter = next(model.parameters())
            self.device = parameter.device
            source = ForwardPass(model, model_config, self.device, parameter.dtype)
        self._source = source

        self.state = PoCState.IDLE
        self.error: str | None = None
        self.config: PoCConfig | None = None
        self.target: torch.Tensor | None = None
        self.stats = PoCStats()
        self.valid_nonces: list[int] = []
        self.valid_distances: list[float] = []

        self._next_index = 0
        self._round_number = 0
        self._num_stops = 0
        # Of its own, and one for each use: a pass that hangs holds up neither the other nor whatever
        # else of this process needs a thread. They start with their first use.
        self._searcher = ThreadPoolExecutor(1, thread_name_prefix="poc-search")
        self._checker = ThreadPoolExecutor(1, thread_name_prefix="poc-check")
        self._generation_task: asyncio.Task[Any] | None = None
        self._callback_sender: PoCCallbackSender | None = None
        self._closing: set[Future[None]] = set()
        self._lock = threading.RLock()  # the fields above; taken after the model's lock, if at all

    def init_round(self, config: PoCConfig) -> None:
        """Set up a round and its target, without starting it. The round before is forgotten.

        Raises:
            RuntimeError: a round is being searched; stop it first.
            InvalidRound: node, batch size, sequence length or callback URL cannot be. Nothing changes.
        """
        check_node(config.node_id, config.node_count)
        for name in ("batch_size", "seq_len"):
            if getattr(config, name) < 1:
                raise InvalidRound(name, getattr(config, name), "an integer of at least 1")
        with self._lock:
            if self.state == PoCState.GENERATING:
                raise RuntimeError("Round already in progress")
            sender = _make_sender(config)
            target = generate_target(config.block_hash, self.model_config.vocab_size, self.device)
            self._cancel_generation()
            self._retire_sender()
            self.config = config
            self.target = target
            self.stats = PoCStats(start_time=time.time())
            self.valid_nonces = []
            self.valid_distances = []
            self._next_index = 0
            self._round_number += 1
            self._callback_sender = sender
            self.state = PoCState.IDLE
            self.error = None

    def start_generate(self) -> None:
        """Start or resume searching. Call after `init_round`.

        Raises:
            RuntimeError: there is no round.
        """
        with self._lock:
            self._start(PoCState.GENERATING)
            self.stats.resume()

    def start_validate(self) -> None:
        """Stop searching and switch to validating. Call after `init_round`.

        Raises:
            RuntimeError: there is no round.
        """
        with self._lock:
            self._start(PoCState.VALIDATING)
            self._cancel_generation()
            self.stats.stop()

    def stop_round(self) -> None:
        """Stop searching: cancel the task, stop the clock, let the callbacks flush and close.

        Returns at once; `close` also waits for the callbacks.
        """
        with self._lock:
            self._cancel_generation()
            self._retire_sender()
            self.stats.stop()
            self._num_stops += 1
            self.state = PoCState.STOPPED

    def fail_round(self, reason: str) -> None:
        """End the round as failed: as `stop_round` does, with the reason in the status.

        Args:
            reason: one sentence; stays until a round starts again.
        """
        with self._lock:
            self.stop_round()
            self.error = reason

    async def close(self) -> None:
        """Stop the round and wait until every callback sender has flushed and closed."""
        self.stop_round()
        closing = [asyncio.wrap_future(future) for future in list(self._closing)]
        await asyncio.gather(*closing)
        for threads in (self._searcher, self._checker):
            threads.shutdown(wait=False, cancel_futures=True)

    def set_generation_task(self, task: asyncio.Task[Any]) -> None:
        """Hand over the task that searches in the background, to be cancelled with the round."""
        with self._lock:
            self._generation_task = task

    def get_next_nonces(self) -> list[int]:
        """Take the next `batch_size` nonces of this node; each is handed out once per round.

        Raises:
            RuntimeError: there is no round.
            InvalidRound: the node's nonces are used up, at 2^63.
        """
        with self._lock:
            if self.config is None:
                raise RuntimeError("Round not initialized")
            start, stop = self._next_index, self._next_index + self.config.batch_size
            nonces = nonces_of(start, stop, self.config.node_id, self.config.node_count)
            self._next_index = stop
            return list(nonces)

    def run_batch(self) -> ProofBatch:
        """Search the next batch of nonces, blocking for one forward pass. Sends no callback.

        Returns:
            All nonces of the batch with their distances, valid or not, but for distances that are not
            finite. Empty where no round is being searched, or the round ended during the pass.
        """
        searched = self._search(self._round_number)
        return ProofBatch.empty() if searched is None else self._commit(*searched)

    async def run_batch_async(self) -> ProofBatch:
        """Do as `run_batch` in a worker thread, and queue the valid nonces for the callback URL."""
        # The round is that of now: a thread that has to wait must not take nonces of a later one.
        searched = await asyncio.get_running_loop().run_in_executor(
            self._searcher, self._search, self._round_number
        )
        if searched is None:
            return ProofBatch.empty()
        # Nothing below gives up control, so a cancellation cannot fall between counting a batch and
        # queueing it: both happen or neither.
        batch = self._commit(*searched)
        if self._callback_sender is not None and len(batch) > 0:
            await self._callback_sender.send_generated(batch)
        return batch

    def validate(self, nonces: list[int], public_key: str) -> tuple[list[float], list[bool]]:
        """Recompute the distances of nonces for the round's block, blocking until done.

        Args:
            nonces: any number of them.
            public_key: whose nonces they are, which need not be the round's own key.

        Returns:
            The distance of each nonce, and whether it is valid. NaN and infinities are not.

        Raises:
            RuntimeError: there is no round.
        """
        with self._lock:
            config, target = self.config, self.target
        if config is None or target is None:
            raise RuntimeError("No round configured")
        distances = self._source.distances(config, public_key, target, nonces)
        return distances, [is_valid(distance, config.r_target) for distance in distances]

    async def validate_async(
        self, nonces: list[int], public_key: str
    ) -> tuple[list[float], list[bool]]:
        """Do as `validate` in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._checker, self.validate, nonces, public_key
        )

    async def check_proof(self, proof: ProofBatch) -> ValidatedBatch:
        """Recompute somebody's proof for this round's block, and queue the verdict for the callback.

        The block is the round's whatever the proof says, so that one made for another block fails.

        Args:
            proof: nonces and claimed distances; the public key is the one they were searched for.

        Returns:
            The verdict; distances that were not finite count as invalid.

        Raises:
            RuntimeError: there is no round, or it ended before the verdict.
            InvalidRound: there is not one distance for each nonce.
        """
        check_length("dist", proof.dist, proof.nonces, "distance")
        with self._lock:
            config, target, sender = self.config, self.target, self._callback_sender
            began = (self._round_number, self._num_stops)
        if config is None or target is None:
            raise RuntimeError("No round configured")
        computed: list[float] = []
        # Batch by batch: many of them must not outlast the round that they are checked for.
        for start, stop in split_range(0, len(proof.nonces), config.batch_size):
            batch = proof.nonces[start:stop]
            computed += await asyncio.get_running_loop().run_in_executor(
                self._checker, self._source.distances, config, proof.public_key, target, batch
            )
            if (self._round_number, self._num_stops) != began:
                raise RuntimeError("The round ended while the proof was checked")
        verdict = ValidatedBatch(
            public_key=proof.public_key,
            block_hash=config.block_hash,
            block_height=config.block_height,
            nonces=proof.nonces,
            dist=computed,
            node_id=proof.node_id,
            received_dist=proof.dist,
            r_target=config.r_target,
            fraud_threshold=config.fraud_threshold,
        )
        if sender is not None:
            await sender.send_validated(verdict)
        return verdict

    def get_status(self) -> dict[str, Any]:
        """Return state and results as JSON-ready values; the lists are copies, see `KEPT_VALID`."""
        with self._lock:
            return {
                "state": self.state.value,
                "valid_nonces": list(self.valid_nonces),
                "valid_distances": list(self.valid_distances),
                "total_checked": self.stats.total_checked,
                "total_valid": self.stats.total_valid,
                "elapsed_seconds": self.stats.elapsed,
                "rate_per_second": self.stats.rate,
                "total_nonfinite": self.stats.total_nonfinite,
                "failed": self.error is not None,
                "error": self.error,
            }

    def _start(self, state: PoCState) -> None:
        if self.config is None:
            raise RuntimeError("Round not initialized")
        if self._callback_sender is None:  # closed when the round was stopped
            self._callback_sender = _make_sender(self.config)
        self.error = None
        self.state = state

    def _search(self, round_number: int) -> tuple[_Work, list[float]] | None:
        """Take nonces and compute their distances; None where this round is not being searched."""
        with self._source.lock:
            # Decided here, with the model in hand: the wait for it may have outlasted the round.
            with self._lock:
                if self.state != PoCState.GENERATING or self._round_number != round_number:
                    return None
                if self.config is None or self.target is None:
                    return None
                work = _Work(self._round_number, self.config, self.target, self.get_next_nonces())
            return work, self._source.distances(
                work.config, work.config.public_key, work.target, work.nonces
            )

    def _commit(self, work: _Work, distances: list[float]) -> ProofBatch:
        """Count a batch and keep its valid nonces, unless its round is over."""
        config = work.config
        with self._lock:
            if work.round_number != self._round_number or self.state != PoCState.GENERATING:
                return ProofBatch.empty()
            finite = [
                (n, d) for n, d in zip(work.nonces, distances, strict=True) if math.isfinite(d)
            ]
            batch = ProofBatch(
                public_key=config.public_key,
                block_hash=config.block_hash,
                block_height=config.block_height,
                nonces=[nonce for nonce, _ in finite],
                dist=[distance for _, distance in finite],
                node_id=config.node_id,
            )
            num_nonfinite = len(distances) - len(finite)
            if num_nonfinite and not self.stats.total_nonfinite:
                logger.warning(
                    "The model gave %d distances that are not finite for block %s; dropped",
                    num_nonfinite,
                    config.block_hash,
                )
            valid = batch.sub_batch(config.r_target)
            self.stats.total_checked += len(distances)
            self.stats.total_nonfinite += num_nonfinite
            self.stats.total_valid += len(valid)
            self.valid_nonces.extend(valid.nonces)
            self.valid_distances.extend(valid.dist)
            del self.valid_nonces[:-KEPT_VALID]
            del self.valid_distances[:-KEPT_VALID]
            return batch

    def _cancel_generation(self) -> None:
        task, self._generation_task = self._generation_task, None
        if task is None or task.done():
            return
        loop = task.get_loop()
        if _runs_here(loop):
            task.cancel()
        elif loop.is_running():
            loop.call_soon_threadsafe(task.cancel)

    def _retire_sender(self) -> None:
        """Let the sender flush and close in the loop that it lives in."""
        sender, self._callback_sender = self._callback_sender, None
        # Without a loop it never sent anything; and where its loop has ended, nothing can be sent.
        if sender is None or sender.loop is None or not sender.loop.is_running():
            return
        closing = asyncio.run_coroutine_threadsafe(sender.close(), sender.loop)
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


def _make_sender(config: PoCConfig) -> PoCCallbackSender | None:
    if not config.callback_url:
        return None
    # Imported where it is needed, as most managers send no callbacks and aiohttp is not small.
    from pocqueue.poc.sender import PoCCallbackSender

    return PoCCallbackSender(
        callback_url=config.callback_url,
        r_target=config.r_target,
        fraud_threshold=config.fraud_threshold,
    )


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
