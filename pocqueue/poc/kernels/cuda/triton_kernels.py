"""The Triton kernels of the proof's maths; `cuda` launches them.

Promises: a row's numbers depend on its own seed and logits alone, bit for bit, and repeat bit for bit.
Every float32 operation that can round is written out, multiply-adds as `fma`, and compiled with
`enable_fp_fusion=False`, so that compilers have nothing to choose; the one approximate instruction is
followed by a step that rounds correctly (see `_sqrt`).

Written by hand rather than called from libdevice are logarithm, sine and cosine. Triton's `tl.log`,
`tl.sin` and `tl.cos` are libdevice's, accurate but made for every float there is: special cases of the
logarithm, and for each of sine and cosine a reduction of its own with a branch for huge angles. Here
the logarithm's argument is in [1e-10, 1], the angle in [0, 2 pi], and both share one reduction: half
the instructions. The hardware's `lg2.approx`, `sin.approx` and `cos.approx` have an absolute error and
no digits near their zeros. Of 8 million numbers 0.5 in 100,000 round to the bfloat16 beside the reference's
on a CPU, 0.3 beside the reference's with libdevice; 0.5 is what these two differ by.
"""

# mypy: disable-error-code="import-not-found,untyped-decorator,no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

# Murmur3's constants (32-bit variant, x86), A. Appleby, public domain.
_C1 = tl.constexpr(0xCC9E2D51)
_C2 = tl.constexpr(0x1B873593)
_N = tl.constexpr(0xE6546B64)
_F1 = tl.constexpr(0x85EBCA6B)
_F2 = tl.constexpr(0xC2B2AE35)

#: float32(1e-10) * 2^32, the smallest u1 in the units of a hash.
_MIN_HASH = tl.constexpr(0.42949673533439636)
#: Just under the bits of 2/3: mantissas are taken from [2/3, 4/3), so that ln 1 has no error.
_TWO_THIRDS = tl.constexpr(0x3F2AAAAB)
#: float32(-2 ln 2) / 2^23, of an exponent where floats have it; and 32 there.
_LN_2_PER_E = tl.constexpr(-1.6525916635146132e-07)
_E_OF_2_32 = tl.constexpr(float(32 << 23))

#: float32(2 pi) / 2^32, and pi/2 as a sum whose first part has 21 bits: its products by 0 … 4 are exact.
_TWO_PI = tl.constexpr(1.462918119976564e-09)
_HALF_PI_HIGH = tl.constexpr(1.570796012878418)
_HALF_PI_LOW = tl.constexpr(3.1391647326017846e-07)
#: 1.5 * 2^23: added to a small float32, leaves it rounded to an integer in the lowest bits.
_ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def _mix_counter(k):
    """Do the half of the hash that depends on the counter alone. uint32 to uint32."""
    k *= _C1
    k = (k << 15) | (k >> 17)
    return k * _C2


@triton.jit
def _hash(mixed, seed):
    """Do the other half. `mixed` from `_mix_counter`; uint32."""
    h = mixed ^ seed
    h = (h << 13) | (h >> 19)
    h = h * 5 + _N
    h = (h ^ (h >> 16)) * _F1
    h = (h ^ (h >> 13)) * _F2
    return h ^ (h >> 16)


