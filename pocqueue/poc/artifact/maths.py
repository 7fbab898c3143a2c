"""The artifact scheme on a device: inputs by seed, reflections between layers, vectors from hidden states."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from typing_extensions import override

from pocqueue.errors import InvalidRound
from pocqueue.poc.artifact.data import encode
from pocqueue.poc.artifact.seeds import layer_seeds, pick_seeds, rotation_seeds
from pocqueue.poc.artifact.vectors import pseudo_input_ids, reflect, unit_vectors
from pocqueue.poc.batch import Batch
from pocqueue.poc.maths import AfterLayer, Output, SchemeMaths
from pocqueue.poc.seeds import input_words

#: Blocks whose layer vectors are kept: a worker meets few at once, and those of one have some MB at most.
_MAX_BLOCKS = 8


class _Seeds(NamedTuple):
    inputs: list[list[int]]  #: one for each nonce, or eight if the RNG is the stronger one
    picks: list[int]
    rotations: list[int]
    k_dim: int


class _Prepared(NamedTuple):
    dims: torch.Tensor  #: int64 [batch, k_dim]
    steps: torch.Tensor  #: float32 [batch, k_dim - 1, k_dim]


@dataclass(eq=False)
class ArtifactMaths(SchemeMaths):
    """Artifacts of a batch: float32 [batch, k_dim], read as base64 text; None where it is not finite.

    Options of a batch: `k_dim` and `stronger_rng`.
    """

    reads: ClassVar[Output] = "hidden"

    #: By block: the vectors of its layers by number and dtype.
    _layers: OrderedDict[str, dict[tuple[int, torch.dtype], torch.Tensor]] = field(
        default_factory=OrderedDict, init=False
    )

    @override
    def seeds(self, batch: Batch) -> _Seeds:
        names = (batch.block_hash, batch.public_key, batch.nonces)
        options = dict(batch.options)
        k_dim = options["k_dim"]
        words = input_words(*names)
        inputs = words if options["stronger_rng"] else [word[:1] for word in words]
        return _Seeds(inputs, pick_seeds(*names, k_dim), rotation_seeds(*names, k_dim), k_dim)

    @override
    def write_inputs(self, seeds: _Seeds, out: torch.Tensor) -> None:
        # One word a nonce makes one piece, the whole row.
        self.kernels.write_pieces(seeds.inputs, out)

    @override
    def prepare(self, seeds: _Seeds) -> _Prepared:
        k_dim = seeds.k_dim
        dims = self.kernels.pick(seeds.picks, self.hidden_size, k_dim)
        steps = unit_vectors(self.kernels, seeds.rotations, k_dim, self.device)
        return _Prepared(dims, steps.view(len(dims), k_dim - 1, k_dim))

    @override
    def after_layer(self, batch: Batch) -> AfterLayer:
        vectors = self._vectors(batch.block_hash)

        def reflected(layer: int, x: torch.Tensor) -> torch.Tensor:
            key = (layer, x.dtype)
            if key not in vectors:
                seeds = layer_seeds(batch.block_hash, [layer])
                (made,) = unit_vectors(self.kernels, seeds, self.hidden_size, self.device)
                vectors[key] = made.to(x.dtype)
            return reflect(x, vectors[key])

        return reflected

    @override
    def token_ids(self, batch: Batch) -> torch.Tensor:
        names = (batch.block_hash, batch.public_key, batch.nonces)
        return pseudo_input_ids(*names, batch.seq_len, self.vocab_size, self.device)

    @override
    def values(self, batch: Batch, prepared: _Prepared, output: torch.Tensor) -> torch.Tensor:
        if output.shape[1] != self.hidden_size:
            raise InvalidRound(
                "hidden_size",
                self.hidden_size,
                f"that of the model's hidden states, {output.shape[1]}",
            )
        return self.kernels.rotated(output, prepared.dims, prepared.steps)

    @override
    def written(self, rows: list[Any]) -> list[Any]:
        # The first number is NaN if and only if all are.
        return [
            None if row[0] != row[0] else text for row, text in zip(rows, encode(rows), strict=True)
        ]

    @override
    def forget(self) -> None:
        self._layers.clear()

    def _vectors(self, block_hash: str) -> dict[tuple[int, torch.dtype], torch.Tensor]:
        vectors = self._layers.setdefault(block_hash, {})
        self._layers.move_to_end(block_hash)
        if len(self._layers) > _MAX_BLOCKS:
            self._layers.popitem(last=False)
        return vectors
