"""The proof's random numbers and its distance, in plain torch, on any device.

This is consensus maths: every node has to get the same numbers, so nothing here may be "improved".
docs/protocol.md states it in words. Faster kernels are judged against these functions.

Murmur3 works on unsigned 32-bit integers, which torch barely supports, so the bits live in int32:
sums and products wrap modulo 2^32 all the same, and the two places where the sign would show (right
shifts and comparison) say how they hide it.

A nonce's numbers never depend on the other nonces of its batch, bit for bit. Batches are worked off
in blocks of rows: small ones on a CPU, where what counts is that a block stays in the cache, large ones
on a GPU, where what counts is the number of launches, within reasonable memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

import torch

from pocqueue.errors import InvalidRound

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


def seed(text: str) -> int:
    """Return the seed of a text: the first 8 hex digits of its SHA-256 (UTF-8); 0 … 2^32 - 1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def hash(seeds: Sequence[int], n: int, device: torch.device | str) -> torch.Tensor:
    """Hash the numbers 0 … n-1 with each seed (Murmur3 of one 4-byte block, no length step).

    Args:
        seeds: one per row; each 0 … 2^32 - 1.
        n: numbers per row; 1 … 2^31.
        device: where to compute.

    Returns:
        int32 ``[len(seeds), n]`` on `device`: the bits of the unsigned hashes.
    """
    device = _resolve(device)
    rows = torch.tensor([_signed(s) for s in seeds], dtype=torch.int32, device=device)
    h = rows.unsqueeze(1) ^ _mixed_counter(n, device)
    _rotate_left_(h, 13)
    h.mul_(5).add_(_N)
    h.bitwise_xor_(_shift_right(h, 16)).mul_(_F1)
    h.bitwise_xor_(_shift_right(h, 13)).mul_(_F2)
    h.bitwise_xor_(_shift_right(h, 16))
    return h


def uniform(seeds: Sequence[int], n: int, device: torch.device | str) -> torch.Tensor:
    """Return n uniform numbers per seed: the hash as float32, divided by 2^32.

    Args:
        seeds: one per row; each 0 … 2^32 - 1.
        n: numbers per row; 1 … 2^31.
        device: where to compute.

    Returns:
        float32 ``[len(seeds), n]`` on `device`, in [0, 1]: 1.0 occurs, as the largest hashes round up.
    """
    bits = hash(seeds, n, device)
    # The two 16-bit halves are exact in float32 and so is their scaling by powers of two; the one
    # rounding, in the sum, is that of converting the whole unsigned integer.
    low = bits.bitwise_and(0xFFFF).to(torch.float32)
    high = _shift_right(bits, 16).to(torch.float32)
    return high.mul_(2.0**-16).add_(low.mul_(2.0**-32))


def normal(seeds: Sequence[int], n: int, device: torch.device | str) -> torch.Tensor:
    """Return n standard normal numbers per seed, by Box-Muller in float32.

    The first half are the cosines and the second half the sines of the same pairs; an odd n leaves
    out the last sine.

    Args:
        seeds: one per row; each 0 … 2^32 - 1.
        n: numbers per row; 1 … 2^31 - 1.
        device: where to compute.

    Returns:
        float32 ``[len(seeds), n]`` on `device`.
    """
    half = (n + 1) // 2
    u = uniform(seeds, 2 * half, device)
    radius = u[:, :half].clamp_(min=_MIN_U1).log_().mul_(-2.0).sqrt_()
    angle = u[:, half:].mul_(2.0 * math.pi)
    return torch.cat((angle.cos().mul_(radius), angle.sin_().mul_(radius)), dim=1)[:, :n]


