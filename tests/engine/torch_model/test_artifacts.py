"""Artifacts of the torch engine against a model computed layer by layer with transformers and torch alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import create_causal_mask

from pocqueue.engine.torch_model.engine import TorchEngine
from pocqueue.poc import artifact
from pocqueue.poc.batch import Batch
from tests.support.factories import make_info

_BLOCK, _KEY, _SEQ_LEN, _HIDDEN = "a block", "a key", 24, 64


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(5)
    config = LlamaConfig(
        hidden_size=_HIDDEN,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        max_position_embeddings=128,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def engine(model: Any) -> TorchEngine:
    info = make_info(
        hidden_size=_HIDDEN, vocab_size=300, max_seq_len=128, num_layers=2, dtype="float32"
    )
    return TorchEngine(model, info)


def batch_of(
    *nonces: int, batch_size: int = 8, block: str = _BLOCK, stronger: bool = False
) -> Batch:
    options = (("k_dim", 12), ("stronger_rng", stronger))
    return Batch(block, _KEY, nonces, batch_size, _SEQ_LEN, "artifact", options)


def _layer_by_layer(model: Any, embeddings: torch.Tensor) -> torch.Tensor:
    """Run the layers one after the other, with a reflection behind each, written out here."""
    positions = torch.arange(_SEQ_LEN).unsqueeze(0)
    body = model.model
    mask = create_causal_mask(
        config=model.config,
        inputs_embeds=embeddings,
        attention_mask=None,
        past_key_values=None,
        position_ids=positions,
    )
    rotary = body.rotary_emb(embeddings, position_ids=positions)
    vectors = artifact.layer_vectors(_BLOCK, 2, _HIDDEN)
    x = embeddings
    for number, layer in enumerate(body.layers):
        x = layer(x, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        v = vectors[number]
        x = x - 2 * (x * v).sum(-1, keepdim=True) * v
    found: torch.Tensor = body.norm(x)[:, -1]
    return found


@pytest.mark.parametrize("stronger", [False, True])
def test_artifacts_are_those_of_a_model_computed_by_hand(
    model: Any, engine: TorchEngine, stronger: bool
) -> None:
    """Bit for bit in float32: inputs, reflections behind both layers, final norm, pick, rotation, float16."""
    nonces = range(100, 108)
    embeddings = artifact.generate_inputs(
        _BLOCK, _KEY, nonces, _HIDDEN, _SEQ_LEN, "cpu", stronger_rng=stronger
    )
    with torch.inference_mode():
        hidden = _layer_by_layer(model, embeddings)
    vectors = artifact.artifact_vectors(hidden, _BLOCK, _KEY, nonces, 12)
    expected = [artifact.encode_vector(vector) for vector in vectors]
    assert engine.values(batch_of(*nonces, stronger=stronger)) == expected


def test_an_artifact_does_not_depend_on_its_company(engine: TorchEngine) -> None:
    together = engine.values(batch_of(*range(8)))
    assert engine.values(batch_of(3)) == together[3:4]
    assert engine.values(batch_of(3, block="another block")) != together[3:4]


def test_reflections_are_gone_after_the_pass(model: Any, engine: TorchEngine) -> None:
    """What the model generates and its distances are the same before and after, also if a pass has failed."""
    distances = Batch(_BLOCK, _KEY, (1, 2), 4, _SEQ_LEN)
    tokens = torch.tensor([[5, 17, 200]])
    before = model.generate(tokens, max_new_tokens=8, do_sample=False), engine.values(distances)
    engine.values(batch_of(1, 2))

    def failing(_layer: int, _x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("in the middle of a pass")

    inputs = torch.zeros(1, _SEQ_LEN, _HIDDEN)
    with pytest.raises(RuntimeError, match="in the middle"):
        engine.forward(inputs, "hidden", failing)
    after = model.generate(tokens, max_new_tokens=8, do_sample=False), engine.values(distances)
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]


def test_hidden_states_that_are_not_finite_have_no_artifact(
    model: Any, engine: TorchEngine
) -> None:
    """Their neighbours have one."""
    norm, calls = model.model.norm, []

    def break_one(_module: Any, _given: Any, output: torch.Tensor) -> torch.Tensor:
        calls.append(output.shape)
        broken = output.clone()
        broken[1, -1, 7] = torch.nan
        return broken

    hook = norm.register_forward_hook(break_one)
    try:
        values = engine.values(batch_of(1, 2, 3))
    finally:
        hook.remove()
    assert calls
    assert [value is None for value in values] == [False, True, False]
