"""The proof's random numbers and its distance, by the names of the reference implementation.

The maths is in `pocqueue.poc.kernels`, chosen by device when it is first needed; a nonce's numbers never
depend on the other nonces of its batch, bit for bit. Here texts become seeds. docs/protocol.md states all
of it in words. Nonces are 0 … 2^63 - 1, one for each row; sizes are at least 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pocqueue.poc.kernels import kernels_for
from pocqueue.poc.kernels.base import check_logits
from pocqueue.poc.kernels.reference import distance, hash, norm, normal, uniform
from pocqueue.poc.seeds import input_seeds, input_words, permutation_seeds, seed, target_seed

__all__ = [
    "compute_distances",
    "generate_inputs",
    "generate_permutations",
    "generate_target",
    "hash",
    "logits_to_distances",
    "normal",
    "seed",
    "uniform",
]


def generate_inputs(
    block_hash: str,
    public_key: str,
    nonces: Sequence[int],
    dim: int,
    seq_len: int,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    stronger_rng: bool = False,
) -> torch.Tensor:
    """Make the input embeddings of nonces, in float32, cast to the model's dtype.

    Args:
        stronger_rng: make a row of eight pieces, each by 32 bits of its own; artifacts only.

    Returns:
        `dtype` ``[len(nonces), seq_len, dim]`` on `device`, contiguous.
    """
    inputs = torch.empty(len(nonces), seq_len * dim, dtype=dtype, device=device)
    kernels = kernels_for(inputs.device)
    if stronger_rng:
        kernels.write_pieces(input_words(block_hash, public_key, nonces), inputs)
    else:
        kernels.write_inputs(input_seeds(block_hash, public_key, nonces), inputs)
    return inputs.view(len(nonces), seq_len, dim)


def generate_permutations(
    block_hash: str,
    public_key: str,
    nonces: Sequence[int],
    vocab_size: int,
    device: torch.device | str,
) -> torch.Tensor:
    """Make the permutation of the vocabulary that belongs to each nonce.

    Returns:
        int64 ``[len(nonces), vocab_size]`` on `device`: each row the stable ascending order of the
        unsigned hashes of 0 … vocab_size - 1.
    """
    seeds = permutation_seeds(block_hash, public_key, nonces)
    return kernels_for(device).permutations(seeds, vocab_size)


def generate_target(block_hash: str, vocab_size: int, device: torch.device | str) -> torch.Tensor:
    """Make the target of a block, by the reference: a random direction among the logits.

    Returns:
        float32 ``[vocab_size]`` on `device`, of norm 1.
    """
    target = normal(target_seed(block_hash), vocab_size, device)
    return target / norm(target)


def compute_distances(
    logits: torch.Tensor, permutations: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """Measure how far the permuted unit logits are from the target, by the reference.

    Args:
        logits: any float ``[batch, vocab_size]``, of the last position; used as float32, unchanged.
        permutations: int64 ``[batch, vocab_size]``.
        target: float32 ``[vocab_size]``. All three on one device.

    Returns:
        float32 ``[batch]`` on that device, in [0, 2]; NaN if logits are all zero or not finite.

    Raises:
        InvalidRound: the model has another number of logits than the round's vocabulary.
    """
    check_logits(logits, len(permutations), target)
    check_logits(permutations, len(logits), target)
    distances = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    for i, (row, permutation) in enumerate(zip(logits, permutations, strict=True)):
        distances[i] = distance(row, permutation, target)
    return distances


def logits_to_distances(
    block_hash: str,
    public_key: str,
    nonces: Sequence[int],
    logits: torch.Tensor,
    target: torch.Tensor,
) -> torch.Tensor:
    """Turn the logits of nonces into their distances: permutation and distance in one step.

    Arguments, result and errors are those of `compute_distances`.
    """
    kernels = kernels_for(logits.device)
    prepared = kernels.prepare(permutation_seeds(block_hash, public_key, nonces), len(target))
    return kernels.distances(logits, prepared, target)
