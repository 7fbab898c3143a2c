"""The distance scheme on a device: inputs and permutations by seed, and distances from logits."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
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

    _targets: OrderedDict[str, torch.Tensor] = field(default_factory=OrderedDict, init=False)

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
        self._targets.clear()

    def _target(self, block_hash: str) -> torch.Tensor:
        """Return a block's unit target, float32 [vocab], made once for each of the last few blocks."""
        target = self._targets.get(block_hash)
        if target is None:
            target = generate_target(block_hash, self.vocab_size, self.device)
            self._targets[block_hash] = target
            if len(self._targets) > _MAX_TARGETS:
                self._targets.popitem(last=False)
        else:
            self._targets.move_to_end(block_hash)
        return target
