"""The accountant against dp-accounting 0.6.0, and how many messages an epsilon allows."""

from __future__ import annotations

import decimal
from decimal import Decimal

import pytest
from hypothesis import given, settings, strategies as st

from pocqueue.pouw.privacy import allowed_messages, epsilon, least_noise

#: Noise multiplier, messages, delta, and `RdpAccountant.get_epsilon(delta)` after as many `GaussianDpEvent` of
#: dp-accounting 0.6.0 with its default orders.
VECTORS = [
    ("4", 100, "1e-5", 14.132226163159334),
    ("1", 1, "1e-5", 4.728507067217623),
    ("16", 1000, "1e-6", 11.52456429916635),
    ("40", 8000, "1e-5", 12.301691480042894),
    ("0.5", 8, "1e-3", 35.34875682988228),
    ("100", 8, "1e-9", 0.15800801594343955),
    ("64", 4096, "1e-7", 5.671033794247538),
    ("2", 10, "0.1", 3.3971435153155554),
]


@pytest.mark.parametrize(("noise", "number", "delta", "expected"), VECTORS)
def test_epsilon_is_that_of_dp_accounting(
    noise: str, number: int, delta: str, expected: float
) -> None:
    """To the digits that a float has; and one message more is over it."""
    found = epsilon(Decimal(noise), number, Decimal(delta))
    assert float(found) == pytest.approx(expected, rel=1e-14)
    assert allowed_messages(Decimal(noise), Decimal(delta), found) == number
    just_below = found - Decimal("1e-20")
    assert allowed_messages(Decimal(noise), Decimal(delta), just_below) == number - 1


def test_no_messages_tell_nothing() -> None:
    """Their epsilon is 0, which allows none."""
    assert epsilon(Decimal(1), 0, Decimal("1e-5")) == 0
    assert allowed_messages(Decimal(1), Decimal("1e-5"), Decimal(0)) == 0


def test_a_thread_that_counts_otherwise_changes_nothing() -> None:
    """All nodes have to say the same."""
    due = epsilon(Decimal("3.7"), 77, Decimal("1e-7"))
    with decimal.localcontext() as context:
        context.prec = 5
        context.rounding = decimal.ROUND_UP
        assert epsilon(Decimal("3.7"), 77, Decimal("1e-7")) == due


@settings(max_examples=60)
@given(
    st.decimals("0.1", "1000", places=6),
    st.decimals("1e-12", "0.1", places=12),
    st.decimals("0.001", "100", places=6),
)
def test_what_is_allowed_is_the_largest_number(
    noise: Decimal, delta: Decimal, limit: Decimal
) -> None:
    """Not above the limit, and above it with one more."""
    number = allowed_messages(noise, delta, limit)
    assert number == 0 or epsilon(noise, number, delta) <= limit
    assert epsilon(noise, number + 1, delta) > limit


@pytest.mark.parametrize(("num", "limit"), [(1, "0.5"), (960, "12"), (3200, "3.5")])
def test_the_least_noise_is_enough_and_less_is_not(num: int, limit: str) -> None:
    """To the thousandth; and where the largest is not enough there is none."""
    delta, most = Decimal("1e-6"), Decimal(limit)
    noise = least_noise(num, delta, most, 1000)
    assert noise is not None
    less = noise - Decimal("0.001")
    assert epsilon(noise, num, delta) <= most < epsilon(less, num, delta)
    assert least_noise(num, delta, most, int(noise)) is None