@triton.jit
def _minus_two_log(hash):
    """Return -2 ln u of u = max(hash / 2^32, 1e-10). uint32 to float32."""
    bits = tl.maximum(hash.to(tl.float32), _MIN_HASH).to(tl.int32, bitcast=True)
    # 2^32 u = 2^e * (1 + f) with f in [-1/3, 1/3); e is left where floats have their exponent.
    e = (bits - _TWO_THIRDS) & -0x800000
    f = (bits - e).to(tl.float32, bitcast=True) - 1.0
    # (-2 ln(1 + f) + 2 f) / f^2, a minimax polynomial for the relative error of the logarithm.
    p = tl.fma(f, -0.2805270254611969, 0.30777081847190857)
    p = tl.fma(f, p, -0.2799161672592163)
    p = tl.fma(f, p, 0.3283192217350006)
    p = tl.fma(f, p, -0.40022337436676025)
    p = tl.fma(f, p, 0.5001564025878906)
    p = tl.fma(f, p, -0.6666639447212219)
    p = tl.fma(f, p, 0.9999987483024597)
    p = tl.fma(f, p, -2.0)
    # The second term is -2 ln 2 * (e - 32), exact but for its one rounding.
    return tl.fma(f, p, tl.fma(e.to(tl.float32), _LN_2_PER_E, -_LN_2_PER_E * _E_OF_2_32))


@triton.jit
def _sqrt(x):
    """Return the root of x, 0 or at least 1e-8; correctly rounded but for rare cases, and no branch."""
    # The sum is x itself, but for 0, which rsqrt could not take.
    reciprocal = tl.rsqrt(x + 1e-30)
    root = x * reciprocal
    return tl.fma(tl.fma(-root, root, x), 0.5 * reciprocal, root)


@triton.jit
def _box_muller(hash1, hash2):
    """Turn a pair of hashes into a pair of normal numbers, that of the cosine first. float32."""
    radius = _sqrt(_minus_two_log(hash1))
    turns = hash2.to(tl.float32)
    # The reference's angle, rounding included; its quarter turn, 0 … 4; and the rest r, in [-pi/4, pi/4].
    angle = turns * _TWO_PI
    rounded = tl.fma(turns, 2.0**-30, _ROUNDER)
    quarter = rounded.to(tl.int32, bitcast=True)
    rounded -= _ROUNDER
    r = tl.fma(rounded, -_HALF_PI_HIGH, angle)
    r = tl.fma(rounded, -_HALF_PI_LOW, r)
    s = r * r
    p = tl.fma(s, -0.00019515282474458218, 0.00833216030150652)
    p = tl.fma(s, p, -0.16666655242443085)
    sine = tl.fma(r * s, p, r)
    p = tl.fma(s, 2.44331567955669e-05, -0.0013887316454201937)
    p = tl.fma(s, p, 0.04166664555668831)
    p = tl.fma(s, p, -0.5)
    cosine = tl.fma(s, p, 1.0)
    # Half a turn flips both signs, a quarter turn makes (-sine, cosine) of (cosine, sine).
    radius = radius.to(tl.int32, bitcast=True) ^ ((quarter << 30) & -0x80000000)
    radius = radius.to(tl.float32, bitcast=True)
    odd = (quarter & 1) != 0
    return radius * tl.where(odd, -sine, cosine), radius * tl.where(odd, cosine, sine)


@triton.jit(do_not_specialize=["rows"])
def write_normals(out, seeds, rows, n, half, PAIRS: tl.constexpr, ROWS: tl.constexpr):
    """Fill rows with normal numbers.

    Grid: (ceil(half / PAIRS), ceil(rows / ROWS)). A program makes PAIRS pairs, numbers k and k + half,
    of ROWS rows, which share the counter's half of the hash.

    Args:
        out: float32, bfloat16 or float16 ``[rows, n]``, contiguous.
        seeds: uint32 ``[rows]``.
        rows: of `out`.
        n: numbers in a row; 1 … 2^31 - 1.
        half: ceil(n / 2), an argument of its own so that Triton sees what divides it.
    """
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    mixed1 = _mix_counter(pair.to(tl.uint32))
    # Up to 2^31, which int32 has no number but the bits for.
    mixed2 = _mix_counter((pair + half).to(tl.uint32))
    first = tl.program_id(1) * ROWS
    cosines = out + first.to(tl.int64) * n + pair
    for row in range(first, tl.minimum(first + ROWS, rows)):
        seed = tl.load(seeds + row)
        cosine, sine = _box_muller(_hash(mixed1, seed), _hash(mixed2, seed))
        tl.store(cosines, cosine.to(out.dtype.element_ty), mask=pair < half)
        tl.store(cosines + half, sine.to(out.dtype.element_ty), mask=pair < n - half)
        cosines += n


