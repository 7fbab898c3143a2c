"""The distance scheme on a device: inputs and permutations by seed, and distances from logits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from typing_extensions import override

from pocqueue.poc.batch import Batch
from pocqueue.poc.gpu_random import generate_target
from pocqueue.poc.maths import SchemeMaths
from pocqueue.poc.seeds import input_seeds, permutation_seeds

#: Targets kept, one a block: a worker meets few blocks at once, and one target is 0.6 MB at most.
_MAX_TARGETS = 8


class _Seeds(NamedTuple):
    inputs: list[int]
    permutations: list[int]


@dataclass(eq=False)
class DistanceMaths(SchemeMaths):
    """Distances of a batch: float32 [batch], NaN where logits are not finite."""

    def __post_init__(self) -> None:
        make = partial(generate_target, vocab_size=self.vocab_size, device=self.device)
        self._target = lru_cache(_MAX_TARGETS)(make)  #: unit target of a block, float32 [vocab]

    @override
    def seeds(self, batch: Batch) -> _Seeds:
        names = (batch.block_hash, batch.public_key, batch.nonces)
        return _Seeds(input_seeds(*names), permutation_seeds(*names))

    @override
    def write_inputs(self, seeds: _Seeds, out: torch.Tensor) -> None:
        self.kernels.write_inputs(seeds.inputs, out)

    @override
    def prepare(self, seeds: _Seeds) -> Any:
        return self.kernels.prepare(seeds.permutations, self.vocab_size)

    @override
    def values(self, batch: Batch, prepared: Any, output: torch.Tensor) -> torch.Tensor:
        return self.kernels.distances(output, prepared, self._target(batch.block_hash))

    @override
    def forget(self) -> None:
        self._target.cache_clear()
