"""The sort itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pocqueue.poc.kernels.cpu.permutations import digit_bits, sort_scratch_bytes, sorted_hashes
from tests.support.murmur import murmur


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 600), bits=st.integers(1, 11))
@settings(deadline=None, max_examples=100)
def test_hashes_are_sorted_whatever_the_digits(seed: int, n: int, bits: int) -> None:
    """Digits that tell few hashes apart cost time, not the order."""
    scratch = np.zeros(2 * n + (2 << bits), dtype=np.uint32)
    got = sorted_hashes(np.uint32(seed), n, bits, scratch.ctypes.data)
    assert got.tolist() == sorted(murmur(number, seed) for number in range(n))


@pytest.mark.parametrize(
    ("n", "bits"), [(1, 3), (2, 3), (1024, 8), (32_000, 10), (151_936, 11), (10**7, 11)]
)
def test_two_digits_tell_most_hashes_apart(n: int, bits: int) -> None:
    """At least 32 places for each hash, as far as the caches allow."""
    assert digit_bits(n) == bits
    assert sort_scratch_bytes(n) == 8 * n + 8 * 2**bits
