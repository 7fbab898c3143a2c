"""Amounts: whole millionths of a PAI (µPAI) inside, PAI in the API and on the screen."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

#: µPAI of one PAI.
PAI = 1_000_000
#: The largest amount, in µPAI: what the codec can write.
MAX_AMOUNT = 2**63 - 1

_SMALLEST = Decimal("0.000001")


def micro(amount: float | int | str | Decimal, name: str = "amount") -> int:
    """Return an amount of PAI in µPAI, exactly.

    Args:
        amount: PAI, at least 0, with at most 6 decimals. A float is what it is written as: 0.1 is one tenth.
        name: what it is, for the message.

    Raises:
        ValueError: it is no such amount.
    """
    try:
        if isinstance(amount, bool):
            raise TypeError
        given = Decimal(repr(float(amount)) if isinstance(amount, float) else amount)
        if given.is_finite() and 0 <= given <= MAX_AMOUNT // PAI:
            rounded = given.quantize(_SMALLEST)
            if rounded == given:
                return int(rounded.scaleb(6))
    except (InvalidOperation, TypeError, ValueError):
        pass
    raise ValueError(
        f"{name} is {amount!r} PAI; allowed: a number from 0 to {MAX_AMOUNT // PAI:,} with at most 6 decimals."
    )


def pai(amount: int) -> float:
    """Return µPAI in PAI, as near as a float is."""
    return amount / PAI


def text(amount: int) -> str:
    """Return µPAI as people read it, such as ``1,250.5 PAI``."""
    whole, rest = divmod(abs(amount), PAI)
    decimals = f".{rest:06d}".rstrip("0") if rest else ""
    return f"{'-' if amount < 0 else ''}{whole:,}{decimals} PAI"
