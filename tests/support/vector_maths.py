"""The device part of a proof scheme for tests: a nonce's value is a short vector, of its hidden state."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from typing_extensions import override

from pocqueue.poc.batch import Batch
from pocqueue.poc.maths import Output, SchemeMaths
from pocqueue.poc.seeds import input_seeds


class VectorMaths(SchemeMaths):
    """The first `k_dim` numbers, an option of the batch, of the hidden state divided by its norm."""

    reads: ClassVar[Output] = "hidden"

    @override
    def seeds(self, batch: Batch) -> list[int]:
        return input_seeds(batch.block_hash, batch.public_key, batch.nonces)

    @override
    def write_inputs(self, seeds: list[int], out: torch.Tensor) -> None:
        self.kernels.write_inputs(seeds, out)

    @override
    def values(self, batch: Batch, prepared: Any, output: torch.Tensor) -> torch.Tensor:
        k_dim = dict(batch.options)["k_dim"]
        return torch.nn.functional.normalize(output.float(), dim=1)[:, :k_dim]
