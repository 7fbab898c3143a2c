"""What compiled code is made of: 32-bit words, memory by address, claims, the hash and its inverse.

numba computes integers with 64 bits wherever it can, and LLVM's vectoriser then does so too; `times`
and the casts keep it at 32. The hash is a bijection of 32 bits (every step of it can be undone), so
hashes are never equal and sorted ones need not carry their numbers along: `unhash` finds them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

_Function = TypeVar("_Function", bound=Callable[..., Any])

u16 = np.uint16
u32 = np.uint32
i32 = np.int32
i64 = np.int64
f32 = np.float32
f64 = np.float64

#: Of compiled functions. `contract` lets a product and a sum round once. All of fast-math would be off
#: by up to 420 units in the last place where numbers are near zero.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


def inline(function: _Function) -> _Function:
    """Let compiled code call this function."""
    return cast("_Function", numba.njit(**OPTIONS)(function))


def inline_sum(function: _Function) -> _Function:
    """Let compiled code call this function, and add up in the order that suits the vector registers.

    The order is fixed when it is compiled.
    """
    options = {**OPTIONS, "fastmath": {"contract", "reassoc"}}
    return cast("_Function", numba.njit(**options)(function))


def _times(context: Any, a: Any, b: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.mul(*values)

    return types.uint32(types.uint32, types.uint32), emit


def _bitcast(given: Any, wanted: Any) -> Any:
    def cast(context: Any, value: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.bitcast(values[0], context.get_value_type(wanted))

        return wanted(given), emit

    return intrinsic(cast)


def _claim(context: Any, counter: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", values[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.CPointer(types.int64)), emit


def _pointer(kind: Any) -> Any:
    def at(context: Any, address: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(types.CPointer(kind)))

        return types.CPointer(kind)(types.int64), emit

    return intrinsic(at)


#: times(a, b): product of two uint32 modulo 2^32.
times = intrinsic(_times)
#: bits_of(x): the bits of a float32, as uint32.
bits_of = _bitcast(types.float32, types.uint32)
#: float_of(bits): the float32 of these bits.
float_of = _bitcast(types.uint32, types.float32)
#: claim(pointer): add 1 to the int64 there, atomically; returns what was there before.
claim = intrinsic(_claim)
_i64_at = _pointer(types.int64)


def _array(kind: Any) -> Callable[[int, int], Any]:
    at = _pointer(kind)

    @inline
    def array(address: int, n: int) -> Any:
        return carray(at(address), n)

    return array


#: u16_array(address, n): the n uint16 at an address, as an array that owns nothing; the others alike.
u16_array = _array(types.uint16)
u32_array = _array(types.uint32)
i64_array = _array(types.int64)
f32_array = _array(types.float32)


@inline
def claim_at(address: int) -> Any:
    """Take the next number from the int64 counter at an address, which other threads share."""
    return claim(_i64_at(address))


# Murmur3's constants (32-bit variant, x86), A. Appleby, public domain; below them their inverses
# modulo 2^32.
_C1, _C2 = u32(0xCC9E2D51), u32(0x1B873593)
_N = u32(0xE6546B64)
_F1, _F2 = u32(0x85EBCA6B), u32(0xC2B2AE35)
_INV_C1, _INV_C2, _INV_5, _INV_F1, _INV_F2 = (
    u32(pow(int(factor), -1, 2**32)) for factor in (_C1, _C2, 5, _F1, _F2)
)


@inline
def _rotated_left(x: Any, places: int) -> Any:
    return u32(u32(x << u32(places)) | u32(x >> u32(32 - places)))


@inline
def write_hashes(seed: Any, first: int, out: Any) -> None:
    """Hash the numbers from `first` on into `out`, uint32; see `reference.hash`."""
    # k * C1 of consecutive k: adding saves a product, and keeps the vectoriser at 32 bits.
    product = times(u32(first), _C1)
    for i in range(len(out)):
        k = times(_rotated_left(product, 15), _C2)
        product = u32(product + _C1)
        h = u32(times(_rotated_left(u32(seed ^ k), 13), u32(5)) + _N)
        h = times(u32(h ^ u32(h >> u32(16))), _F1)
        h = times(u32(h ^ u32(h >> u32(13))), _F2)
        out[i] = u32(h ^ u32(h >> u32(16)))


@inline
def unhash(h: Any, seed: Any) -> Any:
    """Return the number with this hash, uint32: the steps of the hash undone, last one first."""
    h = times(u32(h ^ u32(h >> u32(16))), _INV_F2)
    # x ^= x >> 13 is undone in two steps, as 13 + 13 bits do not reach the last 6.
    h = u32(h ^ u32(h >> u32(13)))
    h = times(u32(h ^ u32(h >> u32(26))), _INV_F1)
    h = u32(h ^ u32(h >> u32(16)))
    k = u32(_rotated_left(times(u32(h - _N), _INV_5), 19) ^ seed)
    return times(_rotated_left(times(k, _INV_C2), 17), _INV_C1)
