"""Amounts: exact in millionths, readable in PAI."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, strategies as st

from pocqueue.pouw.chain.amounts import MAX_AMOUNT, PAI, micro, pai, text


@pytest.mark.parametrize(
    ("amount", "wanted"),
    [
        (50.0, 50 * PAI),
        (0.1, 100_000),
        ("2.000001", 2_000_001),
        (Decimal("1e3"), 1000 * PAI),
        (0, 0),
    ],
)
def test_a_float_is_what_it_is_written_as(amount: float | str | Decimal, wanted: int) -> None:
    """0.1 PAI are 100,000 µPAI."""
    assert micro(amount) == wanted


@pytest.mark.parametrize(
    "amount",
    [0.0000001, -1, float("nan"), float("inf"), "x", True, 1e13, "1e999999999", "1e-999999999",
     "0.12345600000000000000000000000000000001"],
)  # fmt: skip
def test_what_cannot_be_counted_is_refused(amount: float | str) -> None:
    """By its name and value, however long it is written."""
    with pytest.raises(ValueError, match=r"fee is .* PAI; allowed: .* 6 decimals\."):
        micro(amount, "fee")


@given(st.integers(0, MAX_AMOUNT // PAI * PAI))
def test_there_and_back(amount: int) -> None:
    """What is written is read again."""
    assert micro(text(amount).removesuffix(" PAI").replace(",", "")) == amount


def test_as_people_read_it() -> None:
    """Without needless zeros."""
    assert text(1_250_500_000) == "1,250.5 PAI"
    assert text(-PAI) == "-1 PAI"
    assert pai(1_500_000) == 1.5
