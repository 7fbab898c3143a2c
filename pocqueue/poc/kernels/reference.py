"""The reference: the proof's random numbers and its distance in plain torch, one nonce at a time.

This is consensus maths: every node has to get the same numbers, so nothing here may be "improved".
docs/protocol.md states it in words. It runs on any device, and every faster kernel is judged by it.

Murmur3 works on unsigned 32-bit integers, which torch barely supports, so the bits live in int32:
sums and products wrap modulo 2^32 all the same, and the two places where the sign would show (right
shifts and comparison) say how they hide it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import override

from pocqueue.poc.kernels.base import Kernels


def _signed(bits: int) -> int:
    """Return the int32 with the bits of this unsigned 32-bit integer."""
    return bits - 2**32 if bits >= 2**31 else bits


# Murmur3's constants (32-bit variant, x86), A. Appleby, public domain.
_C1 = _signed(0xCC9E2D51)
_C2 = 0x1B873593
_N = _signed(0xE6546B64)
_F1 = _signed(0x85EBCA6B)
_F2 = _signed(0xC2B2AE35)
_SIGN_BIT = -(2**31)

#: Smallest u1 of the Box-Muller step, which keeps the logarithm finite.
_MIN_U1 = 1e-10


def hash(seed: int, n: int, device: torch.device | str) -> torch.Tensor:
    """Hash the numbers 0 … n-1 (Murmur3 of one 4-byte block, no length step).

    Args:
        seed: 0 … 2^32 - 1.
        n: 1 … 2^31.
        device: where to compute.

    Returns:
        int32 ``[n]`` on `device`: the bits of the unsigned hashes.
    """
    k = torch.arange(n, dtype=torch.int32, device=device) * _C1
    k = _rotate_left(k, 15) * _C2
    h = _rotate_left(k ^ _signed(seed), 13) * 5 + _N
    h = (h ^ _shift_right(h, 16)) * _F1
    h = (h ^ _shift_right(h, 13)) * _F2
    return h ^ _shift_right(h, 16)


def uniform(seed: int, n: int, device: torch.device | str) -> torch.Tensor:
    """Return n uniform numbers: the hashes as float32, divided by 2^32; arguments as for `hash`.

    Returns:
        float32 ``[n]`` on `device`, in [0, 1]: 1.0 occurs, as the largest hashes round up.
    """
    bits = hash(seed, n, device)
    # The two 16-bit halves are exact in float32 and so is their scaling by powers of two; the one
    # rounding, in the sum, is that of converting the whole unsigned integer.
    high = _shift_right(bits, 16).to(torch.float32) * 2.0**-16
    low = (bits & 0xFFFF).to(torch.float32) * 2.0**-32
    return high + low


def normal(seed: int, n: int, device: torch.device | str) -> torch.Tensor:
    """Return n standard normal numbers, by Box-Muller in float32.

    The first half are the cosines and the second half the sines of the same pairs; an odd n leaves
    out the last sine.

    Args:
        seed: 0 … 2^32 - 1.
        n: 1 … 2^31 - 1.
        device: where to compute.

    Returns:
        float32 ``[n]`` on `device`.
    """
    half = (n + 1) // 2
    u = uniform(seed, 2 * half, device)
    u1, u2 = u[:half].clamp(min=_MIN_U1), u[half:]
    radius = torch.sqrt(-2.0 * torch.log(u1))
    angle = (2.0 * math.pi) * u2
    return torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)))[:n]


def permutation(seed: int, vocab_size: int, device: torch.device | str) -> torch.Tensor:
    """Return the stable ascending order of the unsigned hashes of 0 … vocab_size - 1; see `hash`.

    Returns:
        int64 ``[vocab_size]`` on `device`.
    """
    # Flipping the top bit turns unsigned order into signed order.
    return torch.argsort(hash(seed, vocab_size, device) ^ _SIGN_BIT, stable=True)


def distance(logits: torch.Tensor, permutation: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Measure how far the permuted unit logits are from the target.

    Args:
        logits: any float ``[vocab_size]``, of the last position; used as float32, unchanged.
        permutation: int64 ``[vocab_size]``.
        target: float32 ``[vocab_size]``. All three on one device.

    Returns:
        float32 ``[]`` on that device, in [0, 2]; NaN if logits are all zero or not finite.
    """
    permuted = logits.to(torch.float32)[permutation]
    return norm(permuted / norm(permuted) - target)


def norm(vector: torch.Tensor) -> torch.Tensor:
    """Return the norm of a float32 vector, float32 ``[]``, its squares added up in float64.

    torch's float32 sums on a CPU are off by 4e-6 of the norm at 151,936 logits, on CUDA by 1e-7.
    """
    result: torch.Tensor = torch.linalg.vector_norm(vector, dtype=torch.float64)
    return result.to(torch.float32)


class ReferenceKernels(Kernels):
    """The reference behind the interface of the fast kernels, for devices that have none."""

    name = "reference"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @override
    def write_inputs(self, seeds: Sequence[int], out: torch.Tensor) -> None:
        for row, seed in zip(out, seeds, strict=True):
            row.copy_(normal(seed, len(row), self._device))

    @override
    def permutations(self, seeds: Sequence[int], vocab_size: int) -> torch.Tensor:
        out = torch.empty(len(seeds), vocab_size, dtype=torch.int64, device=self._device)
        for row, seed in zip(out, seeds, strict=True):
            row.copy_(permutation(seed, vocab_size, self._device))
        return out

    @override
    def prepare(self, seeds: Sequence[int], vocab_size: int) -> Any:
        return list(seeds)

    @override
    def _distances(self, logits: torch.Tensor, prepared: Any, target: torch.Tensor) -> torch.Tensor:
        out = torch.empty(len(logits), dtype=torch.float32, device=self._device)
        for i, (row, seed) in enumerate(zip(logits, prepared, strict=True)):
            out[i] = distance(row, permutation(seed, len(target), self._device), target)
        return out


def _rotate_left(x: torch.Tensor, places: int) -> torch.Tensor:
    """Rotate the bits of an int32 tensor of any shape."""
    return (x << places) | _shift_right(x, 32 - places)


def _shift_right(x: torch.Tensor, places: int) -> torch.Tensor:
    """Shift an int32 tensor right as if unsigned; places 1 … 31."""
    # torch shifts the sign in from the left; the mask takes it out again.
    return (x >> places) & ((1 << (32 - places)) - 1)
