"""Compiled picks: the few smallest hashes of a row by one look at each, and hardly ever a second one.

The k smallest so far stand in order, and a hash that is not below the last of them is done with. Hashes are as good as
random, so how large the k smallest of n can be is known beforehand, and what is larger is not even put there.
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

#: Above this it is faster to sort the row.
MOST_PICKED = 64
#: Hashes made at a time, so that they stay in the nearest cache.
_BLOCK = 1024
#: Hashes looked at together.
_FEW = 32
#: No hash is above this one. One that equals it needs no place: it would be the last of more than k.
_LARGEST = u32(0xFFFFFFFF)


def pick_scratch_bytes(k: int) -> int:
    """Return what `write_picks` needs of scratch memory."""
    return 4 * (_BLOCK + k)


def write_picks(job: int) -> None:
    """Write the numbers with the smallest hashes, ascending, but the one with the largest of these last; an item is a row.

    Arguments: addresses of the seeds (int64 ``[rows]``) and of the result (int64 ``[rows, k]``), n and k,
    k at most n.
    """
    item = claim_item(job)
    if item < 0:
        return
    scratch = claim_scratch(job)
    seeds_at, out_at, n, k = arguments(job, 4)
    hashes, best = u32_array(scratch, _BLOCK), u32_array(scratch + 4 * _BLOCK, k)
    # Twice as many as are wanted are below, and some more; fewer than wanted once in 30,000 rows.
    likely = u32(min(2**32 * (2 * k + 8) / n, _LARGEST))
    while item >= 0:
        seed = u32(i64_array(seeds_at, item + 1)[item])
        _find(seed, n, likely, hashes, best)
        if best[k - 1] == likely:
            _find(seed, n, _LARGEST, hashes, best)
        out = i64_array(out_at + 8 * k * item, k)
        for i in range(k - 1):
            _insert(out, i, i64(unhash(best[i], seed)))
        out[k - 1] = i64(unhash(best[k - 1], seed))
        item = claim_item(job)


@inline
def _find(seed: Any, n: int, bound: Any, hashes: Any, best: Any) -> None:
    """Write the smallest hashes of 0 … n-1 below a bound, in order; and the bound in place of any that are missing."""
    best[:] = bound
    for first in range(0, n, len(hashes)):
        some = hashes[: min(len(hashes), n - first)]
        write_hashes(seed, first, some)
        for start in range(0, len(some), _FEW):
            few = some[start : start + _FEW]
            # Nearly never so, and seen by vector registers.
            if _least(few) < best[len(best) - 1]:
                for i in range(len(few)):
                    if few[i] < best[len(best) - 1]:
                        _insert(best, len(best) - 1, few[i])


@inline
def _least(hashes: Any) -> Any:
    least = _LARGEST
    for i in range(len(hashes)):
        least = min(least, hashes[i])
    return least


@inline
def _insert(ascending: Any, count: int, number: Any) -> None:
    """Put a number among the first `count`, which stand in order; what is behind them is written over."""
    place = count
    while place > 0 and ascending[place - 1] > number:
        ascending[place] = ascending[place - 1]
        place -= 1
    ascending[place] = number
