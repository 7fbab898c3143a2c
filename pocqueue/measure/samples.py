"""Samples of distances, or artifacts: through the queue, or with an engine of this process."""

from __future__ import annotations

import contextlib
import hashlib
import math
import uuid
from typing import Any

from pocqueue.engine.base import Engine, EngineInfo
from pocqueue.errors import CalibrationError, PocqueueError
from pocqueue.poc.batch import batches_of
from pocqueue.poc.scheme import ProofSearch
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.compute import OnCount, follow, why_short
from pocqueue.rounds.records import ProofEntry, RoundStatus
from pocqueue.rounds.spec import RoundSpec, RoundState
from pocqueue.rounds.start import decided, draft_spec

#: Key that calibration searches for, so that no nonce of a real round is computed before it.
CALIBRATION_KEY = "pocqueue-calibration"


def made_up_blocks() -> list[str]:
    """Return eight block hashes that no chain has; the same ones every time, so that results repeat."""
    texts = (f"pocqueue calibration block {i}" for i in range(8))
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


def sample_draft(block_hash: str, **fields: Any) -> RoundSpec:
    """Return a round to sample nonces of a block with, in other nonces than those of real rounds.

    Args:
        fields: of `RoundSpec` that differ from its own, such as seq_len and batch_size.

    Raises:
        InvalidRound: a field is out of bounds.
    """
    return draft_spec(block_hash=block_hash, public_key=CALIBRATION_KEY, **fields)


def distances_of(status: RoundStatus, entries: list[ProofEntry]) -> list[float]:
    """Return what `run_sample` found with r_target 2, below which every distance is.

    Returns:
        A distance for each nonce that was counted, in no order; NaN if it is not finite.
    """
    distances = [distance for entry in entries for distance in entry.proofs.values]
    missing = status.checked - len(distances) - status.nonfinite
    # Not below r_target 2 and finite: exactly 2.
    return distances + [math.nan] * status.nonfinite + [2.0] * missing


def run_sample(
    backend: Backend,
    info: EngineInfo,
    draft: RoundSpec,
    num_nonces: int,
    *,
    at_least: int | None = None,
    on_progress: OnCount | None = None,
) -> tuple[RoundStatus, list[ProofEntry]]:
    """Run a round of samples on all live GPUs that have the model deployed.

    This is a round like any other. It is stopped if this is interrupted. While Redis is away this waits, to the
    end of the draft's window.

    Args:
        backend: store and pool.
        info: the model, as `choose_model` returns it.
        draft: of `sample_draft`.
        num_nonces: how many to sample; the nonces 0 to num_nonces - 1.
        at_least: fewer than this are an error; None: fewer than num_nonces are.
        on_progress: told whenever some came.

    Returns:
        How it ended, and all that it kept.

    Raises:
        CalibrationError: it ended with fewer than `at_least`; says why.
    """
    spec = decided(draft, info, max_nonces=num_nonces)
    # Named here, so that it can be stopped even if the reply to `create` is lost.
    round_id = str(uuid.uuid4())
    try:
        backend.store.create(spec, round_id)
        status, entries = follow(backend, round_id, spec.window_s, on_progress)
    finally:
        with contextlib.suppress(PocqueueError):  # its window ends it then
            backend.store.close(round_id, RoundState.STOPPED, "calibration ended")
    if status.checked < (num_nonces if at_least is None else at_least):
        raise CalibrationError(
            f"Calibration ended after {status.elapsed_s:.0f} s with {status.checked:,} of "
            f"{num_nonces:,} nonces: {why_short(status)}."
        )
    return status, entries


def sample_engine(
    engine: Engine, search: ProofSearch, num_nonces: int, *, on_progress: OnCount | None = None
) -> list[Any]:
    """Sample values with an engine of this process, in the order of their nonces, broken ones too.

    Raises:
        InvalidRound: seq_len is above the model's limit.
    """
    values: list[Any] = []
    for batch in batches_of(search, range(num_nonces)):
        values += engine.values(batch)
        if on_progress is not None:
            on_progress(len(values), num_nonces)
    return values
