"""Compiled choice of the few smallest hashes of a row: one look at each, and hardly ever a second one.

The k smallest so far stand in order. A hash that is not below the last of them is done with, and of n hashes
in random order all but about k ln(n / k) are.
"""

from __future__ import annotations

from pocqueue.poc.kernels.cpu.bits import (
    i64,
    i64_array,
    u32,
    u32_array,
    unhash,
    write_hashes,
)
from pocqueue.poc.kernels.cpu.team import arguments, claim_item, claim_scratch

#: Above this it is faster to sort the row.
MOST_SMALLEST = 64
#: Hashes made at a time, so that they stay in the nearest cache.
_BLOCK = 1024


def smallest_scratch_bytes(k: int) -> int:
    """Return what `write_smallest` needs of scratch memory."""
    return 4 * (_BLOCK + k)


def write_smallest(job: int) -> None:
    """Write the numbers with the smallest hashes, in ascending order of hash; an item is one row.

    Arguments: addresses of the seeds (int64 ``[rows]``) and of the result (int64 ``[rows, k]``), n and k,
    k at most n.
    """
    item = claim_item(job)
    if item < 0:
        return
    scratch = claim_scratch(job)
    seeds_at, out_at, n, k = arguments(job, 4)
    best = u32_array(scratch + 4 * _BLOCK, k)
    while item >= 0:
        seed = u32(i64_array(seeds_at, item + 1)[item])
        # No hash is above this one. One that equals it needs no place: it would be the last of more than k.
        best[:] = u32(0xFFFFFFFF)
        for first in range(0, n, _BLOCK):
            hashes = u32_array(scratch, min(_BLOCK, n - first))
            write_hashes(seed, first, hashes)
            for i in range(len(hashes)):
                h = hashes[i]
                if h >= best[k - 1]:
                    continue
                place = k - 1
                while place > 0 and best[place - 1] > h:
                    best[place] = best[place - 1]
                    place -= 1
                best[place] = h
        out = i64_array(out_at + 8 * k * item, k)
        for i in range(k):
            out[i] = i64(unhash(best[i], seed))
        item = claim_item(job)
