"""The reference: an artifact in plain torch, one nonce at a time.

This is consensus maths, as `poc/kernels/reference.py` is: every node has to get the same numbers. docs/protocol.md
states it in words, and the faster functions of `vectors.py` are judged by it.
"""

from __future__ import annotations

import torch

from pocqueue.poc.artifact.seeds import layer_seeds, pick_seeds, rotation_seeds, token_seeds
from pocqueue.poc.kernels.base import TINY
from pocqueue.poc.kernels.reference import hash, normal, permutation
from pocqueue.poc.seeds import input_words


def inputs(block_hash: str, public_key: str, nonce: int, n: int) -> torch.Tensor:
    """Return n normal numbers by the stronger RNG, float32 ``[n]``: eight pieces, each of its own seed."""
    piece = -(-n // 8)
    (words,) = input_words(block_hash, public_key, [nonce])
    pieces = [
        normal(word, min(piece, n - k * piece), "cpu")
        for k, word in enumerate(words)
        if k * piece < n
    ]
    return torch.cat(pieces)


def pick(
    block_hash: str, public_key: str, nonce: int, hidden_size: int, k_dim: int
) -> torch.Tensor:
    """Return the k_dim dimensions with the smallest hashes, int64 ``[k_dim]``, in the network's order.

    Ascending, but that the one with the largest hash of them stands last: the order that the network's GPUs
    happen to give.
    """
    (seed,) = pick_seeds(block_hash, public_key, [nonce], k_dim)
    by_hash = permutation(seed, hidden_size, "cpu")[:k_dim]
    return torch.cat((by_hash[:-1].sort().values, by_hash[-1:]))


def rotation(block_hash: str, public_key: str, nonce: int, k_dim: int) -> torch.Tensor:
    """Return the vectors of the reflections that a rotation consists of, float32 ``[k_dim - 1, k_dim]``."""
    vectors = torch.empty(k_dim - 1, k_dim)
    seeds = rotation_seeds(block_hash, public_key, [nonce], k_dim)
    for row, seed in zip(vectors, seeds, strict=True):
        vector = normal(seed, k_dim, "cpu")
        row.copy_(vector / torch.linalg.vector_norm(vector))
    return vectors


def layers(block_hash: str, num_layers: int, hidden_size: int) -> torch.Tensor:
    """Return the vector of each decoder layer's reflection, float32 ``[num_layers, hidden_size]``."""
    vectors = torch.empty(num_layers, hidden_size)
    for row, seed in zip(vectors, layer_seeds(block_hash, range(num_layers)), strict=True):
        vector = normal(seed, hidden_size, "cpu")
        row.copy_(vector / torch.linalg.vector_norm(vector))
    return vectors


def token_ids(
    block_hash: str, public_key: str, nonce: int, seq_len: int, vocab_size: int
) -> torch.Tensor:
    """Return the pseudo token ids of a nonce, int32 ``[seq_len]``."""
    (seed,) = token_seeds(block_hash, public_key, [nonce])
    unsigned = hash(seed, seq_len, "cpu").to(torch.int64) & 0xFFFFFFFF
    return (unsigned % vocab_size).to(torch.int32)


def reflect(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return x - 2 (x·v) v along the last axis, each step rounded to x's dtype.

    Args:
        x: any float ``[…, n]``; unchanged.
        v: float ``[n]`` of norm 1, cast to x's dtype first.
    """
    v = v.to(x.dtype)
    reflected: torch.Tensor = x - 2 * (x * v).sum(-1, keepdim=True) * v
    return reflected


def artifact(
    hidden: torch.Tensor, block_hash: str, public_key: str, nonce: int, k_dim: int
) -> torch.Tensor:
    """Return the artifact of a nonce before it is rounded, float32 ``[k_dim]``.

    Args:
        hidden: float32 ``[hidden_size]``, of the last position behind the final norm.
    """
    unit = hidden / (torch.linalg.vector_norm(hidden) + TINY)
    x = unit[pick(block_hash, public_key, nonce, len(hidden), k_dim)]
    for v in rotation(block_hash, public_key, nonce, k_dim):
        x = reflect(x, v)
    vector: torch.Tensor = x / (torch.linalg.vector_norm(x) + TINY)
    return vector