def generate_inputs(
    block_hash: str,
    public_key: str,
    nonces: Sequence[int],
    dim: int,
    seq_len: int,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Make the input embeddings of nonces.

    Args:
        block_hash: names the block.
        public_key: whose proof this is.
        nonces: one per row; each 0 … 2^63 - 1.
        dim: hidden size of the model; >= 1.
        seq_len: tokens per nonce; >= 1.
        device: where to compute.
        dtype: the model's; the numbers are made in float32 and cast.

    Returns:
        `dtype` ``[len(nonces), seq_len, dim]`` on `device`, contiguous.
    """
    device = _resolve(device)
    seeds = [seed(f"{block_hash}_{public_key}_nonce{nonce}") for nonce in nonces]
    inputs = torch.empty(len(seeds), seq_len * dim, dtype=dtype, device=device)
    block = 2**18 if device.type == "cpu" else 2**24  # numbers: 1 MiB and 64 MiB of float32
    rows_per_block = max(1, block // (seq_len * dim))
    for first in range(0, len(seeds), rows_per_block):
        rows = slice(first, first + rows_per_block)
        inputs[rows] = normal(seeds[rows], seq_len * dim, device)
    return inputs.view(len(seeds), seq_len, dim)


def generate_permutations(
    block_hash: str,
    public_key: str,
    nonces: Sequence[int],
    vocab_size: int,
    device: torch.device | str,
) -> torch.Tensor:
    """Make the permutation of the vocabulary that belongs to each nonce.

    Args:
        block_hash: names the block.
        public_key: whose proof this is.
        nonces: one per row; each 0 … 2^63 - 1.
        vocab_size: logits of the model; >= 1.
        device: where to compute.

    Returns:
        int64 ``[len(nonces), vocab_size]`` on `device`: each row the stable ascending order of the
        unsigned hashes of 0 … vocab_size - 1.
    """
    seeds = [seed(f"{block_hash}_{public_key}_nonce_{nonce}_permutations") for nonce in nonces]
    # Flipping the top bit turns unsigned order into signed order.
    keys = hash(seeds, vocab_size, device).bitwise_xor_(_SIGN_BIT)
    return torch.argsort(keys, dim=1, stable=True)


def generate_target(block_hash: str, vocab_size: int, device: torch.device | str) -> torch.Tensor:
    """Make the target of a block: a random direction among the logits.

    Args:
        block_hash: names the block.
        vocab_size: logits of the model; >= 1.
        device: where to compute.

    Returns:
        float32 ``[vocab_size]`` on `device`, of norm 1.
    """
    target = normal([seed(f"{block_hash}_target")], vocab_size, device)[0]
    return target.div_(torch.linalg.vector_norm(target))


def compute_distances(
    logits: torch.Tensor, permutations: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """Measure how far the permuted unit logits are from the target.

    Args:
        logits: any float ``[batch, vocab_size]``, of the last position; used as float32, unchanged.
        permutations: int64 ``[batch, vocab_size]``, from `generate_permutations`.
        target: float32 ``[vocab_size]``, from `generate_target`. All three on one device.

    Returns:
        float32 ``[batch]`` on that device, in [0, 2]; NaN where logits are all zero or not finite.

    Raises:
        InvalidRound: the model has another number of logits than the round's vocabulary.
    """
    vocab_size = target.shape[-1]
    if logits.shape != permutations.shape or logits.shape[-1] != vocab_size:
        # Checked, because gather() would quietly use the first logits of a longer row.
        raise InvalidRound(
            "vocab_size",
            vocab_size,
            f"the model's logits, {list(logits.shape)}, in the shape of the permutations, "
            f"{list(permutations.shape)}",
        )
    permuted = torch.gather(logits.to(torch.float32), 1, permutations)
    permuted /= torch.linalg.vector_norm(permuted, dim=1, keepdim=True)
    permuted -= target
    distances: torch.Tensor = torch.linalg.vector_norm(permuted, dim=1)
    return distances


def logits_to_distances(
    block_hash: str,
    public_key: str,
    nonces: Sequence[int],
    logits: torch.Tensor,
    target: torch.Tensor,
) -> torch.Tensor:
    """Turn the logits of nonces into their distances: permutation and distance in one step.

    Args:
        block_hash: names the block.
        public_key: whose proof this is.
        nonces: one per row of `logits`.
        logits: any float ``[len(nonces), vocab_size]``, of the last position.
        target: float32 ``[vocab_size]`` on the device of `logits`.

    Returns:
        float32 ``[len(nonces)]`` on that device.

    Raises:
        InvalidRound: `logits` and `target` do not belong to one vocabulary.
    """
    permutations = generate_permutations(
        block_hash, public_key, nonces, target.shape[-1], logits.device
    )
    return compute_distances(logits, permutations, target)


def _resolve(device: torch.device | str) -> torch.device:
    """Return the device with its index, as "cuda" alone means another one in another thread."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


# Half of the hash depends on the counter alone, and a process uses few lengths: seq_len * dim and
# vocab_size of each model, rarely more than a few MB each.
@lru_cache(maxsize=8)
def _mixed_counter(n: int, device: torch.device) -> torch.Tensor:
    """Mix the counter 0 … n-1. Returns int32 ``[n]``, shared: never change it in place."""
    k = torch.arange(n, dtype=torch.int32, device=device)
    k.mul_(_C1)
    _rotate_left_(k, 15)
    return k.mul_(_C2)


def _rotate_left_(x: torch.Tensor, places: int) -> None:
    """Rotate the bits of an int32 tensor of any shape, in place."""
    high = _shift_right(x, 32 - places)
    x.bitwise_left_shift_(places).bitwise_or_(high)


def _shift_right(x: torch.Tensor, places: int) -> torch.Tensor:
    """Shift an int32 tensor right as if unsigned; places 1 … 31. Returns a new tensor."""
    # torch shifts the sign in from the left; the mask takes it out again.
    return x.bitwise_right_shift(places).bitwise_and_((1 << (32 - places)) - 1)
