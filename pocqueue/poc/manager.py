"""A round's book by the names of the reference implementation: its state, nonces, results and clock.

Nothing of the product uses it: workers search with an engine (`workers/range_runner.py`), a served vLLM
with its prover (`served/prover.py`). It is what code that was written against the reference finds.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch

from pocqueue.poc.config import PoCConfig, PoCState
from pocqueue.poc.gpu_random import generate_target
from pocqueue.poc.nonces import nonces_of
from pocqueue.poc.stats import PoCStats

__all__ = ["PoCManager", "PoCStats"]


class ModelConfig(Protocol):
    """What has to be known of a model's configuration."""

    @property
    def vocab_size(self) -> int: ...


class PoCManager:
    """One round at a time, for one thread.

    Args:
        model: its first parameter tells the device.
        model_config: of the model.

    Attributes:
        config: the round; None before the first.
        target: float32 ``[vocab_size]`` on the model's device; None before the first round.
        stats: counters and clock of the round.
        valid_nonces: what was found, in order; with `valid_distances` filled by the caller.
    """

    def __init__(self, model: Any, model_config: ModelConfig) -> None:
        self.model = model
        self.model_config = model_config
        # Taken once: some models hand out an iterator that cannot be started again.
        self.device: torch.device = next(model.parameters()).device
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
        """
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
            InvalidRound: there is no such node, or its nonces are used up, at 2^63.
        """
        config = self._round()
        stop = self._next_index + config.batch_size
        nonces = nonces_of(self._next_index, stop, config.node_id, config.node_count)
        self._next_index = stop
        return list(nonces)

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
        }

    def _round(self) -> PoCConfig:
        if self.config is None:
            raise RuntimeError("Round not initialized")
        return self.config
