"""Compiled permutations: the hashes of a row sorted, and the numbers behind them found again.

A radix sort of the top bits alone, in two passes, from a count of both digits: hashes are as good as
random, so few agree in twice 11 bits (2 % of 151,936), and one look at all neighbours puts those right.
Whatever the hashes, the result is sorted; only the time depends on them.
"""

from __future__ import annotations

from typing import Any

from pocqueue.poc.kernels.cpu.bits import (
    i64,
    i64_array,
    inline,
    u32,
    u32_array,
    unhash,
    write_hashes,
)
from pocqueue.poc.kernels.cpu.team import arguments, claim_item, claim_scratch

#: With more buckets than this the ends of all buckets no longer fit into the nearest caches.
_MAX_DIGIT_BITS = 11


def digit_bits(n: int) -> int:
    """Return the bits of a digit that suit n hashes: both digits tell most of them apart."""
    return min((n.bit_length() + 5) // 2, _MAX_DIGIT_BITS)


def sort_scratch_bytes(n: int) -> int:
    """Return what `sorted_hashes` needs of scratch memory."""
    return 4 * (2 * n + (2 << digit_bits(n)))


def write_permutations(job: int) -> None:
    """Write permutations; an item is one row.

    Arguments: addresses of the seeds (int64 ``[rows]``) and of the permutations (int64 ``[rows, n]``),
    n and its digit bits.
    """
    item = claim_item(job)
    if item < 0:
        return
    scratch = claim_scratch(job)
    seeds_at, out_at, n, bits = arguments(job, 4)
    while item >= 0:
        seed = u32(i64_array(seeds_at, item + 1)[item])
        hashes = sorted_hashes(seed, n, bits, scratch)
        out = i64_array(out_at + 8 * n * item, n)
        for i in range(n):
            out[i] = i64(unhash(hashes[i], seed))
        item = claim_item(job)


@inline
def sorted_hashes(seed: Any, n: int, bits: int, scratch: int) -> Any:
    """Return the hashes of 0 … n-1 in ascending order, uint32 ``[n]``, at the start of `scratch`.

    The next n uint32 there are free for others afterwards.
    """
    hashes, other = u32_array(scratch, n), u32_array(scratch + 4 * n, n)
    size = 1 << bits
    low = u32_array(scratch + 8 * n, size)
    high = u32_array(scratch + 8 * n + 4 * size, size)
    write_hashes(seed, 0, hashes)
    _count(hashes, bits, low, high)
    low_shift, mask = u32(32 - 2 * bits), u32(size - 1)
    for i in range(n):
        h = hashes[i]
        digit = u32(u32(h >> low_shift) & mask)
        place = low[digit]
        low[digit] = u32(place + u32(1))
        other[place] = h
    high_shift = u32(32 - bits)
    for i in range(n):
        h = other[i]
        digit = u32(h >> high_shift)
        place = high[digit]
        high[digit] = u32(place + u32(1))
        hashes[place] = h
    _settle(hashes)
    return hashes


@inline
def _count(hashes: Any, bits: int, low: Any, high: Any) -> None:
    """Write where each bucket starts, for both digits."""
    low_shift, high_shift, mask = u32(32 - 2 * bits), u32(32 - bits), u32(len(low) - 1)
    low[:] = u32(0)
    high[:] = u32(0)
    for i in range(len(hashes)):
        h = hashes[i]
        low[u32(u32(h >> low_shift) & mask)] += u32(1)
        high[u32(h >> high_shift)] += u32(1)
    low_start, high_start = u32(0), u32(0)
    for digit in range(len(low)):
        count = low[digit]
        low[digit] = low_start
        low_start = u32(low_start + count)
        count = high[digit]
        high[digit] = high_start
        high_start = u32(high_start + count)


@inline
def _settle(hashes: Any) -> None:
    """Finish the sort by insertion, which finds little to do."""
    last = hashes[0]
    for i in range(1, len(hashes)):
        h = hashes[i]
        if h > last:
            last = h
            continue
        place = i
        while place > 0 and hashes[place - 1] > h:
            hashes[place] = hashes[place - 1]
            place -= 1
        hashes[place] = h
