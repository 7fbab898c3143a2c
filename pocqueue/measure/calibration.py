"""Which r_target makes a given share of nonces valid, for the model that is deployed.

A random direction in R^vocab would need no sampling: see `poc/distance/directions.py`. A language model's logits
are no random direction. Their mean is not zero, so every nonce's distance to the target t of a block is
shifted by about cos(logits, 1) * cos(t, 1), 1 being the vector of ones: the same for all nonces of the
block (a permutation does not move the vector of ones), another for the next block, and spread less. At
a fixed r_target the valid rate hence differs from block to block. So `round start --valid-rate` samples
nonces of the round's own block, and `pocqueue calibrate` without a block spreads its sample over several
made-up ones and says how much they differ, beside the interval that the size of the sample gives.
"""

from __future__ import annotations

import hashlib
import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pocqueue.engine.base import Engine, EngineInfo
from pocqueue.errors import CalibrationError, InvalidRound, PocqueueError, StoreUnavailable
from pocqueue.poc.batch import batches_of
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.records import RoundStatus
from pocqueue.rounds.spec import RoundSpec, RoundState
from pocqueue.rounds.store import START, Keys

#: Key that calibration searches for, so that no nonce of a real round is computed before it.
CALIBRATION_KEY = "pocqueue-calibration"
#: A quantile says nothing where fewer samples than this are expected on one of its sides.
MIN_EXPECTED = 10
#: How long to wait for new distances before looking at the round again.
POLL_MS = 500
#: After this long without a range given to any GPU, a missing scheduler is an error.
NO_SCHEDULER_S = 5.0

#: Receives (nonces sampled, nonces in all).
OnCount = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Calibration:
    """An r_target and how sure it is."""

    r_target: float
    #: Confidence interval of r_target; 0 or 2 where the sample gives no bound.
    low: float
    high: float
    #: Probability that [low, high] holds the right r_target.
    confidence: float
    #: What was asked for.
    valid_rate: float
    #: Share of the samples below r_target.
    sampled_rate: float
    num_samples: int
    #: Samples whose distance is not a finite number; they count as never valid.
    num_nonfinite: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Spread:
    """How much the valid rate differs between blocks at one r_target."""

    #: Of each block, in the order given.
    rates: tuple[float, ...]
    #: Standard deviation of those.
    observed: float
    #: What that would be, about, if blocks did not differ: chance alone.
    chance: float


def check_valid_rate(valid_rate: float, num_samples: int) -> None:
    """Check before sampling that a rate can be asked for, and with so many samples.

    Raises:
        InvalidRound: the rate is not inside (0, 1).
        CalibrationError: that many samples say too little about it.
    """
    if not 0 < valid_rate < 1:
        raise InvalidRound("valid_rate", valid_rate, "a share above 0 and below 1, such as 0.1")
    needed = math.ceil(MIN_EXPECTED / min(valid_rate, 1 - valid_rate))
    if num_samples < needed:
        raise CalibrationError(
            f"{num_samples:,} samples are too few for a valid rate of {valid_rate:g}: "
            f"at least {needed:,} are needed."
        )


