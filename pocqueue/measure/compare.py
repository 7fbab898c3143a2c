"""Two engines on the same nonces: how far their distances are apart, how many verdicts flip, how fast.

Artifacts are compared in `apart.py`; engines are run here for both. The comparison is a function from distances to numbers. Running an engine is the other half: the command
gives each a process of its own (`child.py`).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pocqueue.engine.base import Engine, EngineInfo, OnProgress
from pocqueue.errors import EngineError, ModelMismatch
from pocqueue.poc.batch import batches_of
from pocqueue.poc.data import PROBABILITY_MISMATCH
from pocqueue.poc.distance.random_directions import check_share
from pocqueue.poc.distance.scheme import Distance
from pocqueue.poc.scheme import ProofSearch

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

#: Engines whose relative difference is at least this much disagree.
MAX_RELATIVE_DIFFERENCE = 0.01
#: So do engines whose differences are at least this much of the spread of the distances. All chords of
#: a large vocabulary are near the square root of 2 and hardly spread (0.003 for 150,000 logits), so
#: that the relative difference of two engines that have nothing in common is 0.3 %; this is 1.4 then.
MAX_SPREAD_DIFFERENCE = 0.5
#: r_target if none is given: this share of a's nonces is valid.
DEFAULT_VALID_RATE = 0.1

_TELL_EVERY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one engine gave for the nonces from 0 on."""

    info: EngineInfo
    values: list[Any]  #: one a nonce, as the proof scheme has it; a broken one is NaN, or None
    batch_size: int  #: nonces of one pass; a short last batch is padded to it
    batch_s: list[float]  #: seconds of each pass

    @property
    def median_batch_s(self) -> float:
        """Median of the passes, in seconds."""
        return statistics.median(self.batch_s)

    @property
    def nonces_per_s(self) -> float:
        """Nonces per second of the median pass."""
        return self.batch_size / self.median_batch_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How the distances of an engine b differ from those of an engine a."""

    num_nonces: int
    num_compared: int  #: those whose distance is finite in both
    num_nonfinite_a: int
    num_nonfinite_b: int
    relative_difference: float  #: ||a - b|| / ||a||
    spread_difference: float | None  #: ||a - b|| / ||a - mean(a)||; None if a has no spread
    median_difference: float  #: of |a - b|, as are the next two
    p99_difference: float
    max_difference: float
    rms_difference: float  #: root of the mean square
    honest_difference: float  #: spot checks take what is above it for invalid, whatever the engines
    num_beyond: int  #: differences above it
    r_target: float
    num_valid_a: int
    num_valid_b: int
    num_only_a: int  #: valid in a, not in b
    num_only_b: int
    flips: Flips

    @property
    def agrees(self) -> bool:
        """The engines differ by no more than float error can make."""
        spread = self.spread_difference
        return self.relative_difference < MAX_RELATIVE_DIFFERENCE and (
            spread is None or spread < MAX_SPREAD_DIFFERENCE
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return asdict(self) | {
            "agrees": self.agrees,
            "interchangeable": self.agrees and self.flips.allowed,
            "sentence": self.sentence(),
        }

    def sentence(self) -> str:
        """Say what it means."""
        relative = (
            f"the relative difference of their distances is {share(self.relative_difference)}"
        )
        limit = share(MAX_RELATIVE_DIFFERENCE)
        if self.relative_difference >= MAX_RELATIVE_DIFFERENCE:
            return f"The engines disagree: {relative}, and float error stays below {limit}."
        if not self.agrees:
            assert self.spread_difference is not None
            return (
                f"The engines disagree: {relative}, below {limit}, but that is "
                f"{share(self.spread_difference)} of what distances spread, and float error stays "
                f"below {share(MAX_SPREAD_DIFFERENCE)}."
            )
        agree = f"The engines agree within float error: {relative}, below {limit}"
        worst = self.flips.worst
        if worst is None:
            return f"{agree}; too few nonces are near r_target to say how many verdicts flip."
        flip = (
            f"about {share(worst)} of the valid nonces flip, and the fraud test allows "
            f"{share(PROBABILITY_MISMATCH)}"
        )
        if self.flips.allowed:
            return f"{agree}; proofs of one may be validated with the other: {flip}."
        return f"{agree}; but do not validate proofs of one with the other: {flip}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """Which share of valid nonces the other engine is expected to find invalid; None: unknown."""

    share_a: float | None  #: of the nonces valid in a, by b: proofs of a, validated with b
    share_b: float | None  #: of the nonces valid in b, by a
    num_near: int  #: nonces near r_target, which this is estimated from

    @property
    def worst(self) -> float | None:
        """The larger share of the two; None if one is unknown."""
        if self.share_a is None or self.share_b is None:
            return None
        return max(self.share_a, self.share_b)

    @property
    def allowed(self) -> bool:
        """The fraud test takes that many for float error, in both directions."""
        return self.worst is not None and self.worst <= PROBABILITY_MISMATCH


def share(value: float) -> str:
    """Write a share that may be tiny: ``12.3 %``, ``0.000412 %``."""
    text = f"{100 * value:.3g}"
    # 1e-07 is harder to read than its zeros.
    return f"{100 * value:.12f}".rstrip("0") + " %" if "e-" in text else f"{text} %"


def quantile_r_target(distances: Sequence[float], valid_rate: float) -> float:
    """Return the distance below which a share of nonces lies, by the quantile of type 6.

    Args:
        distances: those that are not finite are left out.
        valid_rate: (0, 1).

    Raises:
        InvalidRound: valid_rate is out of bounds.
        EngineError: no distance is finite.
    """
    import numpy as np

    check_share(valid_rate)
    finite = [d for d in distances if math.isfinite(d)]
    if not finite:
        raise EngineError(
            f"None of {len(distances):,} distances is a finite number: try another dtype "
            "(POCQUEUE_DTYPE)."
        )
    return float(np.quantile(finite, valid_rate, method="weibull"))


def compare(a: Sequence[float], b: Sequence[float], r_target: float, vocab_size: int) -> Comparison:
    """Compare two engines' distances of the same nonces.

    Args:
        a: distances of one engine; those that are not finite, in either, are dropped and counted.
        b: of the other, for the same nonces in the same order.
        r_target: a nonce is valid if its distance is below.
        vocab_size: number of logits of the model.

    Raises:
        EngineError: no nonce has a finite distance in both.
    """
    import numpy as np

    pairs = np.array([a, b], dtype=np.float64)
    finite = np.isfinite(pairs)
    bad_a, bad_b = (int(bad) for bad in (~finite).sum(axis=1))
    first, second = pairs[:, finite.all(axis=0)]
    if not len(first):
        raise EngineError(
            f"No nonce of {len(a):,} has a finite distance in both engines ({bad_a:,} are not finite "
            f"in a, {bad_b:,} in b): try another dtype (POCQUEUE_DTYPE)."
        )
    apart = np.abs(first - second)
    norm = float(np.linalg.norm(apart))
    spread = float(np.linalg.norm(first - first.mean()))
    bound = Distance(r_target=r_target).honest_difference(vocab_size)
    in_a, in_b = first < r_target, second < r_target
    return Comparison(
        num_nonces=len(a),
        num_compared=len(first),
        num_nonfinite_a=bad_a,
        num_nonfinite_b=bad_b,
        relative_difference=norm / float(np.linalg.norm(first)),
        spread_difference=norm / spread if spread > 0 else None,
        median_difference=float(np.median(apart)),
        p99_difference=float(np.quantile(apart, 0.99)),
        max_difference=float(apart.max()),
        rms_difference=norm / math.sqrt(len(first)),
        honest_difference=bound,
        num_beyond=int((apart > bound).sum()),
        r_target=r_target,
        num_valid_a=int(in_a.sum()),
        num_valid_b=int(in_b.sum()),
        num_only_a=int((in_a & ~in_b).sum()),
        num_only_b=int((in_b & ~in_a).sum()),
        flips=expected_flips(first, second, r_target),
    )


def expected_flips(a: ArrayLike, b: ArrayLike, r_target: float) -> Flips:
    """Estimate which share of valid nonces flips, from many thresholds instead of r_target alone.

    At one threshold few of a sample's nonces flip, if any. So this takes all thresholds t between two
    quantiles of a's distances, t0 and t1: those at q - w and q + w, where r_target makes the share q
    of a's nonces valid and w = min(q, 1 - q) / 2. For q = 10 % these are 5 % and 15 %. Then

        share_a = mean over t of #{i: a_i < t <= b_i} / mean over t of #{i: a_i < t}

    and share_b the same with a and b exchanged. Nonce i is valid in a for the t above a_i, and flips
    for those in (a_i, b_i], so both means are sums of lengths, with no grid of thresholds between. It
    is unbiased as far as differences are the same all over [t0, t1]; its own relative error is about
    one by the square root of the number of nonces there.

    Args:
        a: finite distances of one engine, at least one.
        b: of the other, for the same nonces in the same order.
        r_target: the thresholds lie around it.

    Returns:
        The shares, each None if no threshold makes a nonce valid in that engine.
    """
    import numpy as np

    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    rate = float(np.mean(first < r_target))
    width = min(rate, 1 - rate) / 2
    low, high = np.quantile(first, [rate - width, rate + width], method="weibull")
    near = (first >= low) & (first <= high)
    in_a, in_b = np.clip(first, low, high), np.clip(second, low, high)

    def part(valid: Any, other: Any) -> float | None:
        length = float((high - valid).sum())
        return float(np.clip(other - valid, 0, None).sum()) / length if length > 0 else None

    return Flips(share_a=part(in_a, in_b), share_b=part(in_b, in_a), num_near=int(near.sum()))


def check_same_model(a: EngineInfo, b: EngineInfo, *, any_dtype: bool = False) -> None:
    """Refuse to compare engines that have not the same model in the same dtype.

    Args:
        any_dtype: the dtypes may differ.

    Raises:
        ModelMismatch: naming both.
    """
    if a.fingerprint != b.fingerprint:
        raise ModelMismatch(
            f"Engine a ({a.engine}) has model {a.model} ({a.fingerprint[:12]}) and engine b "
            f"({b.engine}) has model {b.model} ({b.fingerprint[:12]}): name with --model the one that "
            "both are to have."
        )
    if a.dtype != b.dtype and not any_dtype:
        raise ModelMismatch(
            f"Engine a ({a.engine}) has {a.model} in {a.dtype} and engine b ({b.engine}) in {b.dtype}: "
            "set POCQUEUE_DTYPE to the one that both are to use, or name each as ENGINE@DTYPE."
        )


def measure(
    engine: Engine,
    on_progress: OnProgress,
    *,
    search: ProofSearch,
    num_nonces: int,
    same_as: EngineInfo | None = None,
    any_dtype: bool = False,
) -> Measurement:
    """Run one pass that does not count, then the nonces 0 to num_nonces - 1, timing each batch.

    Args:
        engine: to measure.
        on_progress: told in one line each what is being done.
        search: block, key and shape of the batches.
        num_nonces: how many; >= 1.
        same_as: the engine to compare with; another model than its is refused before it runs.
        any_dtype: it may have another dtype than that one.

    Raises:
        ModelMismatch: it has another model or dtype than `same_as`.
        EngineError, InvalidRound: as the engine does.
    """
    if same_as is not None:
        check_same_model(same_as, engine.info, any_dtype=any_dtype)
    on_progress(
        f"Measuring {num_nonces:,} nonces in batches of {search.batch_size} x {search.seq_len}"
    )
    engine.warm_up(search.batch_size, search.seq_len)
    values: list[Any] = []
    batch_s: list[float] = []
    told = time.monotonic()
    for batch in batches_of(search, range(num_nonces)):
        began = time.perf_counter()
        values += engine.values(batch)
        batch_s.append(time.perf_counter() - began)
        if time.monotonic() - told > _TELL_EVERY_S:
            told = time.monotonic()
            on_progress(f"{len(values):,} of {num_nonces:,} nonces")
    return Measurement(
        info=engine.info, values=values, batch_size=search.batch_size, batch_s=batch_s
    )