@triton.jit
def count_buckets(order, counts, seeds, n, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    """Count the keys of each bucket and number each key within its bucket, in no particular order.

    Grid: (ceil(n / BLOCK), rows). A key's bucket is its highest bits, key >> SHIFT.

    Args:
        order: int32 or int64 ``[rows, n]``; gets the number of each key within its bucket.
        counts: int32 ``[rows, 1 + buckets]``, zeros; gets the count of bucket b at 1 + b.
        seeds: uint32 ``[rows]``.
        n: keys in a row; 1 … 2^31 - 1.
    """
    row = tl.program_id(1).to(tl.int64)
    k = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.uint32)
    valid = k < n
    bucket = _hash(_mix_counter(k), tl.load(seeds + row)) >> SHIFT
    counts += row * ((1 << (32 - SHIFT)) + 1) + 1
    number = tl.atomic_add(counts + bucket.to(tl.int32), 1, mask=valid, sem="relaxed")
    tl.store(order + row * n + k, number.to(order.dtype.element_ty), mask=valid)


@triton.jit
def fill_buckets(order, members, starts, seeds, n, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    """Bring the members of each bucket together. Grid and buckets: as of `count_buckets`.

    Args:
        order: from `count_buckets`.
        members: int32 ``[rows, n]``; gets each k at its bucket's start plus its number within it.
        starts: int32 ``[rows, 1 + buckets]``, where each bucket starts and, last, n.
        seeds: uint32 ``[rows]``.
        n: keys in a row; 1 … 2^31 - 1.
    """
    row = tl.program_id(1).to(tl.int64)
    k = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.uint32)
    valid = k < n
    bucket = _hash(_mix_counter(k), tl.load(seeds + row)) >> SHIFT
    starts += row * ((1 << (32 - SHIFT)) + 1)
    place = tl.load(starts + bucket.to(tl.int32), mask=valid, other=0)
    place += tl.load(order + row * n + k, mask=valid, other=0).to(tl.int32)
    tl.store(members + row * n + place, k.to(tl.int32), mask=valid)


@triton.jit
def order_buckets(order, members, starts, seeds, n, SHIFT: tl.constexpr, TILE: tl.constexpr):
    """Sort each bucket: a key's place is the number of smaller keys. Keys differ, as the hash is a bijection.

    Grid: (buckets, rows). A bucket of up to TILE members takes one comparison of a tile with itself;
    a fuller one is right too, only slower.

    Args:
        order: int32 or int64 ``[rows, n]``; gets the permutation.
        members: from `fill_buckets`.
        starts: as of `fill_buckets`.
        seeds: uint32 ``[rows]``.
        n: keys in a row; 1 … 2^31 - 1.
    """
    row = tl.program_id(1).to(tl.int64)
    seed = tl.load(seeds + row)
    starts += row * ((1 << (32 - SHIFT)) + 1) + tl.program_id(0)
    start = tl.load(starts)
    count = tl.load(starts + 1) - start
    MASK: tl.constexpr = (1 << SHIFT) - 1
    members += row * n + start
    order += row * n + start
    for mine in range(0, count, TILE):
        i = mine + tl.arange(0, TILE)
        k = tl.load(members + i, mask=i < count, other=0)
        key = (_hash(_mix_counter(k.to(tl.uint32)), seed) & MASK).to(tl.int32)
        smaller = tl.zeros([TILE], tl.int32)
        for others in range(0, count, TILE):
            j = others + tl.arange(0, TILE)
            other = tl.load(members + j, mask=j < count, other=0)
            other = (_hash(_mix_counter(other.to(tl.uint32)), seed) & MASK).to(tl.int32)
            # What pads the tile is smaller than nothing.
            other = tl.where(j < count, other, 0x7FFFFFFF)
            # Summed along the first axis: within a thread, without exchange between threads.
            smaller -= tl.sum((other[:, None] - key[None, :]) >> 31, axis=0)
        tl.store(order + smaller, k.to(order.dtype.element_ty), mask=i < count)