def r_target_for(
    distances: Sequence[float], valid_rate: float, confidence: float = 0.95
) -> Calibration:
    """Estimate the r_target below which the given share of distances lies.

    The estimate is the quantile of type 6 of Hyndman & Fan (1996): a new nonce is below it with
    probability `valid_rate` on average, whatever the distribution. The interval is that of order
    statistics (David & Nagaraja, Order Statistics, 7.1): how many of n samples lie below the right
    r_target is binomial, so it is free of the distribution too, and holds its confidence or more.

    Args:
        distances: of a sample of nonces; one that is not finite counts as never valid.
        valid_rate: (0, 1).
        confidence: (0, 1).

    Raises:
        InvalidRound: valid_rate or confidence is out of bounds.
        CalibrationError: there are too few samples, or too many of them are equal or not finite.
    """
    if not 0 < confidence < 1:
        raise InvalidRound("confidence", confidence, "above 0 and below 1, such as 0.95")
    num = len(distances)
    check_valid_rate(valid_rate, num)
    ordered = sorted(d if math.isfinite(d) else math.inf for d in distances)
    num_finite = sum(map(math.isfinite, ordered))
    # 1 <= place <= num, as at least MIN_EXPECTED are expected on either side.
    place = (num + 1) * valid_rate
    below = int(place)
    value = ordered[below - 1]
    if place > below:
        value += (place - below) * (ordered[below] - value)
    if not math.isfinite(value):
        raise CalibrationError(
            f"{num - num_finite:,} of {num:,} distances are not finite numbers, so no r_target "
            f"gives a valid rate of {valid_rate:g}: try another dtype (POCQUEUE_DTYPE)."
        )
    sampled_rate = sum(d < value for d in ordered) / num
    if sampled_rate < valid_rate / 2:
        raise CalibrationError(
            f"Many distances are exactly {value:g}, so no r_target gives a valid rate of "
            f"{valid_rate:g}: the model's logits hardly depend on its input; try another model."
        )
    first, last = _interval_places(num, valid_rate, confidence)
    low = ordered[first - 1] if first >= 1 else 0.0
    high = ordered[last - 1] if last <= num_finite else 2.0
    return Calibration(
        r_target=value,
        low=low,
        high=high,
        confidence=confidence,
        valid_rate=valid_rate,
        sampled_rate=sampled_rate,
        num_samples=num,
        num_nonfinite=num - num_finite,
    )


def _interval_places(num: int, rate: float, confidence: float) -> tuple[int, int]:
    """Return the places, from 1, of the order statistics that bound a quantile.

    0 or num + 1 where the sample gives no bound on that side.
    """
    import numpy as np
    from scipy.special import bdtr

    # tail[k] = P(at most k of num samples are below the quantile)
    tail = bdtr(np.arange(num + 1, dtype=np.float64), num, rate)
    error = (1 - confidence) / 2
    first = int(np.searchsorted(tail, error, side="right"))
    last = int(np.searchsorted(tail, 1 - error, side="left")) + 1
    return first, last


def made_up_blocks(num: int = 8) -> list[str]:
    """Return block hashes that no chain has; the same ones every time, so that results repeat."""
    texts = (f"pocqueue calibration block {i}" for i in range(num))
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


def spread_between(samples: Sequence[Sequence[float]], r_target: float) -> Spread:
    """Compare the valid rates of blocks.

    Args:
        samples: distances of each block, none empty; at least two blocks.
        r_target: a distance below it is valid; NaN never is.
    """
    rates = [sum(d < r_target for d in block) / len(block) for block in samples]
    mean = math.fsum(rates) / len(rates)
    variance = math.fsum((rate - mean) ** 2 for rate in rates) / (len(rates) - 1)
    # The mean over blocks of a binomial share's variance.
    chance = math.fsum(mean * (1 - mean) / len(block) for block in samples) / len(samples)
    return Spread(tuple(rates), math.sqrt(variance), math.sqrt(chance))


def sample_pool(
    backend: Backend,
    info: EngineInfo,
    *,
    block_hash: str,
    seq_len: int,
    batch_size: int,
    num_nonces: int,
    public_key: str = CALIBRATION_KEY,
    window_s: float = 330.0,
    at_least: int | None = None,
    on_progress: OnCount | None = None,
) -> list[float]:
    """Sample distances through the queue, on all live GPUs that have the model deployed.

    This is a round like any other, with r_target 2, below which every distance is. It is stopped
    where this is interrupted. While Redis is away this waits, to the end of the window.

    Args:
        backend: store and pool.
        info: the model, as `choose_model` returns it.
        num_nonces: how many to sample; the nonces 0 to num_nonces - 1.
        window_s: seconds that it may take; (0, 3600].
        at_least: fewer than this are an error; None: fewer than num_nonces are.
        on_progress: told whenever distances came.

    Returns:
        A distance for each nonce that was counted, in no order; NaN where it is not finite.

    Raises:
        InvalidRound: a field is out of bounds.
        CalibrationError: it ended with fewer than `at_least`; says why.
    """
    spec = _spec(info, block_hash, public_key, seq_len, batch_size, num_nonces, window_s)
    # Named here, so that it can be stopped even where the answer to its making is lost.
    round_id = str(uuid.uuid4())
    try:
        backend.store.create(spec, round_id)
        status, distances = _follow(backend, round_id, spec, on_progress)
    finally:
        _stop(backend, round_id)
    if status.checked < (num_nonces if at_least is None else at_least):
        raise CalibrationError(
            f"Calibration ended after {status.elapsed_s:.0f} s with {status.checked:,} of "
            f"{num_nonces:,} nonces: {_why_short(status)}."
        )
    missing = status.checked - len(distances) - status.nonfinite
    # Not below r_target 2 and finite: exactly 2.
    return distances + [math.nan] * status.nonfinite + [2.0] * missing


