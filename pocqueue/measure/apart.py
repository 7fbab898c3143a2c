"""How far artifacts of the same nonces are apart in two runs, and which threshold honest nodes stay within.

No two runs of a large model give the same artifacts: another GPU, another runtime and another batch size each
round otherwise. So what is measured is a distribution of distances, and what is asked for is the distance that a
share of honest nonces, `p_mismatch`, is beyond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pocqueue.errors import CalibrationError, EngineError
from pocqueue.measure.valid_rate import MIN_EXPECTED, quantile
from pocqueue.poc.artifact.scheme import Artifact
from pocqueue.poc.fraud import fraud_test
from pocqueue.words import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """Two runs of the same nonces, against the bounds of a proof."""

    proof: Artifact
    distances: list[float]  #: of the nonces that have an artifact in both, ascending
    num_nonces: int
    num_broken_a: int  #: nonces without an artifact
    num_broken_b: int

    @property
    def mean(self) -> float:
        """Mean of the distances."""
        return sum(self.distances) / len(self.distances)

    @property
    def num_beyond(self) -> int:
        """Mismatches: distances above the threshold."""
        return sum(distance > self.proof.dist_threshold for distance in self.distances)

    @property
    def share_beyond(self) -> float:
        """Share of the compared nonces that are mismatches."""
        return self.num_beyond / len(self.distances)

    @property
    def agrees(self) -> bool:
        """Whether the fraud test takes so many mismatches for float error."""
        proof = self.proof
        _, is_fraud = fraud_test(
            self.num_beyond, len(self.distances), proof.fraud_threshold, proof.p_mismatch
        )
        return not is_fraud

    def percentile(self, percent: float) -> float:
        """Return the distance that so many percent do not exceed."""
        place = math.ceil(percent / 100 * len(self.distances))
        return self.distances[max(place, 1) - 1]

    def numbers(self) -> dict[str, float]:
        """Return mean, percentiles and the largest distance by name."""
        percentiles = {f"p{percent}": self.percentile(percent) for percent in (50, 90, 98, 99)}
        return {"mean": self.mean, **percentiles, "max": self.distances[-1]}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return {
            "num_nonces": self.num_nonces,
            "num_compared": len(self.distances),
            "num_broken_a": self.num_broken_a,
            "num_broken_b": self.num_broken_b,
            "distances": self.numbers(),
            "num_beyond": self.num_beyond,
            "share_beyond": self.share_beyond,
        }

    def words(self) -> str:
        """Say the distribution in one line."""
        found = self.numbers()
        return (
            f"mean {found['mean']:.3g}, median {found['p50']:.3g}, 98th percentile {found['p98']:.3g}, "
            f"largest {found['max']:.3g}"
        )

    def sentence(self) -> str:
        """Say what it means."""
        proof = self.proof
        beyond = (
            f"{self.num_beyond:,} of {counted(len(self.distances), 'artifact')} are farther apart than "
            f"{proof.dist_threshold:g}, and the fraud test takes a share of {proof.p_mismatch:g} for float error"
        )
        if self.agrees:
            return f"Proofs of one engine may be validated with the other: {beyond}."
        return f"Do not validate proofs of one engine with the other: {beyond}."


def apart(a: Sequence[str | None], b: Sequence[str | None], proof: Artifact) -> Apart:
    """Compare artifacts of the same nonces in the same order.

    Args:
        a: artifacts of one run; None for those that could not be computed.
        b: of the other.
        proof: with the bounds to compare by.

    Raises:
        EngineError: no nonce has an artifact in both.
    """
    pairs = zip(a, b, strict=True)
    found = sorted(filter(math.isfinite, (proof.difference(one, other) for one, other in pairs)))
    bad_a, bad_b = (sum(value is None for value in run) for run in (a, b))
    if not found:
        raise EngineError(
            f"No nonce of {len(a):,} has an artifact in both runs ({bad_a:,} have none in the first, "
            f"{bad_b:,} in the second): try another dtype (POCQUEUE_DTYPE)."
        )
    return Apart(
        proof=proof, distances=found, num_nonces=len(a), num_broken_a=bad_a, num_broken_b=bad_b
    )


@dataclass(frozen=True, slots=True)
class Threshold:
    """The distance that the share p_mismatch of honest nonces is beyond, and how sure it is."""

    value: float
    low: float  #: confidence interval
    high: float  #: the `dist_threshold` to take: it keeps mismatches below p_mismatch


def check_samples(num: int, p_mismatch: float) -> None:
    """Refuse to look for a threshold with too few nonces.

    Raises:
        CalibrationError: they are too few.
    """
    needed = math.ceil(MIN_EXPECTED / min(p_mismatch, 1 - p_mismatch))
    if num < needed:
        raise CalibrationError(
            f"{counted(num, 'sample')} say too little about a p_mismatch of {p_mismatch:g}: at least "
            f"{needed:,} are needed."
        )


def threshold_for(found: Apart) -> Threshold:
    """Estimate the threshold that keeps mismatches of honest nonces below the proof's p_mismatch.

    Raises:
        CalibrationError: there are too few distances.
    """
    check_samples(len(found.distances), found.proof.p_mismatch)
    return Threshold(*quantile(found.distances, 1 - found.proof.p_mismatch))
