"""What random directions in place of a model's logits would give: distances as on a sphere.

Everything here raises `InvalidRound` for an argument out of bounds.
"""

from __future__ import annotations

import math

from pocqueue.errors import InvalidRound


def ideal_valid_rate(r_target: float, vocab_size: int) -> float:
    """Return the probability that a random direction is nearer to a fixed one than r_target.

    For a direction uniform on the sphere in R^n, (1 + cos) / 2 to any fixed one follows the
    distribution Beta((n-1)/2, (n-1)/2), and the squared chord is 2 - 2 cos; so a quarter of the
    squared distance follows it too (Li, Concise formulas for the area of a spherical cap, 2011).

    Args:
        r_target: above 0.
        vocab_size: n, at least 2.
    """
    from scipy.special import betainc

    if not r_target > 0:
        raise InvalidRound("r_target", r_target, "a number above 0")
    half = _half_degrees(vocab_size)
    return float(betainc(half, half, min(r_target, 2) ** 2 / 4))


def ideal_r_target(valid_rate: float, vocab_size: int) -> float:
    """Return the r_target at which random directions have this valid rate.

    The inverse of `ideal_valid_rate`.
    """
    from scipy.special import betaincinv

    check_share(valid_rate)
    half = _half_degrees(vocab_size)
    return 2 * math.sqrt(float(betaincinv(half, half, valid_rate)))


def random_spread(vocab_size: int) -> float:
    """Return the standard deviation of random directions' distances, nearly.

    The cosine of two has the variance 1 / n, and around the square root of 2 a chord's length changes by
    1 / sqrt(2) of what the cosine does.

    Args:
        vocab_size: n, at least 2.
    """
    return 1 / math.sqrt(2 * vocab_size)


def check_share(valid_rate: float) -> None:
    """Refuse a valid rate that no r_target can have."""
    if not 0 < valid_rate < 1:
        raise InvalidRound("valid_rate", valid_rate, "a share above 0 and below 1, such as 0.1")


def _half_degrees(vocab_size: int) -> float:
    if vocab_size < 2:
        raise InvalidRound("vocab_size", vocab_size, "a whole number of at least 2")
    return (vocab_size - 1) / 2
