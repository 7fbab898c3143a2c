"""Distances of nonces by forward passes of one fixed shape, on a model as vLLM runs it.

Kernels choose how to split a sum by the shape they are given, so a nonce in a batch of 5 and the same
nonce in a batch of 32 can differ in their last bits. Every pass therefore has the shape [batch_size,
seq_len]; what is missing is filled up with nonces that are thrown away. See docs/protocol.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

from pocqueue.poc.config import PoCConfig
from pocqueue.poc.gpu_random import generate_inputs, logits_to_distances
from pocqueue.poc.nonces import split_range


class ModelConfig(Protocol):
    """What has to be known of a model's configuration."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


class ForwardPass:
    """One model as a function from nonces to distances.

    Args:
        model: called as ``model(input_ids=None, positions=…, inputs_embeds=…)``, the tokens of all
            nonces end to end: positions int64 ``[tokens]``, embeddings ``[tokens, hidden]``; answers
            hidden states ``[tokens, hidden]``. Logits come from its ``compute_logits(hidden_states)``,
            with ``sampling_metadata=None`` where it has that parameter, or from its ``lm_head``.
        model_config: has ``hidden_size`` and ``vocab_size``.
        device: the model's.
        dtype: of its embeddings.
    """

    def __init__(
        self, model: Any, model_config: ModelConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._model = model
        self._model_config = model_config
        self._device = device
        self._dtype = dtype

    def distances(
        self, config: PoCConfig, public_key: str, target: torch.Tensor, nonces: Sequence[int]
    ) -> list[float]:
        """Compute the distances of nonces, blocking until done.

        Args:
            config: the round; its block hash, batch size and sequence length are used.
            public_key: whose nonces they are.
            target: float32 ``[vocab_size]`` on the model's device.
            nonces: any number of them.

        Returns:
            One distance per nonce, in order. NaN where the model gave no finite logits.

        Raises:
            RuntimeError: the model has neither ``compute_logits`` nor ``lm_head``.
            InvalidRound: the model has another number of logits than the target.
        """
        distances: list[float] = []
        for start, stop in split_range(0, len(nonces), config.batch_size):
            wanted = list(nonces[start:stop])
            padding = wanted[-1:] * (config.batch_size - len(wanted))  # thrown away below
            with self._current_device(), torch.inference_mode():
                batch = wanted + padding
                logits = self._last_logits(config, public_key, batch)
                computed = logits_to_distances(config.block_hash, public_key, batch, logits, target)
                distances += computed[: len(wanted)].tolist()
        return distances

    def _last_logits(self, config: PoCConfig, public_key: str, nonces: list[int]) -> torch.Tensor:
        """Run one pass. Returns the logits of each nonce's last token, ``[batch, vocab_size]``."""
        batch, hidden_size = len(nonces), self._model_config.hidden_size
        inputs_embeds = generate_inputs(
            config.block_hash,
            public_key,
            nonces,
            dim=hidden_size,
            seq_len=config.seq_len,
            device=self._device,
            dtype=self._dtype,
        )
        hidden_states = self._model(
            input_ids=None,
            positions=torch.arange(config.seq_len, device=self._device).repeat(batch),
            inputs_embeds=inputs_embeds.view(-1, hidden_size),
        )
        last_hidden = hidden_states.reshape(batch, config.seq_len, -1)[:, -1, :]
        return self._compute_logits(last_hidden)

    def _compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Turn hidden states ``[batch, hidden]`` into logits ``[batch, vocab_size]``."""
        if hasattr(self._model, "compute_logits"):
            compute_logits = self._model.compute_logits
            # Older vLLM had this argument, without a default; today's has not.
            if "sampling_metadata" in inspect.signature(compute_logits).parameters:
                logits: torch.Tensor = compute_logits(hidden_states, sampling_metadata=None)
            else:
                logits = compute_logits(hidden_states)
            return logits
        if hasattr(self._model, "lm_head"):
            logits = self._model.lm_head(hidden_states)
            return logits
        raise RuntimeError("Model does not have compute_logits or lm_head")

    def _current_device(self) -> AbstractContextManager[Any]:
        # A thread starts on the first GPU, whichever one the model is on.
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
