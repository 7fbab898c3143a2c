"""A batch stage by stage: how long each takes by itself, with the engine's own kernels and model.

Engines keep a timer and show its methods as their own; see `profiled.Profiled`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from pocqueue.engine.base import EngineInfo
from pocqueue.engine.pipeline import enough_memory
from pocqueue.engine.profiled import STAGES, MatmulParameters
from pocqueue.poc.batch import Batch
from pocqueue.poc.gpu_random import generate_target
from pocqueue.poc.kernels import Kernels, kernels_for
from pocqueue.poc.seeds import input_seeds, permutation_seeds

#: What configurations call the number of experts, and of those that one position goes through.
_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_ACTIVE_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk")
#: Modules that every position goes through, wherever a runtime keeps them.
_NO_EXPERT = {"gate", "router", "shared_expert", "shared_experts"}


class StageTimer:
    """Times the parts of one model's batches on one device. For the engine's own thread.

    Holds no buffers between two calls.

    Args:
        info: the model.
        dtype: of its inputs.
        device: its.
        forward: embeddings [batch, seq_len, hidden] to logits [batch, vocab], or to None on ranks that
            do not get them. It may overwrite the embeddings.
        kernels: the proof's maths; None: what is best on the device.
    """

    def __init__(
        self,
        info: EngineInfo,
        dtype: torch.dtype,
        device: torch.device,
        forward: Callable[[torch.Tensor], torch.Tensor | None],
        kernels: Kernels | None = None,
    ) -> None:
        self._info = info
        self._dtype = dtype
        self._device = device
        self._forward = forward
        self._kernels = kernels or kernels_for(device)

    @torch.inference_mode()
    def time_stages(self, batch: Batch, num_batches: int) -> dict[str, float]:
        """Return median seconds by stage; see `Profiled.time_stages`."""
        batch = batch.padded()
        found: dict[str, list[float]] = {stage: [] for stage in STAGES}
        with enough_memory(self._info, batch):
            inputs = self._buffer(batch)
            target = generate_target(batch.block_hash, self._info.vocab_size, self._device)
            for _ in range(num_batches):
                synchronize(self._device)
                marks = [time.perf_counter()]
                self._run(batch, inputs, target, marks)
                for stage, begin, end in zip(STAGES, marks, marks[1:], strict=False):
                    found[stage].append(end - begin)
        return {stage: statistics.median(seconds) for stage, seconds in found.items()}

    @torch.inference_mode()
    def time_forward(self, batch: Batch, num_batches: int) -> float:
        """Return the seconds of so many passes; see `Profiled.time_forward`."""
        batch = batch.padded()
        with enough_memory(self._info, batch):
            inputs = self._buffer(batch)
            seeds = input_seeds(batch.block_hash, batch.public_key, batch.nonces)
            self._kernels.write_inputs(seeds, inputs.view(batch.batch_size, -1))
            synchronize(self._device)
            began = time.perf_counter()
            for _ in range(num_batches):
                # Not freed before the next: a pipeline holds logits, too, while the next pass runs.
                logits = self._forward(inputs)
            synchronize(self._device)
            took = time.perf_counter() - began
            del logits
        return took

    def _run(
        self, batch: Batch, inputs: torch.Tensor, target: torch.Tensor, marks: list[float]
    ) -> None:
        """Run one batch, noting when each stage ends."""

        def mark() -> None:
            synchronize(self._device)
            marks.append(time.perf_counter())

        names = (batch.block_hash, batch.public_key, batch.nonces)
        for_inputs, for_permutations = input_seeds(*names), permutation_seeds(*names)
        mark()
        self._kernels.write_inputs(for_inputs, inputs.view(batch.batch_size, -1))
        mark()
        logits = self._forward(inputs)
        mark()
        if logits is not None:
            order = self._kernels.prepare(for_permutations, self._info.vocab_size)
            self._kernels.distances(logits, order, target).tolist()
        mark()

    def _buffer(self, batch: Batch) -> torch.Tensor:
        shape = (batch.batch_size, batch.seq_len, self._info.hidden_size)
        return torch.empty(shape, dtype=self._dtype, device=self._device)


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
        None where weights that are no linear layer are packed or moved, so that their number is unknown.
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
    """Return how many elements a module's own matrices have; None where that cannot be seen."""
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
    num = _first_int(config, _NUM_EXPERTS)
    active = _first_int(config, _ACTIVE_EXPERTS)
    if num is None or active is None or not 1 <= active <= num:
        return 1.0, False
    return active / num, True


def _first_int(config: Any, names: tuple[str, ...]) -> int | None:
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if type(value) is int), None)
