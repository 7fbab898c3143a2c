"""Distances between artifacts of two runs, and the threshold that honest ones stay within."""

from __future__ import annotations

import numpy as np
import pytest

from pocqueue.errors import CalibrationError, EngineError
from pocqueue.measure.apart import Apart, apart, check_samples, threshold_for
from pocqueue.poc.artifact.data import encode
from pocqueue.poc.artifact.scheme import Artifact


def runs(shifts: list[float], **bounds: float) -> Apart:
    """Compare artifacts of which each is a number away from the other run's."""
    proof = Artifact(k_dim=4, **bounds)
    zeros = encode(np.zeros((len(shifts), 4)))
    return apart(zeros, encode([[shift, 0, 0, 0] for shift in shifts]), proof)


def test_the_distribution_is_that_of_the_distances() -> None:
    """Percentiles are of the sample's own; a distance of just the threshold is no mismatch."""
    found = runs([0.25, 0.5, 0.75, 1.0], dist_threshold=0.75)
    assert found.distances == [0.25, 0.5, 0.75, 1.0]
    assert found.numbers() == {
        "mean": 0.625,
        "p50": 0.5,
        "p90": 1.0,
        "p98": 1.0,
        "p99": 1.0,
        "max": 1.0,
    }
    assert (found.num_beyond, found.share_beyond) == (1, 0.25)


def test_what_was_not_computed_is_dropped_and_counted() -> None:
    """By run; a pair that has one half is none."""
    one, other = encode(np.eye(4)[:2])
    found = apart([one, None, one, None], [other, one, None, None], Artifact(k_dim=4))
    assert (len(found.distances), found.num_nonces) == (1, 4)
    assert (found.num_broken_a, found.num_broken_b) == (2, 2)
    with pytest.raises(EngineError, match="No nonce of 2 has an artifact in both runs"):
        apart([one, None], [None, one], Artifact(k_dim=4))


@pytest.mark.parametrize(("num_beyond", "agrees"), [(0, True), (10, True), (16, True), (30, False)])
def test_engines_agree_as_far_as_the_fraud_test_goes(num_beyond: int, agrees: bool) -> None:
    """A tenth of 100 nonces may be beyond the threshold, and what chance makes of a tenth."""
    found = runs([0.1] * (100 - num_beyond) + [0.5] * num_beyond)
    assert found.agrees is agrees
    assert found.sentence().startswith("Proofs of one" if agrees else "Do not validate")
    assert f"{num_beyond} of 100 artifacts are farther apart than 0.4" in found.sentence()


def test_a_threshold_keeps_mismatches_below_p_mismatch() -> None:
    """Its upper bound does so for new honest samples, nearly always; it is not far above what is needed."""
    generator = np.random.default_rng(3)
    kept = 0
    for _ in range(40):
        threshold = threshold_for(runs(generator.gamma(4, 0.05, 500).tolist(), p_mismatch=0.1))
        assert threshold.low < threshold.value < threshold.high
        fresh = generator.gamma(4, 0.05, 20_000)
        kept += bool((fresh > threshold.high).mean() <= 0.1)
        assert (fresh > threshold.high).mean() > 0.03
    assert kept >= 36


def test_equal_artifacts_have_the_threshold_zero() -> None:
    found = threshold_for(runs([0.0] * 200))
    assert (found.value, found.low, found.high) == (0, 0, 0)


@pytest.mark.parametrize(("num", "p_mismatch", "needed"), [(99, 0.1, 100), (100, 0.01, 1000)])
def test_too_few_samples_say_nothing(num: int, p_mismatch: float, needed: int) -> None:
    with pytest.raises(CalibrationError, match=f"at least {needed:,} are needed"):
        check_samples(num, p_mismatch)
    check_samples(needed, p_mismatch)
