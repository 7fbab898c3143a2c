"""The proof of compute: its maths, its data, and a manager that runs rounds on a deployed model.

Importing this package costs a few milliseconds: names that need torch or aiohttp are imported when
they are first asked for, because the scheduler, the APIs and the command line need only the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pocqueue.poc.config import PoCConfig, PoCState
from pocqueue.poc.data import PROBABILITY_MISMATCH, ProofBatch, ValidatedBatch, fraud_test
from pocqueue.poc.nonces import MAX_NONCE, index_of, nonce_at, nonces_of, split_range
from pocqueue.poc.stats import PoCStats

if TYPE_CHECKING:
    from pocqueue.poc.gpu_random import (
        compute_distances,
        generate_inputs,
        generate_permutations,
        generate_target,
        logits_to_distances,
    )
    from pocqueue.poc.manager import PoCManager
    from pocqueue.poc.sender import PoCCallbackSender

__all__ = [
    "MAX_NONCE",
    "PROBABILITY_MISMATCH",
    "PoCCallbackSender",
    "PoCConfig",
    "PoCManager",
    "PoCState",
    "PoCStats",
    "ProofBatch",
    "ValidatedBatch",
    "compute_distances",
    "fraud_test",
    "generate_inputs",
    "generate_permutations",
    "generate_target",
    "index_of",
    "logits_to_distances",
    "nonce_at",
    "nonces_of",
    "split_range",
]

_HEAVY = {
    "PoCCallbackSender": "sender",
    "PoCManager": "manager",
    "compute_distances": "gpu_random",
    "generate_inputs": "gpu_random",
    "generate_permutations": "gpu_random",
    "generate_target": "gpu_random",
    "logits_to_distances": "gpu_random",
}


def __getattr__(name: str) -> Any:
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HEAVY[name]}"), name)
    globals()[name] = value  # found here from now on
    return value
