"""The benchmarks' models of random weights, as far as engines meet them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.shapes import SHAPES, write_model
from pocqueue.engine import EngineOptions, load_engine
from pocqueue.engine.stages import count_matmul_parameters
from pocqueue.poc.batch import Batch
from tests.support.factories import make_info

#: The smaller one with two layers of fewer columns: otherwise what is written for it.
REDUCED = replace(
    SHAPES["100m"], hidden_size=64, num_layers=2, intermediate_size=96, vocab_size=500
)


@pytest.mark.parametrize(("name", "millions"), [("100m", 100), ("0.6b", 596)])
def test_the_shapes_have_the_sizes_that_they_are_named_for(name: str, millions: int) -> None:
    """Counted without weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SHAPES[name].config())
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
    shape = SHAPES[name]
    info = make_info(hidden_size=shape.hidden_size, vocab_size=shape.vocab_size)
    counted = count_matmul_parameters(model, info)
    assert counted is not None
    # All but the embedding table and the norms.
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2)
    assert counted.per_token == matrices - counted.last_token


def test_an_engine_loads_what_is_written(tmp_path: Path) -> None:
    """As a model of the operator's own; distances of different nonces are different numbers."""
    folder = write_model(REDUCED, tmp_path / "models" / "reduced")
    assert write_model(REDUCED, folder) == folder
    options = EngineOptions(model=str(folder), device="cpu", state_dir=tmp_path)
    engine = load_engine("torch", options)
    info = engine.info
    assert (info.dtype, info.hidden_size, info.vocab_size) == ("bfloat16", 64, 500)
    distances = engine.values(Batch("block", "key", (0, 1, 2, 3), batch_size=4, seq_len=16))
    engine.close()
    assert all(math.isfinite(distance) and 0 < distance < 2 for distance in distances)
    assert len(set(distances)) == 4


def test_the_same_seed_writes_the_same_model(tmp_path: Path) -> None:
    """Another one writes another."""
    first, second, third = (
        write_model(REDUCED, tmp_path / str(place), seed) for place, seed in enumerate((0, 0, 1))
    )
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, second, third)]
    assert weights[0] == weights[1] != weights[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
