"""The consensus maths against every golden value of `tests/data/rng_golden.json`, from an independent implementation.

`tests/data/rng_golden.json` also holds values of artifacts; `artifact/test_golden.py` reads them.

The file's `distances` cannot be recomputed: the logits they were made from are not in it and follow
from nothing that is. They are used for what they can tell, and `test_gpu_random.py` checks distances
against a separate float64 computation instead.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pocqueue.poc.gpu_random import generate_inputs, generate_permutations, generate_target

_GOLDEN = Path(__file__).parents[1] / "data" / "rng_golden.json"
CASES: list[dict[str, Any]] = json.loads(_GOLDEN.read_text(encoding="utf-8"))

OF_DISTANCES = {
    "inputs_first8",
    "inputs_last4",
    "inputs_mean",
    "inputs_std",
    "permutation_first16",
    "permutation_sha256_le_int64",
    "target_first8",
    "target_norm",
    "distances",
}
OF_ARTIFACTS = {
    "k_dim",
    "householder_first8",
    "picked_indices_sorted",
    "haar_rotated",
    "strong_inputs_first8",
}
ARGUMENTS = {"block_hash", "public_key", "nonces", "seq_len", "dim", "vocab_size"}

every_case = pytest.mark.parametrize("case", CASES, ids=[case["block_hash"] for case in CASES])


def half_a_digit(places: int) -> float:
    """Return what rounding to so many places can be off by, with room for one float32 rounding."""
    return 0.5 * 10.0**-places + 3e-7


def test_every_value_has_a_home() -> None:
    """A value that the file gains is noticed."""
    for case in CASES:
        assert set(case) == OF_DISTANCES | OF_ARTIFACTS | ARGUMENTS


def inputs_of(case: dict[str, Any]) -> torch.Tensor:
    inputs = generate_inputs(
        case["block_hash"],
        case["public_key"],
        case["nonces"],
        dim=case["dim"],
        seq_len=case["seq_len"],
        device="cpu",
    )
    assert inputs.shape == (len(case["nonces"]), case["seq_len"], case["dim"])
    assert inputs.dtype == torch.float32
    return inputs.flatten(1)


@every_case
def test_inputs(case: dict[str, Any]) -> None:
    """First and last numbers of each nonce agree to six digits."""
    inputs = inputs_of(case).numpy()
    atol = half_a_digit(6)
    np.testing.assert_allclose(inputs[:, :8], case["inputs_first8"], rtol=0, atol=atol)
    np.testing.assert_allclose(inputs[:, -4:], case["inputs_last4"], rtol=0, atol=atol)


@every_case
def test_inputs_mean_and_std(case: dict[str, Any]) -> None:
    """Mean and (population) standard deviation cover all the numbers in between."""
    inputs = inputs_of(case).double()
    std = inputs.std(dim=1, correction=0)
    np.testing.assert_allclose(inputs.mean(dim=1), case["inputs_mean"], rtol=0, atol=2e-7)
    np.testing.assert_allclose(std, case["inputs_std"], rtol=0, atol=2e-7)


@every_case
def test_permutations(case: dict[str, Any]) -> None:
    """Whole permutations agree, by the SHA-256 of their little-endian int64."""
    permutations = generate_permutations(
        case["block_hash"], case["public_key"], case["nonces"], case["vocab_size"], "cpu"
    )
    assert permutations.shape == (len(case["nonces"]), case["vocab_size"])
    assert permutations.dtype == torch.int64
    assert permutations[:, :16].tolist() == case["permutation_first16"]
    digests = [hashlib.sha256(row.numpy().astype("<i8").tobytes()) for row in permutations]
    assert [digest.hexdigest() for digest in digests] == case["permutation_sha256_le_int64"]


@every_case
def test_target(case: dict[str, Any]) -> None:
    """The target agrees to eight digits and has norm 1."""
    target = generate_target(case["block_hash"], case["vocab_size"], "cpu")
    assert target.shape == (case["vocab_size"],)
    assert target.dtype == torch.float32
    np.testing.assert_allclose(target[:8], case["target_first8"], rtol=0, atol=3e-8)
    assert float(target.double().norm()) == pytest.approx(case["target_norm"], abs=1e-6)


@every_case
def test_distances_are_those_of_random_directions(case: dict[str, Any]) -> None:
    """Golden distances lie where a distance of unrelated unit vectors has to: near sqrt(2).

    The cosine of two random directions in n dimensions has mean 0 and deviation 1 / sqrt(n).
    """
    for distance in case["distances"]:
        cosine = 1 - distance**2 / 2
        assert abs(cosine) < 5 / math.sqrt(case["vocab_size"])
