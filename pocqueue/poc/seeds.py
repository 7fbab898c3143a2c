"""The seeds of a proof: which texts are hashed for a block, a nonce and its permutation.

Plain Python without torch; docs/protocol.md has the texts.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable


def seed(text: str) -> int:
    """Return the seed of a text: the first 8 hex digits of its SHA-256 (UTF-8); 0 … 2^32 - 1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def input_seeds(block_hash: str, public_key: str, nonces: Iterable[int]) -> list[int]:
    """Return the seed of each nonce's inputs."""
    return [seed(f"{block_hash}_{public_key}_nonce{nonce}") for nonce in nonces]


def input_words(block_hash: str, public_key: str, nonces: Iterable[int]) -> list[list[int]]:
    """Return the eight seeds of each nonce's inputs by the stronger RNG: its whole SHA-256.

    The first is that of `input_seeds`.
    """
    texts = (f"{block_hash}_{public_key}_nonce{nonce}" for nonce in nonces)
    return [list(struct.unpack(">8I", hashlib.sha256(text.encode()).digest())) for text in texts]


def permutation_seeds(block_hash: str, public_key: str, nonces: Iterable[int]) -> list[int]:
    """Return the seed of each nonce's permutation."""
    return [seed(f"{block_hash}_{public_key}_nonce_{nonce}_permutations") for nonce in nonces]


def target_seed(block_hash: str) -> int:
    """Return the seed of a block's target."""
    return seed(f"{block_hash}_target")
