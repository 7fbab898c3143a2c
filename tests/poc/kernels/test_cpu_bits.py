"""The hash and its inverse in compiled code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from pocqueue.poc.kernels.cpu.bits import unhash, write_hashes
from tests.support.murmur import murmur

words = st.integers(0, 2**32 - 1)


@given(number=words, seed=words)
@example(number=0, seed=0)
@example(number=2**32 - 1, seed=2**32 - 1)
@settings(deadline=None, max_examples=300)
def test_the_number_behind_a_hash_is_found(number: int, seed: int) -> None:
    """For every number of 32 bits, not only those of a vocabulary."""
    assert unhash(np.uint32(murmur(number, seed)), np.uint32(seed)) == number


@pytest.mark.parametrize("first", [0, 1, 2**31 - 3, 2**32 - 5])
def test_hashes_start_at_any_number(first: int) -> None:
    """A chunk in the middle of a row has the hashes of its own numbers."""
    out = np.empty(5, dtype=np.uint32)
    write_hashes(np.uint32(77), first, out)
    assert out.tolist() == [murmur(number, 77) for number in range(first, first + 5)]
