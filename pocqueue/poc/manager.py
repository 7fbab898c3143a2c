"""A round on a model in this process, by the names of the reference implementation.

Nothing of the product uses it: workers search with an engine, a served vLLM with `served/prover.py`. It
is what code that was written against the reference finds, one blocking call at a time and for one thread.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import torch

from pocqueue.errors import InvalidRound
from pocqueue.poc.config import PoCConfig, PoCState
from pocqueue.poc.data import ProofBatch, is_valid
from pocqueue.poc.forward import ForwardPass, ModelConfig
from pocqueue.poc.gpu_random import generate_target
from pocqueue.poc.nonces import check_node, nonces_of
from pocqueue.poc.stats import PoCStats

__all__ = ["PoCManager", "PoCStats"]

logger = logging.getLogger(__name__)


class PoCManager:
    """Searches nonces and validates those of others; sends no callbacks.

    Args:
        model: a model as vLLM runs it; `ForwardPass` says what is called. Its first parameter tells
            device and dtype.
        model_config: has ``hidden_size`` and ``vocab_size``.

    Attributes:
        state: what the manager is doing.
        config: the round; None before the first.
        target: float32 ``[vocab_size]`` on the model's device; None before the first round.
        stats: counters and clock of the round.
        valid_nonces: all valid nonces of the round, in the order found.
        valid_distances: their distances.
    """

    def __init__(self, model: Any, model_config: ModelConfig) -> None:
        self.model = model
        self.model_config = model_config
        # Taken once: some models hand out an iterator that cannot be started again.
        parameter = next(model.parameters())
        self.device: torch.device = parameter.device
        self._forward = ForwardPass(model, model_config, self.device, parameter.dtype)
        self.state = PoCState.IDLE
        self.config: PoCConfig | None = None
        self.target: torch.Tensor | None = None
        self.stats = PoCStats()
        self.valid_nonces: list[int] = []
        self.valid_distances: list[float] = []
        self._next_index = 0

    def init_round(self, config: PoCConfig) -> None:
        """Set up a round and its target, without starting it. The round before is forgotten.

        Raises:
            RuntimeError: a round is being searched; stop it first.
            InvalidRound: node, batch size or sequence length cannot be. Nothing changes.
        """
        check_node(config.node_id, config.node_count)
        for name in ("batch_size", "seq_len"):
            if getattr(config, name) < 1:
                raise InvalidRound(name, getattr(config, name), "an integer of at least 1")
        if self.state == PoCState.GENERATING:
            raise RuntimeError("Round already in progress")
        self.target = generate_target(config.block_hash, self.model_config.vocab_size, self.device)
        self.config = config
        self.stats = PoCStats(start_time=time.time())
        self.valid_nonces = []
        self.valid_distances = []
        self._next_index = 0
        self.state = PoCState.IDLE

    def start_generate(self) -> None:
        """Start or resume searching.

        Raises:
            RuntimeError: there is no round.
        """
        self._round()
        self.state = PoCState.GENERATING
        self.stats.resume()

    def start_validate(self) -> None:
        """Stop searching and switch to validating.

        Raises:
            RuntimeError: there is no round.
        """
        self._round()
        self.state = PoCState.VALIDATING
        self.stats.stop()

    def stop_round(self) -> None:
        """Stop searching and the clock."""
        self.stats.stop()
        self.state = PoCState.STOPPED

    def get_next_nonces(self) -> list[int]:
        """Take the next `batch_size` nonces of this node; each is handed out once per round.

        Raises:
            RuntimeError: there is no round.
            InvalidRound: the node's nonces are used up, at 2^63.
        """
        config, _ = self._round()
        stop = self._next_index + config.batch_size
        nonces = nonces_of(self._next_index, stop, config.node_id, config.node_count)
        self._next_index = stop
        return list(nonces)

    def run_batch(self) -> ProofBatch:
        """Search the next batch of nonces.

        Returns:
            All nonces of the batch with their distances, valid or not, but for distances that are not
            finite. Empty unless a round is being searched.
        """
        if self.state != PoCState.GENERATING:
            return ProofBatch.empty()
        config, target = self._round()
        nonces = self.get_next_nonces()
        distances = self._forward.distances(config, config.public_key, target, nonces)
        pairs = zip(nonces, distances, strict=True)
        finite = [(nonce, distance) for nonce, distance in pairs if math.isfinite(distance)]
        batch = ProofBatch(
            public_key=config.public_key,
            block_hash=config.block_hash,
            block_height=config.block_height,
            nonces=[nonce for nonce, _ in finite],
            dist=[distance for _, distance in finite],
            node_id=config.node_id,
        )
        num_nonfinite = len(nonces) - len(finite)
        if num_nonfinite and not self.stats.total_nonfinite:
            logger.warning(
                "The model gave %d distances that are not finite for block %s; dropped",
                num_nonfinite,
                config.block_hash,
            )
        valid = batch.sub_batch(config.r_target)
        self.stats.total_checked += len(nonces)
        self.stats.total_nonfinite += num_nonfinite
        self.stats.total_valid += len(valid)
        self.valid_nonces += valid.nonces
        self.valid_distances += valid.dist
        return batch

    def validate(self, nonces: list[int], public_key: str) -> tuple[list[float], list[bool]]:
        """Recompute the distances of nonces for the round's block.

        Args:
            nonces: any number of them.
            public_key: whose nonces they are, which need not be the round's own key.

        Returns:
            The distance of each nonce, and whether it is valid. NaN and infinities are not.

        Raises:
            RuntimeError: there is no round.
        """
        config, target = self._round("No round configured")
        distances = self._forward.distances(config, public_key, target, nonces)
        return distances, [is_valid(distance, config.r_target) for distance in distances]

    def get_status(self) -> dict[str, Any]:
        """Return state and results as JSON-ready values; the lists are copies."""
        return {
            "state": self.state.value,
            "valid_nonces": list(self.valid_nonces),
            "valid_distances": list(self.valid_distances),
            "total_checked": self.stats.total_checked,
            "total_valid": self.stats.total_valid,
            "elapsed_seconds": self.stats.elapsed,
            "rate_per_second": self.stats.rate,
            "total_nonfinite": self.stats.total_nonfinite,
        }

    def _round(self, missing: str = "Round not initialized") -> tuple[PoCConfig, torch.Tensor]:
        if self.config is None or self.target is None:
            raise RuntimeError(missing)
        return self.config, self.target
