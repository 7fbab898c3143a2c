"""The p-value of a verdict against sums that are exact: fractions for few nonces, 60 decimal digits for many."""

from __future__ import annotations

import decimal
import math
from decimal import Decimal
from fractions import Fraction

import pytest

from pocqueue.poc.fraud import PROBABILITY_MISMATCH, fraud_test

#: Of distances, of public servers, of the chain, and ones that no network has.
PROBABILITIES = [PROBABILITY_MISMATCH, 0.001, 0.1, 0.5, 0.99]
#: Of what a float holds of the p-value.
RELATIVE = 1e-11


def exact(n_total: int, probability: float) -> list[Fraction]:
    """Return P(X >= k) for each k from 0 to n_total as the fraction that it is."""
    top, whole = probability.as_integer_ratio()
    tail, tails = 0, []
    for k in range(n_total, -1, -1):
        tail += math.comb(n_total, k) * top**k * (whole - top) ** (n_total - k)
        tails.append(Fraction(tail, whole**n_total))
    return tails[::-1]


def summed(n_invalid: int, n_total: int, probability: float) -> Decimal:
    """Return P(X >= n_invalid), term by term in 60 digits; every term is positive, so no digit is lost."""
    with decimal.localcontext(prec=60, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN):
        p = Decimal(probability)
        k, total = n_invalid, Decimal(0)
        term = Decimal(math.comb(n_total, k)) * p**k * (1 - p) ** (n_total - k)
        odds = p / (1 - p)
        while k <= n_total and (k <= n_total * probability or term > total * Decimal("1e-40")):
            total += term
            term *= odds * (n_total - k) / (k + 1)
            k += 1
        return total


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_p_values_are_exact(probability: float) -> None:
    """For every count of invalid nonces of a small proof, the least likely too."""
    for n_total in (1, 2, 7, 40, 200):
        for n_invalid, wanted in enumerate(exact(n_total, probability)):
            found, _ = fraud_test(n_invalid, n_total, 0.01, probability)
            assert found == pytest.approx(float(wanted), rel=RELATIVE, abs=1e-300), n_invalid


@pytest.mark.parametrize("probability", [PROBABILITY_MISMATCH, 0.001, 0.1])
@pytest.mark.parametrize("n_total", [1000, 20_000, 200_000])
def test_p_values_of_large_proofs_are_exact(n_total: int, probability: float) -> None:
    """From below the mean to thirty standard deviations above it, where a normal approximation is off by far."""
    mean, deviation = n_total * probability, math.sqrt(n_total * probability)
    for z in (-3, -1, 0, 1, 2, 3, 5, 10, 20, 30):
        n_invalid = max(1, round(mean + z * deviation))
        found, _ = fraud_test(n_invalid, n_total, 0.01, probability)
        wanted = float(summed(n_invalid, n_total, probability))
        assert found == pytest.approx(wanted, rel=RELATIVE, abs=1e-300), (n_invalid, z)


@pytest.mark.parametrize(("n_invalid", "n_total"), [(200, 200), (60_000, 200_000)])
def test_what_no_float_can_hold_is_nothing(n_invalid: int, n_total: int) -> None:
    """A chance below the smallest float is 0 or next to it, and fraud by any threshold."""
    assert 0 <= summed(n_invalid, n_total, 0.1) < Decimal("1e-199")
    found, fraud = fraud_test(n_invalid, n_total, 1e-190, 0.1)
    assert 0 <= found < 1e-199
    assert fraud


@pytest.mark.parametrize(("threshold", "first"), [(0.01, 31), (0.05, 28)])
def test_where_fraud_begins(threshold: float, first: int) -> None:
    """Of 200 nonces of the chain: at the count that the exact sum says."""
    assert [fraud_test(k, 200, threshold, 0.1)[1] for k in (first - 1, first)] == [False, True]
    tails = exact(200, 0.1)
    assert tails[first] < Fraction(threshold) <= tails[first - 1]


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_every_verdict_is_that_of_the_exact_sum(probability: float) -> None:
    """Up to 120 nonces, on both sides of either threshold."""
    for n_total in (1, 5, 33, 120):
        tails = exact(n_total, probability)
        for threshold in (0.01, 0.05):
            for n_invalid, chance in enumerate(tails):
                _, fraud = fraud_test(n_invalid, n_total, threshold, probability)
                assert fraud is (chance < Fraction(threshold)), (n_invalid, n_total)


def test_no_nonces_are_no_fraud() -> None:
    """Nor is a proof without an invalid one; counts that cannot be are refused."""
    assert fraud_test(0, 0, 0.01) == (1.0, False)
    assert fraud_test(0, 200, 0.99) == (1.0, False)
    for n_invalid in (-1, 3):
        with pytest.raises(ValueError, match="allowed: 0 to n_total, which is 2"):
            fraud_test(n_invalid, 2, 0.01)
