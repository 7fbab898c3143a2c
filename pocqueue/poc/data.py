"""Proofs as data: the nonces of a round with their distances, and a verdict on somebody else's.

``dataclasses.asdict()`` of both classes is the JSON body that goes over the wire, field for field::

    ProofBatch      {"public_key": str, "block_hash": str, "block_height": int,
                     "nonces": [int], "dist": [float], "node_id": int}
    ValidatedBatch  the same, and {"received_dist": [float], "r_target": float,
                     "fraud_threshold": float, "n_invalid": int, "probability_honest": float,
                     "fraud_detected": bool}
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pocqueue.errors import InvalidRound

#: Chance that an honest nonce comes out on the other side of r_target on another machine, by float
#: error alone. Consensus: changing it changes verdicts.
PROBABILITY_MISMATCH = 5e-4


@dataclass
class ProofBatch:
    """Nonces of one round and the distance of each; most often the valid ones only."""

    public_key: str
    block_hash: str
    block_height: int
    nonces: list[int]  #: each 0 … 2^63 - 1
    dist: list[float]  #: distance of each nonce, in its order; [0, 2]
    node_id: int  #: the node that searched them

    @classmethod
    def empty(cls) -> ProofBatch:
        """Return a batch of no nonces and no round: texts are empty, height and node are -1."""
        return ProofBatch(
            public_key="", block_hash="", block_height=-1, nonces=[], dist=[], node_id=-1
        )

    def sub_batch(self, r_target: float) -> ProofBatch:
        """Return the valid nonces: those whose distance is finite and strictly below `r_target`.

        Raises:
            InvalidRound: there is not one distance for each nonce.
        """
        check_length("dist", self.dist, self.nonces)
        valid = [i for i, dist in enumerate(self.dist) if is_valid(dist, r_target)]
        return ProofBatch(
            public_key=self.public_key,
            block_hash=self.block_hash,
            block_height=self.block_height,
            nonces=[self.nonces[i] for i in valid],
            dist=[self.dist[i] for i in valid],
            node_id=self.node_id,
        )

    def __len__(self) -> int:
        return len(self.nonces)


@dataclass
class ValidatedBatch(ProofBatch):
    """A proof batch that was recomputed, with the verdict.

    `dist` holds what we computed and `received_dist` what the other side claimed. The last three
    fields follow from the rest and are computed when the object is made; they can be passed, so that
    ``ValidatedBatch(**body)`` reads a wire body, but whatever is passed is replaced.

    Raises:
        InvalidRound: `dist` or `received_dist` has not one distance for each nonce.
    """

    received_dist: list[float]  #: claimed distance of each nonce, in its order
    r_target: float
    fraud_threshold: float
    n_invalid: int = 0  #: nonces that fail on either side
    probability_honest: float = 1.0  #: chance of an honest node to have that many or more
    fraud_detected: bool = False  #: that chance is below fraud_threshold

    def __post_init__(self) -> None:
        check_length("dist", self.dist, self.nonces)
        check_length("received_dist", self.received_dist, self.nonces)
        self.n_invalid = sum(
            is_mismatch(received, computed, self.r_target)
            for received, computed in zip(self.received_dist, self.dist, strict=True)
        )
        self.probability_honest, self.fraud_detected = fraud_test(
            self.n_invalid, len(self.nonces), self.fraud_threshold
        )


def is_valid(distance: float, r_target: float) -> bool:
    """Say whether a distance makes its nonce valid; NaN and the infinities never do."""
    return math.isfinite(distance) and distance < r_target


def is_mismatch(received: float, computed: float, r_target: float) -> bool:
    """Say whether a claimed nonce counts as invalid.

    A claim must be strictly below `r_target`; what we computed may also be equal to it. A distance
    that is not finite, on either side, is invalid.
    """
    # Written with `not`, so that NaN, which compares false with everything, lands on this side too.
    return not (
        math.isfinite(received)
        and math.isfinite(computed)
        and received < r_target
        and computed <= r_target
    )


def fraud_test(
    n_invalid: int,
    n_total: int,
    fraud_threshold: float,
    probability_mismatch: float = PROBABILITY_MISMATCH,
) -> tuple[float, bool]:
    """Test whether that many invalid nonces can be float error.

    Args:
        n_invalid: invalid nonces; 0 … n_total.
        n_total: nonces checked; >= 0.
        fraud_threshold: it is fraud where the p-value is below this; (0, 1).
        probability_mismatch: chance of an honest nonce to be invalid; another than consensus has is for
            engines that are known to differ by more. (0, 1).

    Returns:
        The p-value of the one-sided binomial test, P(X >= n_invalid) for X ~ B(n_total,
        probability_mismatch), and whether it is below `fraud_threshold`. No nonces: (1.0, False).

    Raises:
        ValueError: `n_invalid` is negative or above `n_total`.
    """
    if not 0 <= n_invalid <= n_total:
        raise ValueError(f"n_invalid is {n_invalid}; allowed: 0 to n_total, which is {n_total}.")
    if n_total == 0:
        return 1.0, False
    # P(X >= 0) needs no scipy, and honest proofs are nearly all there are.
    p_value = 1.0 if n_invalid == 0 else _binomial_tail(n_invalid, n_total, probability_mismatch)
    return p_value, p_value < fraud_threshold


def _binomial_tail(at_least: int, n_total: int, probability: float) -> float:
    """Return P(X >= at_least) for X ~ B(n_total, probability), with 1 <= at_least."""
    # Imported here: the scheduler and the CLI import this module and never test. The tail as an
    # incomplete beta function (Abramowitz & Stegun 26.5.24) is what scipy.stats.binomtest(…,
    # alternative="greater") comes to; scipy.special loads far faster than scipy.stats.
    from scipy.special import betainc

    return float(betainc(at_least, n_total - at_least + 1, probability))


def check_length(field: str, distances: list[float], nonces: list[int]) -> None:
    """Refuse a list of distances that does not pair with its nonces.

    Raises:
        InvalidRound: the lengths differ; the field is the list's name.
    """
    if len(distances) != len(nonces):
        raise InvalidRound(
            field,
            f"a list of {len(distances)}",
            f"one distance for each nonce, of which there are {len(nonces)}",
        )
