"""What a round keeps of its valid nonces: all of them, numbered, in little memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from pocqueue.poc.proofs import Proofs
from pocqueue.served.found import BLOCK, MAX_BLOCKS, Found


def filled(num: int, **kwargs: Any) -> Found:
    """Return what has the valid nonces 0, 10, 20 …, found seven at a time."""
    found = Found(**kwargs)
    for start in range(0, num, 7):
        nonces = [10 * n for n in range(start, min(start + 7, num))]
        found.keep(Proofs(nonces, [nonce / 2**20 for nonce in nonces]))
    return found


def read(found: Found, since: int = 0) -> tuple[int, list[int]]:
    """Return the first number and the nonces, whose values are checked."""
    first, blocks = found.valid(since)
    nonces = [nonce for block in blocks for nonce in block.nonces]
    assert [value for block in blocks for value in block.values] == [n / 2**20 for n in nonces]
    return first, nonces


@pytest.mark.parametrize("num", [0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 8, 3 * BLOCK])
def test_all_are_kept(num: int) -> None:
    """However many, in the order found; those from a number on, and none from beyond the last."""
    found = filled(num)
    assert found.stats.total_valid == num
    every = [10 * n for n in range(num)]
    assert read(found) == (0, every)
    for since in {0, 1, num // 2, num - 1, BLOCK, BLOCK + 7, num} - {-1}:
        if since <= num:
            assert read(found, since) == (since, every[since:])
    assert read(found, num + 100) == (num, [])


def test_reading_on_from_the_count_misses_nothing() -> None:
    """`total_valid` is where the next reading begins."""
    found = Found()
    seen: list[int] = []
    for start in range(0, 100, 10):
        found.keep(Proofs(list(range(start, start + 10)), [0.5] * 10))
        first, blocks = found.valid(len(seen))
        assert first == len(seen)
        seen += [nonce for block in blocks for nonce in block.nonces]
    assert seen == list(range(100))


def test_what_was_read_stays_as_it_is() -> None:
    """The search goes on while it is written."""
    found = filled(10)
    _, blocks = found.valid()
    found.keep(Proofs([7], [0.5]))
    assert [len(block.nonces) for block in blocks] == [10]


def test_the_oldest_go_when_memory_is_full() -> None:
    """The numbers of the others stay, and the count."""
    found = filled(5 * BLOCK, max_blocks=2)
    first, nonces = read(found)
    assert first >= 5 * BLOCK - 2 * (BLOCK + 7)
    assert nonces == [10 * n for n in range(first, 5 * BLOCK)]
    assert found.stats.total_valid == 5 * BLOCK
    assert read(found, 1)[0] == first
    assert read(found, first + 5) == (first + 5, nonces[5:])


def test_five_million_fit_and_take_16_bytes_each() -> None:
    """By default; measured on fewer."""
    assert MAX_BLOCKS * BLOCK >= 5_000_000
    tracemalloc.start()
    try:
        found = filled(4 * BLOCK)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 20 * found.stats.total_valid


def test_values_that_are_no_numbers_are_kept_too() -> None:
    """As another proof scheme has them."""
    found = Found(list[float])
    found.keep(Proofs([1, 2], [[0.5, 1.0], [0.25]]))
    _, [block] = found.valid(1)
    assert (list(block.nonces), block.values) == ([2], [[0.25]])
