"""The distance scheme's wire form, under the names of the reference implementation."""

from __future__ import annotations

from pocqueue.poc import fraud
from pocqueue.poc.distance.data import (
    PROBABILITY_MISMATCH,
    ProofBatch,
    ValidatedBatch,
    is_mismatch,
    is_valid,
)

__all__ = [
    "PROBABILITY_MISMATCH",
    "ProofBatch",
    "ValidatedBatch",
    "fraud_test",
    "is_mismatch",
    "is_valid",
]


def fraud_test(
    n_invalid: int,
    n_total: int,
    fraud_threshold: float,
    probability_mismatch: float = PROBABILITY_MISMATCH,
) -> tuple[float, bool]:
    """Test whether that many invalid distances can be float error; see `poc.fraud`."""
    return fraud.fraud_test(n_invalid, n_total, fraud_threshold, probability_mismatch)
