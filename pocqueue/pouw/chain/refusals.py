"""How rules refuse a transaction."""

from __future__ import annotations

from pocqueue.pouw.errors import InvalidTransaction


def fault(rule: str, message: str) -> InvalidTransaction:
    """Return the refusal of a transaction that no state of the chain makes good."""
    return InvalidTransaction(rule, message, is_fault=True)


def refusal(rule: str, message: str) -> InvalidTransaction:
    """Return the refusal of a transaction that another state of the chain could take."""
    return InvalidTransaction(rule, message, is_fault=False)
