"""The fixed-shape forward pass with each kind of model that it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pocqueue.errors import InvalidRound
from pocqueue.poc.config import PoCConfig
from pocqueue.poc.forward import ForwardPass
from pocqueue.poc.gpu_random import generate_inputs, generate_target, logits_to_distances
from tests.support.tiny_model import (
    HIDDEN_SIZE,
    VOCAB_SIZE,
    HeadModel,
    OldTinyModel,
    TinyConfig,
    TinyModel,
)

SEQ_LEN = 5
ROUND = PoCConfig("bh", 1, "pk", 1.4, batch_size=3, seq_len=SEQ_LEN)
CPU = torch.device("cpu")


def distances(model: Any, nonces: list[int], dtype: torch.dtype = torch.float32) -> list[float]:
    target = generate_target("bh", VOCAB_SIZE, CPU)
    return ForwardPass(model, TinyConfig(), CPU, dtype).distances(ROUND, "pk", target, nonces)


@pytest.mark.parametrize("kind", [TinyModel, OldTinyModel, HeadModel])
def test_every_kind_of_model_gives_the_same(kind: type[torch.nn.Module]) -> None:
    """Old and new ``compute_logits`` and a bare ``lm_head``."""
    model = kind(SEQ_LEN)
    assert distances(model, [1, 2, 3, 4]) == distances(TinyModel(SEQ_LEN), [1, 2, 3, 4])


def test_distances_are_those_of_the_last_token() -> None:
    """The same as feeding one nonce by hand and taking its last position."""
    model = TinyModel(SEQ_LEN)
    inputs = generate_inputs("bh", "pk", [7], HIDDEN_SIZE, SEQ_LEN, CPU)[0]
    hidden = model(input_ids=None, positions=torch.arange(SEQ_LEN), inputs_embeds=inputs)
    logits = model.compute_logits(hidden[-1:]).detach()
    target = generate_target("bh", VOCAB_SIZE, CPU)
    expected = logits_to_distances("bh", "pk", [7], logits, target).tolist()
    assert distances(model, [9, 7, 8])[1:2] == pytest.approx(expected, abs=1e-6)


def test_every_pass_has_the_same_shape() -> None:
    """Short batches are padded, long ones split, and the padding is not seen."""
    model = TinyModel(SEQ_LEN)
    one_by_one = [distances(model, [nonce])[0] for nonce in range(7)]
    assert distances(model, list(range(7))) == pytest.approx(one_by_one, abs=1e-6)
    assert set(model.shapes) == {(3 * SEQ_LEN, HIDDEN_SIZE)}
    assert len(model.shapes) == 7 + 3


def test_same_place_repeats_bit_for_bit() -> None:
    """The distance of a nonce does not move with what stands beside it."""
    model = TinyModel(SEQ_LEN)
    assert distances(model, [5, 6, 7])[0] == distances(model, [5])[0] == distances(model, [5, 1])[0]


def test_half_precision_model() -> None:
    """Inputs have the model's dtype; logits are compared in float32."""
    model = TinyModel(SEQ_LEN)
    exact = distances(model, [1, 2])
    rounded = distances(model.to(torch.bfloat16), [1, 2], torch.bfloat16)
    assert rounded == pytest.approx(exact, abs=0.05)
    assert rounded != exact


def test_model_without_logits() -> None:
    """The reference implementation's message."""

    class NoHead:
        def __call__(self, **kwargs: Any) -> Any:
            return kwargs["inputs_embeds"]

    with pytest.raises(RuntimeError, match="Model does not have compute_logits or lm_head"):
        distances(NoHead(), [1])


def test_model_of_another_vocabulary() -> None:
    """Named, rather than compared in part."""
    target = generate_target("bh", VOCAB_SIZE - 1, CPU)
    forward = ForwardPass(TinyModel(SEQ_LEN), TinyConfig(), CPU, torch.float32)
    with pytest.raises(InvalidRound, match="vocab_size"):
        forward.distances(ROUND, "pk", target, [1])
