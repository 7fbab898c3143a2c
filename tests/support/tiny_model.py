"""A real model small enough to run in a millisecond, with the faces that vLLM models have had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from typing_extensions import override

HIDDEN_SIZE = 8
VOCAB_SIZE = 64


@dataclass
class TinyConfig:
    """What the manager asks a model's configuration for."""

    hidden_size: int = HIDDEN_SIZE
    vocab_size: int = VOCAB_SIZE


class TinyModel(nn.Module):
    """Mixes the tokens of each nonce with their positions; logits from ``compute_logits``.

    Attributes:
        shapes: of the embeddings of every pass so far.
    """

    def __init__(self, seq_len: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.seq_len = seq_len
        self.mix = nn.Parameter(torch.randn(HIDDEN_SIZE, HIDDEN_SIZE, generator=generator))
        self.head = nn.Parameter(torch.randn(VOCAB_SIZE, HIDDEN_SIZE, generator=generator))
        self.shapes: list[tuple[int, ...]] = []

    @override
    def forward(
        self, input_ids: None, positions: torch.Tensor, inputs_embeds: torch.Tensor
    ) -> torch.Tensor:
        self.shapes.append(tuple(inputs_embeds.shape))
        weight = (positions + 1).to(inputs_embeds.dtype).unsqueeze(1)
        mixed = torch.tanh(inputs_embeds @ self.mix) * weight
        nonces = mixed.view(-1, self.seq_len, HIDDEN_SIZE)
        return nonces.cumsum(dim=1).reshape(-1, HIDDEN_SIZE)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states @ self.head.T


class OldTinyModel(TinyModel):
    """Wants ``sampling_metadata`` as vLLM models did before 2025."""

    @override
    def compute_logits(  # type: ignore[override]
        self, hidden_states: torch.Tensor, sampling_metadata: Any
    ) -> torch.Tensor:
        assert sampling_metadata is None
        return super().compute_logits(hidden_states)


class NanModel(TinyModel):
    """Gives NaN for the first nonce of each batch and infinity for the second."""

    @override
    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        logits = super().compute_logits(hidden_states)
        logits[0] = torch.nan
        logits[1, 0] = torch.inf
        return logits


class HeadModel(nn.Module):
    """Has an ``lm_head`` and no ``compute_logits``."""

    def __init__(self, seq_len: int) -> None:
        super().__init__()
        self.body = TinyModel(seq_len)

    @override
    def forward(self, **kwargs: Any) -> Any:
        return self.body(**kwargs)

    def lm_head(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.body.compute_logits(hidden_states)