def sample_engine(
    engine: Engine,
    *,
    block_hash: str,
    seq_len: int,
    batch_size: int,
    num_nonces: int,
    public_key: str = CALIBRATION_KEY,
    on_progress: OnCount | None = None,
) -> list[float]:
    """Sample distances with an engine of this process; as `sample_pool`, without a queue.

    Raises:
        InvalidRound: a field is out of bounds, or seq_len is above the model's limit.
    """
    spec = _spec(engine.info, block_hash, public_key, seq_len, batch_size, num_nonces, 1.0)
    distances: list[float] = []
    for batch in batches_of(spec, range(num_nonces)):
        distances += engine.values(batch)
        if on_progress is not None:
            on_progress(len(distances), num_nonces)
    return distances


def _spec(
    info: EngineInfo,
    block_hash: str,
    public_key: str,
    seq_len: int,
    batch_size: int,
    num_nonces: int,
    window_s: float,
) -> RoundSpec:
    return RoundSpec.build(
        block_hash=block_hash,
        public_key=public_key,
        r_target=2.0,
        seq_len=seq_len,
        batch_size=batch_size,
        max_nonces=num_nonces,
        window_s=window_s,
        model=info.model,
        model_fingerprint=info.fingerprint,
        model_dtype=info.dtype,
        model_runtime=info.runtime,
    )


def _follow(
    backend: Backend, round_id: str, spec: RoundSpec, on_progress: OnCount | None
) -> tuple[RoundStatus, list[float]]:
    """Collect a calibration round's distances until it is over; return how it ended, too."""
    assert spec.max_nonces is not None
    store, cursor = backend.store, START
    distances: list[float] = []
    patience = time.monotonic() + spec.window_s
    while True:
        try:
            # Before the proofs: once it is over, what is read next is all there will be.
            status = store.status(round_id)
            over = not status.state.is_active or (
                status.checked + status.abandoned >= spec.max_nonces
            )
            entries = store.read_proofs(status, cursor, block_ms=None if over else POLL_MS)
            if not entries and (over or _no_scheduler(backend, status)):
                return status, distances
        except StoreUnavailable:
            if time.monotonic() > patience:
                raise
            time.sleep(POLL_MS / 1000)
            continue
        for entry in entries:
            distances += entry.proofs.values
            cursor = entry.cursor
        if entries and on_progress is not None:
            on_progress(len(distances), spec.max_nonces)


def _no_scheduler(backend: Backend, status: RoundStatus) -> bool:
    """Say whether a round waits for a scheduler that is not there."""
    if status.next_index > 0 or status.elapsed_s < NO_SCHEDULER_S:
        return False
    return not backend.client.exists(Keys.LEADER)


def _why_short(status: RoundStatus) -> str:
    if status.state.is_active and status.next_index == 0:
        return "no scheduler is there to give them to GPUs; start one with `pocqueue scheduler`"
    if status.abandoned:
        return f"{status.abandoned:,} were given up after failing on every GPU; the workers' logs say why"
    if status.state is RoundState.EXPIRED:
        return "its time was over; give it more, ask for fewer samples, or look at `pocqueue gpus`"
    return f"the round is {status.state.value}" + (f" ({status.reason})" if status.reason else "")


def _stop(backend: Backend, round_id: str) -> None:
    """End the round if it still runs. Where that fails its window ends it."""
    try:
        backend.store.close(round_id, RoundState.STOPPED, "calibration ended")
    except PocqueueError:
        return
