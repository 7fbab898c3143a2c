"""Draws: the nonces that an iteration may try, known to nobody before its slot's beacon.

``p = H("precursor", weights_end ‖ map_hash ‖ beacon)``; the first 8 bytes of SHA-256(p), little-endian,
are the base, and draw j is ``(base + j) mod 2^64`` for j below the allowance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from pocqueue.pouw.wire.hashes import tagged

_NONCES = 2**64
_NONCE_BYTES = 8
#: Multiply-accumulates of the forward pass that a draw stands for, at least.
_WORK_BITS = 16


def allowance(
    sample_bytes: int, num_weights: int, work: int, *, per_byte: int, per_weight: int
) -> int:
    """Return how many draws an iteration has: by the data and the model that it was made with.

    Never more than its arithmetic is worth: else a task of large inputs and no work would mine.

    Args:
        sample_bytes: of all its samples.
        num_weights: of the model.
        work: multiply-accumulates of the forward pass over all its samples.
        per_byte: draws a byte, in 2^-32; the network's parameter.
        per_weight: draws a weight, in 2^-32; the network's parameter.

    Returns:
        At least 1.
    """
    draws = (per_byte * sample_bytes + per_weight * num_weights) >> 32
    return max(1, min(draws, 1 + (work >> _WORK_BITS)))


def base_nonce(weights_end: bytes, map_hash: bytes, beacon: bytes) -> int:
    """Return draw 0 of an iteration, 0 … 2^64 - 1."""
    precursor = tagged("precursor", weights_end, map_hash, beacon)
    return int.from_bytes(hashlib.sha256(precursor).digest()[:_NONCE_BYTES], "little")


def draws(base: int, count: int) -> Iterator[bytes]:
    """Yield the first `count` nonces from a base, as headers have them: 8 bytes, little-endian."""
    for j in range(count):
        yield ((base + j) % _NONCES).to_bytes(_NONCE_BYTES, "little")


def is_allowed(nonce: bytes, base: int, count: int) -> bool:
    """Say whether a nonce is one of the first `count` draws from a base."""
    return (int.from_bytes(nonce, "little") - base) % _NONCES < count
