"""The judge itself: edges of the arithmetic that golden values do not show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from pocqueue.poc.kernels import reference
from pocqueue.poc.kernels.reference import distance, hash, norm, normal, permutation, uniform
from tests.support.murmur import murmur

seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds, n=st.integers(1, 70))
@settings(deadline=None, max_examples=50)
def test_hash_is_murmur(seed: int, n: int) -> None:
    """Wrapping int32 arithmetic gives the bits of the unsigned one."""
    bits = hash(seed, n, "cpu")
    assert (bits.shape, bits.dtype) == ((n,), torch.int32)
    assert [int(bit) & 0xFFFFFFFF for bit in bits] == [murmur(k, seed) for k in range(n)]


@given(seed=seeds)
@settings(deadline=None, max_examples=50)
def test_uniform_rounds_like_an_unsigned_conversion(seed: int) -> None:
    """Both halves together round once, as float32 of the whole integer does."""
    expected = np.array([murmur(k, seed) for k in range(64)], dtype=np.uint32)
    got = uniform(seed, 64, "cpu").numpy()
    np.testing.assert_array_equal(got, expected.astype(np.float32) / np.float32(2**32))


def test_uniform_reaches_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest hashes round up to 1, the sign bit is a large number and zero is zero."""
    bits = torch.tensor([-1, -(2**31), 0, 2**31 - 1], dtype=torch.int32)
    monkeypatch.setattr(reference, "hash", lambda *_: bits)
    assert uniform(0, 4, "cpu").tolist() == [1.0, 0.5, 0.0, 0.5]


def test_normal_stays_finite_where_uniform_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logarithm never sees zero."""
    monkeypatch.setattr(reference, "uniform", lambda *_: torch.tensor([0.0, 1.0, 0.0, 0.5]))
    numbers = normal(0, 4, "cpu")
    assert numbers[0].item() == pytest.approx(np.sqrt(-2 * np.log(1e-10)), rel=1e-6)
    assert torch.isfinite(numbers).all()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_normal_of_odd_length_leaves_out_the_last_sine(n: int) -> None:
    """Cosines come first, then sines of the same pairs."""
    u = uniform(9, 2 * ((n + 1) // 2), "cpu").double().numpy()
    half = len(u) // 2
    radius, angle = np.sqrt(-2 * np.log(u[:half])), 2 * np.pi * u[half:]
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n]
    np.testing.assert_allclose(normal(9, n, "cpu"), expected, atol=2e-6)


def test_equal_hashes_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is stable, ascending and unsigned."""
    bits = torch.tensor([-1, 7, 0, 7, -(2**31), 0], dtype=torch.int32)
    monkeypatch.setattr(reference, "hash", lambda *_: bits)
    assert permutation(0, 6, "cpu").tolist() == [2, 5, 1, 3, 4, 0]


def test_norms_of_many_logits_keep_their_digits() -> None:
    """Float32 sums of 151,936 squares would be off by more than a distance may be."""
    vector = normal(3, 151_936, "cpu")
    assert norm(vector).item() == pytest.approx(np.linalg.norm(vector.double().numpy()), rel=1e-7)


@pytest.mark.parametrize("wanted", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_a_small_distance_keeps_its_digits(wanted: float) -> None:
    """The difference is taken before it is squared, so nothing is lost as a distance nears 0."""
    n = 4096
    target = normal(1, n, "cpu").double()
    target /= target.norm()
    aside = normal(2, n, "cpu").double()
    aside -= (aside @ target) * target
    aside /= aside.norm()
    # The chord of length d spans the angle 2 asin(d / 2).
    angle = 2 * np.arcsin(wanted / 2)
    logits = (100 * (np.cos(angle) * target + np.sin(angle) * aside)).float()
    unit = target.float()
    exact = logits.double() / logits.double().norm() - unit.double()
    got = distance(logits, torch.arange(n), unit).item()
    assert got == pytest.approx(exact.norm().item(), abs=1e-7)
    # The root of 2 - 2 dot in float32, for comparison: good enough for large distances only.
    dot = (logits / norm(logits)) @ unit
    short = torch.sqrt((2 - 2 * dot).clamp(min=0)).item()
    assert (abs(short - wanted) < 2e-6) == (wanted >= 1e-1)
