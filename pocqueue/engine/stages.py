"""A batch stage by stage: how long each takes by itself, with the engine's own kernels and model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from pocqueue.engine.base import EngineInfo, first_int
from pocqueue.engine.pipeline import Pipeline
from pocqueue.engine.profiled import STAGES, MatmulParameters
from pocqueue.poc.batch import Batch
from pocqueue.poc.maths import Forward

#: What configurations call the number of experts, and of those that one position goes through.
_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_ACTIVE_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk")
#: Modules that every position goes through, wherever a runtime keeps them.
_NO_EXPERT = {"gate", "router", "shared_expert", "shared_experts"}


class StageTimer:
    """Times the parts of one model's batches. For the engine's own thread; see `profiled.Timer`.

    Holds no buffers between two calls.

    Args:
        pipeline: of the engine.
        forward: the model; see `poc.maths.Forward`.
        model: of transformers or vLLM, to count its parameters.
    """

    def __init__(self, pipeline: Pipeline, forward: Forward, model: Any = None) -> None:
        self._pipeline = pipeline
        self._forward = forward
        self._model = model

    @torch.inference_mode()
    def time_stages(self, batch: Batch, num_batches: int) -> dict[str, float]:
        """Return median seconds by stage."""
        found: dict[str, list[float]] = {stage: [] for stage in STAGES}
        with self._with_inputs(batch) as inputs:
            for _ in range(num_batches):
                marks = self._run(batch.padded(), inputs)
                for stage, (begin, end) in zip(STAGES, pairwise(marks), strict=True):
                    found[stage].append(end - begin)
        return {stage: statistics.median(seconds) for stage, seconds in found.items()}

    @torch.inference_mode()
    def time_forward(self, batch: Batch, num_batches: int) -> float:
        """Return the seconds of so many passes."""
        maths = self._pipeline.maths(batch.scheme)
        with self._with_inputs(batch) as inputs:
            maths.write_inputs(maths.seeds(batch.padded()), inputs.view(batch.batch_size, -1))
            began = self._now()
            after_layer, ids = maths.after_layer(batch), partial(maths.token_ids, batch.padded())
            for _ in range(num_batches):
                # Not freed before the next: a pipeline holds logits, too, while the next pass runs.
                output = self._forward(inputs, maths.reads, after_layer, ids)
            took = self._now() - began
            del output
        return took

    def num_matmul_parameters(self) -> MatmulParameters | None:
        """Count the parameters that positions are multiplied with."""
        return count_matmul_parameters(self._model, self._pipeline.info)

    @contextmanager
    def _with_inputs(self, batch: Batch) -> Iterator[torch.Tensor]:
        # The buffers of a batch would be held beside these.
        self._pipeline.forget()
        with self._pipeline.enough_memory(batch):
            yield self._pipeline.new_inputs(batch)

    def _run(self, batch: Batch, inputs: torch.Tensor) -> list[float]:
        """Run one batch; return when it began and when each stage ended."""
        maths = self._pipeline.maths(batch.scheme)
        marks = [self._now()]
        seeds = maths.seeds(batch)
        marks.append(self._now())
        maths.write_inputs(seeds, inputs.view(batch.batch_size, -1))
        marks.append(self._now())
        ids = partial(maths.token_ids, batch)
        output = self._forward(inputs, maths.reads, maths.after_layer(batch), ids)
        marks.append(self._now())
        if output is not None:
            maths.values(batch, maths.prepare(seeds), output).tolist()
        return [*marks, self._now()]

    def _now(self) -> float:
        """Return the time, once the device has done all it was given."""
        synchronize(self._pipeline.device)
        return time.perf_counter()


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all it was given; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def count_matmul_parameters(model: Any, info: EngineInfo) -> MatmulParameters | None:
    """Count the parameters of a model, or of a rank's part of one, that positions are multiplied with.

    Linear layers count by their sizes: their weights may be packed, or moved into a kernel's own memory.
    Of a mixture of experts, those count that one position goes through. Embeddings of any kind are
    looked up, not multiplied. The output layer counts for the last position, and whole, on any rank.

    Args:
        model: of transformers or vLLM.
        info: says how large the output layer is.

    Returns:
        None if weights that are no linear layer are packed or moved, so that their number is unknown.
    """
    active_share, known = _active_share(getattr(model, "config", None))
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    total, has_experts = 0.0, False
    for name, module in model.named_modules():
        # Tables and vLLM's output layer know how many embeddings they have.
        if module is head or hasattr(module, "num_embeddings"):
            continue
        count = _matrix_elements(module)
        if count is None:
            return None
        parts = set(name.split("."))
        if count and "experts" in parts and not parts & _NO_EXPERT:
            has_experts = True
            count *= active_share
        total += count
    last_token = info.vocab_size * info.hidden_size
    return MatmulParameters(round(total), last_token, has_experts and not known)


def _matrix_elements(module: Any) -> float | None:
    """Return how many elements a module's own matrices have; None if that cannot be seen."""
    sizes = _linear_sizes(module)
    if sizes is not None:
        return float(sizes[0] * sizes[1])
    total = 0
    for weight in module.parameters(recurse=False):
        if not weight.is_floating_point() or weight.numel() == 0:
            return None
        if weight.dim() >= 2:
            total += weight.numel()
    return float(total)


def _linear_sizes(module: Any) -> tuple[int, int] | None:
    """Return inputs and outputs of a linear layer: of torch's, or of a rank's part of vLLM's."""
    for inputs, outputs in (
        ("in_features", "out_features"),
        ("input_size_per_partition", "output_size_per_partition"),
        ("input_size", "output_size"),
    ):
        sizes = getattr(module, inputs, None), getattr(module, outputs, None)
        if type(sizes[0]) is int and type(sizes[1]) is int:
            return sizes[0], sizes[1]
    return None


def _active_share(config: Any) -> tuple[float, bool]:
    """Return the share of experts that a position goes through, and whether the configuration says so."""
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    num = first_int(config, *_NUM_EXPERTS)
    active = first_int(config, *_ACTIVE_EXPERTS)
    if num is None or active is None or not 1 <= active <= num:
        return 1.0, False
    return active / num, True
