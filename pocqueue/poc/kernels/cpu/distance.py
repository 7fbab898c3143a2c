"""Compiled distances: permutation and distance of a row in one go, the permutation never stored.

The norm of the logits does not depend on their order, so it comes first, and the distance is then
added up as it is defined: the squares of (unit logit - target), in float64. The shorter way, the root of
2 - 2 (unit logits · target), loses digits by subtraction: near distance 0 in float32 it is off by 3e-4,
and by as much in float64 if the norm of the target, 1 only to float32's digits, is taken for 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pocqueue.poc.kernels.cpu.bits import (
    f32,
    f32_array,
    f64,
    float_of,
    i64_array,
    inline,
    inline_sum,
    u16_array,
    u32,
    unhash,
)
from pocqueue.poc.kernels.cpu.normal import BFLOAT16, FLOAT32
from pocqueue.poc.kernels.cpu.permutations import sort_scratch_bytes, sorted_hashes
from pocqueue.poc.kernels.cpu.team import arguments, claim_item, claim_scratch

#: Logits worked on at a time.
_CHUNK = 1024


def distance_scratch_bytes(n: int) -> int:
    """Return what `write_distances` needs of scratch memory."""
    return 4 * _CHUNK + sort_scratch_bytes(n)


def write_distances(job: int) -> None:
    """Write distances; an item is one row.

    Arguments: addresses of the seeds (int64 ``[rows]``), of the logits, of the target (float32 ``[n]``)
    and of the distances (float32 ``[rows]``); n and its digit bits; how logits are stored, and the bytes
    from one row of them to the next.
    """
    item = claim_item(job)
    if item < 0:
        return
    scratch = claim_scratch(job)
    seeds_at, logits_at, target_at, out_at, n, bits, kind, row_bytes = arguments(job, 8)
    target, chunk = f32_array(target_at, n), f32_array(scratch, _CHUNK)
    while item >= 0:
        seed = u32(i64_array(seeds_at, item + 1)[item])
        logits_row = logits_at + item * row_bytes
        total = 0.0
        norm = np.sqrt(_squares(logits_row, kind, n, chunk))
        if 0.0 < norm < np.inf:
            numbers = sorted_hashes(seed, n, bits, scratch + 4 * _CHUNK)
            for first in range(0, n, _CHUNK):
                part = numbers[first : min(first + _CHUNK, n)]
                for i in range(len(part)):
                    part[i] = unhash(part[i], seed)
                permuted = chunk[: len(part)]
                _gather(logits_row, kind, n, part, permuted)
                total += _difference(permuted, 1.0 / norm, target[first : first + len(part)])
        else:
            total = np.nan
        f32_array(out_at, item + 1)[item] = f32(np.sqrt(total))
        item = claim_item(job)


@inline
def _squares(logits_at: int, kind: int, n: int, chunk: Any) -> Any:
    """Add up the squares of a row of logits."""
    if kind == FLOAT32:
        return sum_squares(f32_array(logits_at, n))
    halves = u16_array(logits_at, n)
    total = 0.0
    for first in range(0, n, _CHUNK):
        part = chunk[: min(_CHUNK, n - first)]
        for i in range(len(part)):
            part[i] = _widened(halves[first + i], kind)
        total += sum_squares(part)
    return total


@inline
def _gather(logits_at: int, kind: int, n: int, numbers: Any, out: Any) -> None:
    """Write the logits of these numbers (uint32) as float32."""
    if kind == FLOAT32:
        logits = f32_array(logits_at, n)
        for i in range(len(numbers)):
            out[i] = logits[numbers[i]]
    else:
        halves = u16_array(logits_at, n)
        for i in range(len(numbers)):
            out[i] = _widened(halves[numbers[i]], kind)


@inline_sum
def sum_squares(values: Any) -> Any:
    """Add up the squares of float32 values, in float64."""
    total = 0.0
    for i in range(len(values)):
        total += f64(values[i]) * f64(values[i])
    return total


@inline_sum
def _difference(values: Any, factor: Any, target: Any) -> Any:
    """Add up the squares of (value * factor - target)."""
    total = 0.0
    for i in range(len(values)):
        difference = f64(values[i]) * factor - f64(target[i])
        total += difference * difference
    return total


_FLOAT16_SIZE, _FLOAT16_INF = u32(0x7FFF), u32(0x7C00)
#: 2^(127 - 15): what a float16's exponent is short of in a float32's place.
_OFFSET = f32(2.0**112)


@inline
def _widened(bits: Any, kind: int) -> Any:
    """Return a bfloat16 or float16 as float32; NaN for an infinite float16."""
    word = u32(bits)
    if kind == BFLOAT16:
        return float_of(u32(word << u32(16)))
    size = u32(word & _FLOAT16_SIZE)
    value = float_of(u32(size << u32(13))) * _OFFSET
    value = f32(np.nan) if size >= _FLOAT16_INF else value
    return value if word == size else -value
