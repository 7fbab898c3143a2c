"""The distance scheme's wire form, under the names of the reference implementation."""

from pocqueue.poc.distance.data import ProofBatch, ValidatedBatch, is_mismatch, is_valid
from pocqueue.poc.fraud import PROBABILITY_MISMATCH, fraud_test

__all__ = [
    "PROBABILITY_MISMATCH",
    "ProofBatch",
    "ValidatedBatch",
    "fraud_test",
    "is_mismatch",
    "is_valid",
]