@triton.jit
def sum_products(
    logits, row_stride, stride, order, target, sums, n, CHUNK: tl.constexpr, BLOCK: tl.constexpr
):
    """Sum what the distance is made of, over CHUNK positions of a row: x * t, x * x and t * t.

    Grid: (ceil(n / CHUNK), rows). In float64, where each product of two float32 is exact.

    Args:
        logits: any float ``[rows, n]``; used as float32.
        row_stride: from one row of `logits` to the next, in elements.
        stride: from one logit to the next.
        order: int32 ``[rows, n]``, the permutations.
        target: float32 ``[n]``.
        sums: float64 ``[rows, 3, chunks]``; gets the sums.
        n: logits in a row; 1 … 2^31 - 1.
    """
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    xt = tl.zeros([BLOCK], tl.float64)
    xx = tl.zeros([BLOCK], tl.float64)
    tt = tl.zeros([BLOCK], tl.float64)
    for first in range(0, CHUNK, BLOCK):
        # Compared as unsigned numbers: what passes 2^31 is too large, not negative.
        i = (chunk * CHUNK + first + tl.arange(0, BLOCK)).to(tl.uint32)
        valid = i < n
        k = tl.load(order + row * n + i, mask=valid, other=0)
        x = tl.load(logits + row * row_stride + k.to(tl.int64) * stride, mask=valid, other=0.0)
        x = x.to(tl.float32).to(tl.float64)
        t = tl.load(target + i, mask=valid, other=0.0).to(tl.float64)
        xt = tl.fma(x, t, xt)
        xx = tl.fma(x, x, xx)
        tt = tl.fma(t, t, tt)
    chunks = tl.num_programs(0)
    sums += row * 3 * chunks + chunk
    tl.store(sums, tl.sum(xt, axis=0))
    tl.store(sums + chunks, tl.sum(xx, axis=0))
    tl.store(sums + 2 * chunks, tl.sum(tt, axis=0))


@triton.jit
def finish_distances(sums, distances, chunks, BLOCK: tl.constexpr):
    """Turn the sums of `sum_products` into distances, always in the same order. Grid: (rows,).

    Args:
        sums: float64 ``[rows, 3, chunks]``.
        distances: float32 ``[rows]``; gets them.
        chunks: of a row.
    """
    row = tl.program_id(0)
    sums += row.to(tl.int64) * 3 * chunks
    xt = tl.zeros([BLOCK], tl.float64)
    xx = tl.zeros([BLOCK], tl.float64)
    tt = tl.zeros([BLOCK], tl.float64)
    for first in range(0, chunks, BLOCK):
        i = first + tl.arange(0, BLOCK)
        xt += tl.load(sums + i, mask=i < chunks, other=0.0)
        xx += tl.load(sums + chunks + i, mask=i < chunks, other=0.0)
        tt += tl.load(sums + 2 * chunks + i, mask=i < chunks, other=0.0)
    norm = tl.sqrt(tl.sum(xx, axis=0))
    # |x / |x| - t|^2. In float32 the difference would lose its digits as it nears 0: 1e-7 of error
    # here is 3e-4 in its root. In float64 it is 1e-15 and 3e-8. All zero or not finite: NaN.
    square = 1.0 + tl.sum(tt, axis=0) - 2.0 * (tl.sum(xt, axis=0) / norm)
    # Rounding can leave the square below 0; not by tl.maximum, which would turn NaN into 0.
    square = tl.where(square < 0.0, 0.0, square)
    tl.store(distances + row, tl.sqrt(square).to(tl.float32))
