"""Compiled rows of normal numbers: hash, Box-Muller and cast, a chunk at a time.

The steps are loops of their own over a chunk that stays in the nearest cache: short loops keep a core
busier than one long one. Logarithm, sine and cosine are polynomials, minimax fits of relative error
below 2^-26, so that hardly more than the rounding of the last step is left.

The reference rounds the angle 2 pi u2 to float32 before it takes its sine. So the sine has to be that of
the rounded angle, and taking a multiple of pi / 2 off it must not round once more: what that would
lose is carried along in `low`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pocqueue.poc.kernels.cpu.bits import (
    bits_of,
    f32,
    f32_array,
    float_of,
    i32,
    i64_array,
    inline,
    u16,
    u16_array,
    u32,
    write_hashes,
)
from pocqueue.poc.kernels.cpu.team import arguments, claim_item, claim_scratch

#: How numbers are stored.
FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
#: Pairs of normal numbers worked on at a time.
CHUNK = 1024
#: Pairs that a thread claims at a time, some 20 µs of work; whole chunks.
BLOCK = 16 * CHUNK
#: What `write_normals` needs of scratch memory: cosines and sines of a chunk.
SCRATCH_BYTES = 2 * CHUNK * 4

# Uniform numbers are hashes over 2^32; here they stay hashes, and these constants make up for it.
_MIN_U1 = f32(1e-10) * f32(2.0**32)
_RADIANS = f32(2 * math.pi) * f32(2.0**-32)

_ONE, _HALF, _MINUS_TWO = f32(1), f32(0.5), f32(-2)
_SQRT_HALF_BITS = i32(0x3F3504F3)
# ln 2 and pi / 2 in parts; products of small integers with all but the last parts are exact.
_LN2_1, _LN2_2 = (f32(float.fromhex(part)) for part in ("0x1.62e4p-1", "0x1.7f7d1cp-20"))
_QUARTER_1, _QUARTER_2, _QUARTER_3 = (
    f32(float.fromhex(part)) for part in ("0x1.921fcp+0", "-0x1.5777ap-21", "-0x1.73dcb4p-43")
)
_QUARTERS = f32(2 / math.pi)
#: Adding it rounds a small float32 to an integer, which is then in the lowest bits.
_ROUNDER = f32(1.5 * 2**23)

# ln(1 + f) = f - f^2/2 + f^3 (…) for sqrt(1/2) <= 1 + f <= sqrt(2).
_L0, _L1, _L2, _L3 = f32(0.3333333), f32(-0.2500082), f32(0.20001227), f32(-0.16623357)
_L4, _L5, _L6, _L7 = f32(0.14201757), f32(-0.13160183), f32(0.12761576), f32(-0.07634497)
# sin a = a + a^3 (…) and cos a = 1 - a^2/2 + a^4 (…), both in a^2, for |a| <= pi / 4.
_S0, _S1, _S2 = f32(-0.16666655), f32(0.008332156), f32(-0.00019514632)
_K0, _K1, _K2 = f32(0.041666646), f32(-0.001388731), f32(2.4432413e-05)


def write_normals(job: int) -> None:
    """Write rows of normal numbers; an item is one block of one row.

    Arguments: addresses of the seeds (int64 ``[rows]``) and of the numbers (``[rows, n]``), n, and how
    they are stored.
    """
    item = claim_item(job)
    if item < 0:
        return
    scratch = claim_scratch(job)
    seeds_at, out_at, n, kind = arguments(job, 4)
    half = (n + 1) // 2
    blocks = (half + BLOCK - 1) // BLOCK
    row_bytes = n * (4 if kind == FLOAT32 else 2)
    while item >= 0:
        row = item // blocks
        seed = u32(i64_array(seeds_at, row + 1)[row])
        start = item % blocks * BLOCK
        for first in range(start, min(start + BLOCK, half), CHUNK):
            length = min(CHUNK, half - first)
            cosines = f32_array(scratch, length)
            sines = f32_array(scratch + 4 * CHUNK, length)
            _normals(seed, first, half, cosines, sines)
            row_at = out_at + row * row_bytes
            _store(cosines, kind, row_at, first, length)
            # An odd n leaves out the last sine.
            _store(sines, kind, row_at, half + first, min(length, n - half - first))
        item = claim_item(job)


@inline
def _normals(seed: Any, first: int, half: int, cosines: Any, sines: Any) -> None:
    """Write the numbers `first` … and `half` + `first` … of a row; see `reference.normal`."""
    write_hashes(seed, first, cosines.view(u32))
    write_hashes(seed, half + first, sines.view(u32))
    _to_radius(cosines)
    _turn(cosines, sines)


@inline
def _to_radius(u1: Any) -> None:
    """Replace the hashes behind uniform numbers by sqrt(-2 ln u1)."""
    hashes = u1.view(u32)
    for i in range(len(u1)):
        u = max(f32(hashes[i]), _MIN_U1)
        # u = 2^exponent * (1 + f)
        exponent = i32(i32(i32(bits_of(u)) - _SQRT_HALF_BITS) >> i32(23))
        f = float_of(u32(bits_of(u) - u32(exponent << i32(23)))) - _ONE
        exponents = f32(i32(exponent - i32(32)))
        p = ((((((_L7 * f + _L6) * f + _L5) * f + _L4) * f + _L3) * f + _L2) * f + _L1) * f + _L0
        square = f * f
        log = f + ((p * f * square + exponents * _LN2_2) - _HALF * square) + exponents * _LN2_1
        u1[i] = np.sqrt(_MINUS_TWO * log)


@inline
def _turn(radius_to_cosine: Any, u2_to_sine: Any) -> None:
    """Replace radius and the hash behind a uniform number by radius * cos and * sin of 2 pi u2."""
    hashes = u2_to_sine.view(u32)
    for i in range(len(hashes)):
        radius = radius_to_cosine[i]
        angle = f32(hashes[i]) * _RADIANS
        # angle = quarters * pi / 2 + a + low
        rounder = angle * _QUARTERS + _ROUNDER
        quarters = rounder - _ROUNDER
        rest = angle - quarters * _QUARTER_1
        second = quarters * _QUARTER_2
        a = rest - second
        low = ((rest - a) - second) - quarters * _QUARTER_3
        square = a * a
        half_square = _HALF * square
        one_less = _ONE - half_square
        lost = (_ONE - one_less) - half_square
        k = (_K2 * square + _K1) * square + _K0
        cosine = one_less + (lost + (k * (square * square) - a * low))
        s = (_S2 * square + _S1) * square + _S0
        sine = a + (s * (square * a) + low * cosine)
        # Each quarter turn makes the cosine of the sine and the sine of the negative cosine.
        turns = bits_of(rounder)
        is_odd = u32(turns & u32(1)) != 0
        new_cosine = bits_of(sine if is_odd else cosine)
        new_sine = bits_of(cosine if is_odd else sine)
        cosine_sign = u32(u32(u32(turns + u32(1)) & u32(2)) << u32(30))
        sine_sign = u32(u32(turns & u32(2)) << u32(30))
        radius_to_cosine[i] = radius * float_of(u32(new_cosine ^ cosine_sign))
        u2_to_sine[i] = radius * float_of(u32(new_sine ^ sine_sign))


@inline
def _store(numbers: Any, kind: int, row_at: int, first: int, length: int) -> None:
    """Round float32 to nearest, ties to even, and store them from place `first` of a row on."""
    if kind == FLOAT32:
        floats = f32_array(row_at + 4 * first, length)
        for i in range(length):
            floats[i] = numbers[i]
    elif kind == BFLOAT16:
        halves = u16_array(row_at + 2 * first, length)
        for i in range(length):
            bits = bits_of(numbers[i])
            halves[i] = u16(u32(bits + u32(u32(bits >> u32(16)) & u32(1)) + u32(0x7FFF)) >> u32(16))
    else:
        halves = u16_array(row_at + 2 * first, length)
        for i in range(length):
            halves[i] = _float16_bits(bits_of(numbers[i]))


_SIGN = u32(0x80000000)
_HALF_BITS = u32(0x3F000000)
#: The smallest normal float16, 2^-14, as float32.
_NORMAL_BITS = u32(0x38800000)
#: What the exponents' offsets differ by, 127 - 15, where float32 has its exponent.
_OFFSET_BITS = u32(0x38000000)


@inline
def _float16_bits(bits: Any) -> Any:
    """Return the bits of the float16 nearest to a float32 below 65504, ties to even."""
    sign = u32(bits & _SIGN)
    size = u32(bits ^ sign)
    rounded = u32(u32(size - _OFFSET_BITS) + u32(0xFFF) + u32(u32(size >> u32(13)) & u32(1)))
    normal = u32(rounded >> u32(13))
    # Below that, float16 has steps of 2^-24, and so has float32 from 0.5 to 1: the sum rounds.
    small = u32(bits_of(float_of(size) + _HALF) - _HALF_BITS)
    return u16(u32(small if size < _NORMAL_BITS else normal) | u32(sign >> u32(16)))
