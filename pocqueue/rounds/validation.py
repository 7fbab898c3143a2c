"""Checks somebody's proofs: recomputes every nonce of a proofs file with the same model.

Which nonces are invalid, and how many of them are fraud, is for the round's proof scheme to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pocqueue.engine.base import Engine, EngineInfo
from pocqueue.errors import ModelMismatch
from pocqueue.poc.batch import batches_of
from pocqueue.poc.proofs import Verdict
from pocqueue.rounds.proof_file import ProofFile
from pocqueue.rounds.spec import RoundSpec
from pocqueue.words import counted

#: Receives (nonces done, nonces in all), after every batch and once before the first.
OnCount = Callable[[int, int], None]

#: Invalid nonces that `CheckedProofs.to_dict` names.
NUM_NAMED = 100


@dataclass(frozen=True, slots=True)
class CheckedProofs:
    """A file's verdict and what there is to say about it."""

    spec: RoundSpec
    verdict: Verdict

    @property
    def n(self) -> int:
        """Number of nonces checked."""
        return len(self.verdict.proofs)

    @property
    def max_difference(self) -> float:
        """Return the largest difference between a claimed and a computed value; 0 if none is known."""
        pairs = zip(self.verdict.proofs.values, self.verdict.computed, strict=True)
        differences = (self.spec.proof.difference(received, own) for received, own in pairs)
        return max(filter(math.isfinite, differences), default=0.0)

    def sentence(self) -> str:
        """Say the verdict and its reasons in one sentence, for a person."""
        if not self.n:
            return "Honest: the file has no proofs, so there is nothing to recompute."
        found, proof = self.verdict, self.spec.proof
        difference = (
            f"largest difference between a claimed and a computed {proof.noun} "
            f"{self.max_difference:.2g}"
        )
        if not found.n_invalid:
            return f"Honest: {counted(self.n, 'nonce')} recomputed, none is invalid; {difference}."
        invalid = f"{found.n_invalid:,} of {counted(self.n, 'nonce')} invalid"
        chance = f"an honest node has that many with probability {found.probability_honest:.2g}"
        if found.fraud_detected:
            return f"Fraud: {invalid}; {chance}, below the threshold of {proof.fraud_threshold:g}; {difference}."
        return f"Honest: {invalid}, but {chance}, the threshold is {proof.fraud_threshold:g}; {difference}."

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict for `--json`; of the nonces only the first NUM_NAMED invalid ones."""
        found, spec = self.verdict, self.spec
        return {
            "verdict": "fraud" if found.fraud_detected else "honest",
            "fraud_detected": found.fraud_detected,
            "n": self.n,
            "n_invalid": found.n_invalid,
            "probability_honest": found.probability_honest,
            **spec.proof.parameters(),
            "max_difference": self.max_difference,
            "invalid_nonces": found.invalid[:NUM_NAMED],
            "block_hash": spec.block_hash,
            "block_height": spec.block_height,
            "public_key": spec.public_key,
            "node_id": spec.node_id,
        }


def judged_by(file: ProofFile, **bounds: float) -> ProofFile:
    """Return a file whose proofs are judged by other bounds than those of its round.

    Args:
        bounds: parameters of its proof scheme.

    Raises:
        InvalidRound: one of them is none, or out of bounds.
    """
    return replace(file, spec=RoundSpec.build(**{**file.spec.model_dump(), **bounds}))


def check_model(file: ProofFile, info: EngineInfo) -> None:
    """Refuse to recompute proofs with another model than they were made with.

    The same weights in another dtype are refused too: bfloat16 against float32 puts about 1 % of
    honest nonces on the other side of r_target (measured on the embedded model), twenty times what
    the fraud test allows for, so that an honest node would be called a fraud.

    Raises:
        ModelMismatch: fingerprint or dtype differ; names both.
    """
    theirs = file.model
    if theirs.fingerprint != info.fingerprint:
        raise ModelMismatch(
            f"The proofs were made with model {theirs.name} ({theirs.fingerprint[:12]}); this one is "
            f"{info.model} ({info.fingerprint[:12]}). Give theirs with --model or POCQUEUE_MODEL."
        )
    dtype = file.spec.model_dtype or theirs.dtype
    if dtype is not None and dtype != info.dtype:
        raise ModelMismatch(
            f"The proofs were made with model {theirs.name} in {dtype}; here it is loaded in "
            f"{info.dtype}. Set POCQUEUE_DTYPE={dtype}."
        )


def engine_note(file: ProofFile, info: EngineInfo) -> str | None:
    """Say that proofs are recomputed by another runtime than they were made by; None if not.

    It is no reason to refuse, as the proof prescribes no runtime, but a reader of the verdict has to know.
    """
    theirs, ours = file.spec.model_runtime, info.runtime
    if theirs is None or theirs == ours:
        return None
    engine = theirs.partition("-x")[0]
    return (
        f"The proofs were made by {theirs} and are recomputed by {ours}: "
        f"{file.spec.proof.other_runtime}. For a verdict use POCQUEUE_ENGINE={engine} on as many devices; `pocqueue engine compare` measures it."
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
    spec, total = file.spec, len(file.proofs)
    computed: list[Any] = []
    for batch in batches_of(spec, file.proofs.nonces):
        if on_progress is not None:
            on_progress(len(computed), total)
        computed += engine.values(batch)
    if on_progress is not None:
        on_progress(total, total)
    return CheckedProofs(spec, spec.proof.judge(file.proofs, computed))
