"""The difficulty: equal to what Bitcoin Cash published, and steady where the network's work changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pocqueue.pouw.chain.difficulty import (
    FOUNDING_TARGET,
    asert,
    next_clock,
    next_target,
    weight,
)
from pocqueue.pouw.chain.records import Clock
from tests.pouw.support import GENESIS

# Test vectors of aserti3-2d (qa-assets of Bitcoin Cash Node): of each run its first target, the time of its
# first block's parent and its height, then heights, times and targets. Targets are in Bitcoin's compact form.
RUNS = {
    "run02: steady": (0x1A2B3C4D, 0, 1, [(2, 1200, 0x1A2B3C4D), (11, 6600, 0x1A2B3C4D)]),
    "run05: a halflife ahead with each block": (
        0x1D00FFFF, 0, 1,
        [(2, 0, 0x1D00FEC5), (290, 0, 0x1C7F62C0), (866, 0, 0x1C1FD8B0), (9794, 0, 0x183FB160), (59906, 0, 0x0300FEC5),
         (60194, 0, 0x027F6200), (62210, 0, 0x0200FE00), (64226, 0, 0x01010000), (64514, 0, 0x01010000)],
    ),
    "run07: more and more work": (
        0x1802AEE8, 0, 1,
        [(3, 1310, 0x1802AD91), (9, 7099, 0x1802B39C), (101, 20372, 0x18024899), (301, 26908, 0x180172DB),
         (500, 29547, 0x1800E81F)],
    ),
    "run08: less and less work": (
        0x1802AEE8, 0, 1,
        [(100, 333016, 0x18080571), (188, 1140450, 0x1900A58C), (281, 2529858, 0x1A00881C), (352, 3950808, 0x1B0085EA),
         (426, 5430357, 0x1C00A57C), (483, 6928915, 0x1D00E5DD), (484, 6930238, 0x1D00E688), (485, 6993399, 0x1D00FFFF),
         (501, 7462933, 0x1D00FFFF)],
    ),
    "run10: late numbers": (
        0x1802AEE8, 2147483047, 9223372036854775802,
        [(9223372036854775803, 2147484547, 0x1802AFBB), (9223372036854775807, 2147488147, 0x1802B30E),
         (9223372036854775812, 2147492647, 0x1802B73D)],
    ),
}  # fmt: skip
SPACING_S, HALFLIFE_S = 600, 172_800
DEV = GENESIS.parameters


@pytest.mark.parametrize("run", RUNS)
def test_it_is_the_published_one(run: str) -> None:
    """Bit by bit, up to the limit that Bitcoin Cash has and we have not."""
    first, time_s, height, rows = RUNS[run]
    limit = _from_compact(0x1D00FFFF)
    for at, at_s, wanted in rows:
        lag = at_s - time_s - SPACING_S * (at - height + 1)
        target = min(asert(_from_compact(first), lag, HALFLIFE_S), limit)
        assert _to_compact(target) == wanted, (at, at_s)


@given(st.integers(1, 2**255), st.integers(-(10**8), 10**8))
def test_it_is_a_power_of_two(target: int, lag_ms: int) -> None:
    """Within 0.013 %, and never 0."""
    found = asert(target, lag_ms, DEV.halflife_ms)
    exact = math.log2(target) + lag_ms / DEV.halflife_ms
    assert found >= 1
    if exact > 40:
        assert abs(math.log2(found) - exact) < 2e-4 + 2**-15


def test_a_target_fits_its_bytes() -> None:
    """However late the chain is, or early."""
    assert next_target(DEV, Clock(9, 0, 2**62)) == b"\xff" * 32
    assert next_target(DEV, Clock(9, 0, -(2**62))) == (1).to_bytes(32, "big")
    assert next_target(DEV, Clock(9, 0, 0)) == DEV.first_target


def test_the_schedule_begins_after_the_last_founding_block() -> None:
    """The genesis of `dev` is older than every testnet."""
    late = next_clock(DEV, Clock(0, 0), 10**9, is_founding=True)
    assert late == Clock(1, 10**9, 0)
    assert next_clock(DEV, late, 10**9 + 4_000, is_founding=False) == Clock(
        2, 10**9 + 4_000, -6_000
    )


def test_a_pause_counts_as_one_halflife() -> None:
    """After a night it is about twice as easy, not 2^144 times."""
    clock = next_clock(DEV, Clock(5, 0, 0), 8 * 3_600_000, is_founding=False)
    assert clock.lag_ms == DEV.halflife_ms - DEV.block_ms
    assert weight(DEV.first_target) / weight(next_target(DEV, clock)) == pytest.approx(
        1.93, abs=0.01
    )


def test_blocks_come_every_ten_seconds_whatever_the_work() -> None:
    """400 blocks with 30, then 3,000 draws a second: within 10 % of T, after it has met the change."""
    chance, clock = np.random.default_rng(3), Clock(0, 0, 0)
    for draws_per_s in (30, 3_000):
        times = []
        for _ in range(500):
            mean_ms = 1000 * weight(next_target(DEV, clock)) / draws_per_s
            time_ms = clock.time_ms + round(chance.exponential(mean_ms))
            clock = next_clock(DEV, clock, time_ms, is_founding=False)
            times.append(time_ms)
        assert (times[-1] - times[100]) / 399 == pytest.approx(DEV.block_ms, rel=0.1)


def test_weights_add_up_draws() -> None:
    """A block at the first target of `dev` is worth 512 draws; founding blocks are as hard as 2^16 hashes."""
    assert weight(DEV.first_target) == 511
    assert weight(FOUNDING_TARGET) == 65535


def _from_compact(bits: int) -> int:
    size, mantissa = bits >> 24, bits & 0x7FFFFF
    return mantissa << 8 * (size - 3) if size >= 3 else mantissa >> 8 * (3 - size)


def _to_compact(target: int) -> int:
    size = (target.bit_length() + 7) // 8
    mantissa = target >> 8 * (size - 3) if size >= 3 else target << 8 * (3 - size)
    if mantissa & 0x800000:
        mantissa, size = mantissa >> 8, size + 1
    return size << 24 | mantissa
