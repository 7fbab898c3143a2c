"""Checks somebody's proofs: recomputes every nonce of a proofs file with the same model.

The verdict is the fraud test of `pocqueue.poc.data`: a nonce is invalid where its claimed distance is
not below r_target or the computed one is above it, and it is fraud where an honest node would have so
many invalid ones with less probability than the round's fraud_threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pocqueue.engine.base import Engine, EngineInfo
from pocqueue.errors import ModelMismatch
from pocqueue.poc.batch import batches_of
from pocqueue.poc.data import ValidatedBatch, is_mismatch
from pocqueue.rounds.proof_file import ProofFile

#: Receives (nonces done, nonces in all), after every batch and once before the first.
OnCount = Callable[[int, int], None]

#: Invalid nonces that `CheckedProofs.to_dict` names.
NUM_NAMED = 100


class CheckedProofs(ValidatedBatch):
    """A validated batch and what there is to say about it."""

    @property
    def n(self) -> int:
        """Number of nonces checked."""
        return len(self.nonces)

    @property
    def verdict(self) -> str:
        """Say "honest" or "fraud"."""
        return "fraud" if self.fraud_detected else "honest"

    @property
    def max_difference(self) -> float:
        """Return the largest |received - computed| of the nonces whose both are finite; 0 if none."""
        pairs = zip(self.received_dist, self.dist, strict=True)
        differences = (abs(received - computed) for received, computed in pairs)
        return max(filter(math.isfinite, differences), default=0.0)

    @property
    def invalid_nonces(self) -> list[int]:
        """Return the nonces that fail on either side, in the batch's order."""
        rows = zip(self.nonces, self.received_dist, self.dist, strict=True)
        return [nonce for nonce, got, own in rows if is_mismatch(got, own, self.r_target)]

    def sentence(self) -> str:
        """Say the verdict and its reasons in one sentence, for a person."""
        if not self.n:
            return "Honest: the file has no proofs, so there is nothing to recompute."
        difference = f"largest difference between a claimed and a computed distance {self.max_difference:.2g}"
        if not self.n_invalid:
            return f"Honest: all {self.n:,} nonces recomputed, none is invalid; {difference}."
        counted = f"{self.n_invalid:,} of {self.n:,} nonces are invalid"
        chance = f"an honest node has that many with probability {self.probability_honest:.2g}"
        if self.fraud_detected:
            return f"Fraud: {counted}; {chance}, below the threshold of {self.fraud_threshold:g}; {difference}."
        return f"Honest: {counted}, but {chance}, the threshold is {self.fraud_threshold:g}; {difference}."

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict for `--json`; of the nonces only the first NUM_NAMED invalid ones."""
        return {
            "verdict": self.verdict,
            "fraud_detected": self.fraud_detected,
            "n": self.n,
            "n_invalid": self.n_invalid,
            "probability_honest": self.probability_honest,
            "fraud_threshold": self.fraud_threshold,
            "r_target": self.r_target,
            "max_difference": self.max_difference,
            "invalid_nonces": self.invalid_nonces[:NUM_NAMED],
            "block_hash": self.block_hash,
            "block_height": self.block_height,
            "public_key": self.public_key,
            "node_id": self.node_id,
        }


def check_model(file: ProofFile, info: EngineInfo) -> None:
    """Refuse to recompute proofs with another model than they were made with.

    The same weights in another dtype are refused too: bfloat16 against float32 puts about 1 % of
    honest nonces on the other side of r_target (measured on the embedded model), twenty times what
    the fraud test allows for, so that an honest node would be called a fraud.

    Raises:
        ModelMismatch: fingerprint or dtype differ; names both.
    """
    theirs, ours = file.model, info
    if theirs.fingerprint != ours.fingerprint:
        raise ModelMismatch(
            f"The proofs were made with model {theirs.name} ({theirs.fingerprint[:12]}); this one is "
            f"{ours.model} ({ours.fingerprint[:12]}). Give theirs with --model or POCQUEUE_MODEL."
        )
    dtype = file.spec.model_dtype or theirs.dtype
    if dtype is not None and dtype != ours.dtype:
        raise ModelMismatch(
            f"The proofs were made with model {theirs.name} in {dtype}; here it is loaded in "
            f"{ours.dtype}. Set POCQUEUE_DTYPE={dtype}."
        )


def engine_note(file: ProofFile, info: EngineInfo) -> str | None:
    """Say that proofs are recomputed by another runtime than they were made by; None where not.

    Torch and vLLM in bfloat16 put 0.6 to 0.7 % of valid nonces on different sides of r_target (measured
    on the embedded model), over ten times what the fraud test allows for. It is no reason to refuse,
    as the proof prescribes no runtime, but whoever reads the verdict has to know.
    """
    theirs, ours = file.spec.model_runtime, info.runtime
    if theirs is None or theirs == ours:
        return None
    engine = theirs.partition("-x")[0]
    return (
        f"The proofs were made by {theirs} and are recomputed by {ours}: about one valid nonce in 150 comes "
        "out on the other side of r_target by float error alone, which the fraud test takes for fraud. "
        f"For a verdict use POCQUEUE_ENGINE={engine} on as many devices; `pocqueue engine compare` measures it."
    )


def validate_proofs(
    file: ProofFile, engine: Engine, on_progress: OnCount | None = None
) -> CheckedProofs:
    """Recompute all proofs of a file and test them for fraud.

    Args:
        file: a file that was read, and so checked.
        engine: the model; run in batches of the round's shape.
        on_progress: told how far it is.

    Raises:
        ModelMismatch: it is not the model of the proofs.
        InvalidRound: the engine cannot run the round's shape.
    """
    check_model(file, engine.info)
    proofs, config = file.proofs, file.spec.poc_config()
    total = len(proofs)
    computed: list[float] = []
    for batch in batches_of(config, proofs.nonces):
        if on_progress is not None:
            on_progress(len(computed), total)
        computed += engine.values(batch)
    if on_progress is not None:
        on_progress(total, total)
    return CheckedProofs(
        public_key=proofs.public_key,
        block_hash=proofs.block_hash,
        block_height=proofs.block_height,
        nonces=proofs.nonces,
        dist=computed,
        node_id=proofs.node_id,
        received_dist=proofs.dist,
        r_target=config.r_target,
        fraud_threshold=config.fraud_threshold,
    )
