"""Compiled rotations: from the hidden state of a nonce to its artifact in one go.

As operations of torch on twelve numbers, calls would be nearly all that it costs.
"""

from __future__ import annotations

import numpy as np

from pocqueue.poc.kernels.base import TINY
from pocqueue.poc.kernels.cpu.bits import f32, f32_array, i64_array
from pocqueue.poc.kernels.cpu.distance import sum_squares
from pocqueue.poc.kernels.cpu.team import arguments, claim_item

_TINY = f32(TINY)


def write_rotated(job: int) -> None:
    """Write artifacts; an item is one row.

    Arguments: addresses of the hidden states (float32 ``[rows, n]``), of the picked dimensions (int64
    ``[rows, k]``), of the reflections' vectors (float32 ``[rows, k - 1, k]``) and of the artifacts (float32
    ``[rows, k]``); n and k.
    """
    item = claim_item(job)
    while item >= 0:
        hidden_at, dims_at, vectors_at, out_at, n, k = arguments(job, 6)
        hidden = f32_array(hidden_at + 4 * n * item, n)
        dims = i64_array(dims_at + 8 * k * item, k)
        vectors = f32_array(vectors_at + 4 * (k - 1) * k * item, (k - 1) * k)
        x = f32_array(out_at + 4 * k * item, k)
        norm = f32(np.sqrt(sum_squares(hidden)))
        for i in range(k):
            x[i] = hidden[dims[i]] / (norm + _TINY)
        for first in range(0, len(vectors), k):
            v = vectors[first : first + k]
            product = f32(0)
            for i in range(k):
                product += x[i] * v[i]
            for i in range(k):
                x[i] -= f32(2) * product * v[i]
        length = f32(np.sqrt(sum_squares(x))) + _TINY
        for i in range(k):
            x[i] = x[i] / length if norm < np.inf else f32(np.nan)
        item = claim_item(job)
