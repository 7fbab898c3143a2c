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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pocqueue.poc.fraud import fraud_test
from pocqueue.poc.proofs import Proofs, check_length

#: `PROBABILITY_MISMATCH` if runtimes or dtypes differ. One in ten being valid, 0.6 to 1 % were measured with the
#: embedded model and 1.3 to 2.2 % with one of 16 layers; it is about half more where one in a hundred is valid.
OTHER_ARITHMETIC = 0.05


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
        return ProofBatch("", "", -1, nonces=[], dist=[], node_id=-1)

    def sub_batch(self, r_target: float) -> ProofBatch:
        """Return the valid nonces: those whose distance is finite and strictly below `r_target`.

        Raises:
            InvalidRound: there is not one distance for each nonce.
        """
        check_length("dist", self.dist, self.nonces, "distance")
        pairs = zip(self.nonces, self.dist, strict=True)
        valid = Proofs.of(pair for pair in pairs if is_valid(pair[1], r_target))
        return ProofBatch(
            self.public_key,
            self.block_hash,
            self.block_height,
            valid.nonces,
            valid.values,
            self.node_id,
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
        check_length("dist", self.dist, self.nonces, "distance")
        check_length("received_dist", self.received_dist, self.nonces, "distance")
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


def validated_body(batch: ValidatedBatch) -> dict[str, Any]:
    """Return a verdict as it goes over the wire: in the words of both kinds of receivers.

    The fields of `ValidatedBatch`, and beside them those that vLLM's callbacks have (`repeated`).
    Distances that are not finite are null.
    """
    dist = [finite_or_none(distance) for distance in batch.dist]
    received = [finite_or_none(distance) for distance in batch.received_dist]
    return {
        **asdict(batch),
        "dist": dist,
        "received_dist": received,
        **repeated(dist, received, batch.r_target),
    }


def repeated(
    dist: Sequence[float | None], received: Sequence[float | None], r_target: float
) -> dict[str, Any]:
    """Return a verdict's distances in the words of vLLM's callbacks, one item a nonce."""
    return {
        "computed_distances": dist,
        "received_distances": received,
        "valid": [item is not None and is_valid(item, r_target) for item in dist],
    }


def finite_or_none(distance: float) -> float | None:
    """Return what JSON can hold of a distance; what is none stays as it is."""
    return None if isinstance(distance, float) and not math.isfinite(distance) else distance
