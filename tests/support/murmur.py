"""The hash of the proof with Python's unbounded integers."""

from __future__ import annotations


def murmur(k: int, seed: int) -> int:
    """Hash one number as DESIGN.md says it."""
    mask = 0xFFFFFFFF

    def rotl(x: int, places: int) -> int:
        return (x << places | x >> (32 - places)) & mask

    k = rotl(k * 0xCC9E2D51 & mask, 15) * 0x1B873593 & mask
    h = (rotl(seed ^ k, 13) * 5 + 0xE6546B64) & mask
    h = (h ^ h >> 16) * 0x85EBCA6B & mask
    h = (h ^ h >> 13) * 0xC2B2AE35 & mask
    return h ^ h >> 16
