"""Stages of a batch on small real models, and which of their parameters count."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from typing_extensions import override

from pocqueue.engine.base import EngineInfo
from pocqueue.engine.pipeline import Pipeline
from pocqueue.engine.profiled import STAGES, MatmulParameters
from pocqueue.engine.stages import StageTimer, count_matmul_parameters
from pocqueue.errors import EngineError
from pocqueue.measure.matrix_rate import measure_matrix_rate
from pocqueue.poc.batch import Batch
from pocqueue.poc.kernels.reference import ReferenceKernels
from pocqueue.poc.seeds import input_seeds
from tests.support.factories import make_info

CPU = torch.device("cpu")
BATCH = Batch("block", "key", (0, 1, 2), 4, 5)
INFO = make_info(hidden_size=16, vocab_size=40)


class Journal(ReferenceKernels):
    """The judge; notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.said: list[str] = []

    @override
    def write_inputs(self, seeds: Sequence[int], out: torch.Tensor) -> None:
        self.said.append("inputs")
        super().write_inputs(seeds, out)

    @override
    def distances(
        self, logits: torch.Tensor, prepared: object, target: torch.Tensor
    ) -> torch.Tensor:
        self.said.append("distances")
        return super().distances(logits, prepared, target)


class Model:
    """A function from embeddings to logits that keeps what it was given."""

    def __init__(self) -> None:
        self.inputs: list[torch.Tensor] = []

    def __call__(self, inputs: torch.Tensor, *_given: object) -> torch.Tensor:
        self.inputs.append(inputs.clone())
        return inputs.float().sum(dim=1).repeat(1, 3)[:, : INFO.vocab_size]


def timer(kernels: Journal, forward: Any) -> StageTimer:
    return StageTimer(Pipeline(INFO, CPU, torch.float32, kernels), forward)


def test_a_batch_goes_through_all_stages_as_often_as_asked() -> None:
    """On the inputs of its nonces, filled up to its shape."""
    kernels, model = Journal(), Model()
    found = timer(kernels, model).time_stages(BATCH, 3)
    assert tuple(found) == STAGES
    assert all(seconds > 0 for seconds in found.values())
    assert kernels.said == ["inputs", "distances"] * 3
    wanted = torch.empty(4, 5 * 16)
    ReferenceKernels(CPU).write_inputs(input_seeds("block", "key", [0, 1, 2, 2]), wanted)
    assert torch.equal(model.inputs[0].view(wanted.shape), wanted)


def test_the_model_alone_has_its_inputs_in_memory() -> None:
    """They are made once, and nothing is made of the logits."""
    kernels, model = Journal(), Model()
    assert timer(kernels, model).time_forward(BATCH, 3) > 0
    assert kernels.said == ["inputs"]
    assert len(model.inputs) == 3
    assert torch.equal(model.inputs[0], model.inputs[2])


def test_a_rank_without_logits_measures_no_distances() -> None:
    """As on all but the first of a tensor-parallel group."""
    kernels = Journal()
    found = timer(kernels, lambda *_given: None).time_stages(BATCH, 1)
    assert kernels.said == ["inputs"]
    assert tuple(found) == STAGES


