"""The seeds of an artifact: which texts are hashed for its dimensions, its rotation, layers and token ids.

Those of inputs are in `poc/seeds.py`. Plain Python without torch; docs/protocol.md has the texts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import sha256

from pocqueue.poc.seeds import seed


def pick_seeds(block_hash: str, public_key: str, nonces: Iterable[int], k_dim: int) -> list[int]:
    """Return the seed of each nonce's choice of dimensions."""
    return [seed(f"{block_hash}_{public_key}_nonce_{nonce}_pick_{k_dim}") for nonce in nonces]


def rotation_seeds(
    block_hash: str, public_key: str, nonces: Iterable[int], k_dim: int
) -> list[int]:
    """Return the seeds of the k_dim - 1 steps of each nonce's rotation, one nonce after the other."""
    steps = [str(step).encode() for step in range(k_dim - 1)]
    digests = []
    for nonce in nonces:
        # As `seed` does it, but what the texts of a nonce have in common is hashed once, and all is read at once: a
        # batch has hundreds.
        start = sha256(f"{block_hash}_{public_key}_nonce_{nonce}_haar_hh_{k_dim}_".encode())
        for step in steps:
            text = start.copy()
            text.update(step)
            digests.append(text.digest())
    return list(struct.unpack(">" + "I28x" * len(digests), b"".join(digests)))


def layer_seeds(block_hash: str, layers: Iterable[int]) -> list[int]:
    """Return the seeds of the reflections behind decoder layers, for all keys and nonces the same."""
    return [seed(f"{block_hash}_layer_{layer}_householder") for layer in layers]


def token_seeds(block_hash: str, public_key: str, nonces: Iterable[int]) -> list[int]:
    """Return the seed of each nonce's pseudo token ids."""
    return [seed(f"{block_hash}_{public_key}_nonce{nonce}_input_ids") for nonce in nonces]