def test_a_batch_without_room_is_refused_with_a_sentence() -> None:
    """The caller may go on with a smaller one."""

    def full(*_given: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    for measure in (timer(Journal(), full).time_stages, timer(Journal(), full).time_forward):
        with pytest.raises(EngineError, match="A batch of 4 x 5 tokens does not fit"):
            measure(BATCH, 1)


def small(kind: type[PreTrainedConfig], **fields: Any) -> tuple[Any, EngineInfo]:
    """Make a model of transformers without memory for its weights, and its description."""
    config = kind(vocab_size=100, **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    hidden = model.get_input_embeddings().weight.shape[1]
    return model, make_info(hidden_size=hidden, vocab_size=100)


SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
}
#: Projections to queries, keys, values and back, in one layer of `SMALL`.
ATTENTION = 32 * 32 + 2 * 32 * 16 + 32 * 32


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_do_not_count_and_the_output_layer_counts_once(tied: bool) -> None:
    """Whether they are one table or two; norms are no matrices."""
    model, info = small(Qwen3Config, **SMALL, tie_word_embeddings=tied)
    counted = count_matmul_parameters(model, info)
    assert counted == MatmulParameters(2 * (ATTENTION + 3 * 32 * 48), 100 * 32)


def test_matrices_that_are_no_linear_layers_count() -> None:
    """GPT-2 has its own kind, and a table of positions."""
    model, info = small(GPT2Config, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    counted = count_matmul_parameters(model, info)
    assert counted == MatmulParameters(2 * (4 * 32 * 32 + 2 * 32 * 128), 100 * 32)


def test_of_a_mixture_the_active_experts_count() -> None:
    """And its router, which every position goes through."""
    model, info = small(
        Qwen3MoeConfig, **SMALL, moe_intermediate_size=24, num_experts=8, num_experts_per_tok=2
    )
    layer = ATTENTION + 32 * 8 + 2 * 3 * 32 * 24
    assert count_matmul_parameters(model, info) == MatmulParameters(2 * layer, 100 * 32)
    model, info = small(MixtralConfig, **SMALL, num_local_experts=4, num_experts_per_tok=1)
    layer = ATTENTION + 32 * 4 + 3 * 32 * 48
    assert count_matmul_parameters(model, info) == MatmulParameters(2 * layer, 100 * 32)


def test_a_mixture_that_does_not_say_counts_all_its_experts() -> None:
    """And says so, as the share is an upper bound then."""
    model, info = small(
        Qwen3MoeConfig, **SMALL, moe_intermediate_size=24, num_experts=8, num_experts_per_tok=2
    )
    model.config = SimpleNamespace()
    layer = ATTENTION + 32 * 8 + 8 * 3 * 32 * 24
    assert count_matmul_parameters(model, info) == MatmulParameters(2 * layer, 100 * 32, True)


class RankLinear(nn.Module):
    """A rank's part of a linear layer as vLLM has it, its weights in a kernel's own memory."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size, self.output_size = 32, 64
        self.input_size_per_partition, self.output_size_per_partition = 32, 16
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)


class Replicated(nn.Module):
    """A linear layer that every rank of vLLM has whole."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size, self.output_size = 32, 8
        self.weight = nn.Parameter(torch.empty(8, 32), requires_grad=False)


class Table(nn.Module):
    """vLLM's embedding table, and output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.num_embeddings = 128
        self.weight = nn.Parameter(torch.empty(128, 32), requires_grad=False)


def test_linear_layers_of_vllm_count_by_their_sizes() -> None:
    """The part of this rank, wherever its weights are."""
    model = nn.ModuleDict({"embed": Table(), "a": RankLinear(), "b": Replicated(), "head": Table()})
    counted = count_matmul_parameters(model, make_info(hidden_size=32, vocab_size=100))
    assert counted == MatmulParameters(32 * 16 + 32 * 8, 100 * 32)


@pytest.mark.parametrize(
    "weights", [torch.zeros(4, 8, dtype=torch.int32), torch.empty(0)], ids=["packed", "moved"]
)
def test_experts_that_cannot_be_counted_are_not(weights: torch.Tensor) -> None:
    """Several numbers in one integer, or a kernel's own copy: no share is better than a wrong one."""
    experts = nn.Module()
    experts.weight = nn.Parameter(weights, requires_grad=False)
    model = nn.ModuleDict({"experts": experts})
    assert count_matmul_parameters(model, INFO) is None


def test_the_matrix_rate_is_measured_on_the_engines_device() -> None:
    """In its dtype. The cores of a CPU are all in it, however many ranks share them."""
    found = measure_matrix_rate(make_info(dtype="float32", tensor_parallel=2), seconds=0.0)
    assert found.flop_per_s > 1e6
    assert found.size in {512, 1024, 2048, 4096, 8192}
    assert (found.dtype, found.num_devices) == ("float32", 1)
