"""Which r_target makes a given share of nonces valid, for the model that is deployed.

A random direction in R^vocab would need no sampling: see `poc/distance/random_directions.py`. A language model's logits
are no random direction. Their mean is not zero, so every nonce's distance to the target t of a block is
shifted by about cos(logits, 1) * cos(t, 1), 1 being the vector of ones: the same for all nonces of the
block (a permutation does not move the vector of ones), another for the next block, and spread less. At
a fixed r_target the valid rate hence differs from block to block. So `round start --valid-rate` samples
nonces of the round's own block, and `pocqueue calibrate` without a block spreads its sample over several
made-up ones and says how much they differ, beside the interval that the size of the sample gives.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pocqueue.errors import CalibrationError, EngineError
from pocqueue.poc.data import is_valid
from pocqueue.poc.distance.random_directions import check_share

#: A quantile says nothing if fewer samples than this are expected on one of its sides.
MIN_EXPECTED = 10
#: Probability that an interval holds the right value.
CONFIDENCE = 0.95
#: Probability that it lies beyond one of its ends.
_ERROR = (1 - CONFIDENCE) / 2


@dataclass(frozen=True, slots=True)
class Calibration:
    """An r_target and how sure it is."""

    r_target: float
    low: float  #: confidence interval of r_target; 0 or 2 if the sample gives no bound
    high: float
    confidence: float  #: probability that [low, high] holds the right r_target
    valid_rate: float  #: what was asked for
    sampled_rate: float  #: share of the samples below r_target
    num_samples: int
    num_nonfinite: int  #: samples whose distance is not a finite number: never valid


@dataclass(frozen=True, slots=True)
class Spread:
    """How much the valid rate differs between blocks at one r_target."""

    rates: tuple[float, ...]  #: of each block, in the order given
    observed: float  #: standard deviation of those
    chance: float  #: what that would be, about, if blocks did not differ

    @property
    def beyond_chance(self) -> float:
        """What blocks differ by beside that."""
        return math.sqrt(max(0.0, self.observed**2 - self.chance**2))


def check_valid_rate(valid_rate: float, num_samples: int) -> None:
    """Check before sampling that this many samples can say something about a rate.

    Raises:
        InvalidRound: the rate is not inside (0, 1).
        CalibrationError: that many samples say too little about it.
    """
    check_share(valid_rate)
    needed = math.ceil(MIN_EXPECTED / min(valid_rate, 1 - valid_rate))
    if num_samples < needed:
        raise CalibrationError(
            f"{num_samples:,} samples are too few for a valid rate of {valid_rate:g}: "
            f"at least {needed:,} are needed."
        )


def quantile(ordered: Sequence[float], share: float) -> tuple[float, float, float]:
    """Estimate the value below which a share of a distribution lies, with an interval of confidence `CONFIDENCE`.

    The estimate is the quantile of type 6 of Hyndman & Fan (1996): a new sample is below it with
    probability `share` on average, whatever the distribution. The interval is that of order
    statistics (David & Nagaraja, Order Statistics, 7.1): how many of n samples lie below the right
    value is binomial, so it is free of the distribution too, and holds its confidence or more.

    Args:
        ordered: samples, ascending; at least MIN_EXPECTED are expected on either side of the value.
        share: (0, 1).

    Returns:
        The estimate, and the lower and upper bound; an infinity where the sample gives none.
    """
    from scipy.special import bdtrik

    num = len(ordered)
    # 1 <= place <= num
    place = (num + 1) * share
    below = int(place)
    value = ordered[below - 1]
    if place > below:
        value += (place - below) * (ordered[below] - value)
    # Places, from 1, of the order statistics that bound the quantile: those of the binomial distribution of
    # how many samples are below it, one further at the top.
    first, last = (math.ceil(bdtrik(tail, num, share)) for tail in (_ERROR, 1 - _ERROR))
    low = ordered[first - 1] if first >= 1 else -math.inf
    return value, low, ordered[last] if last < num else math.inf


def r_target_for(distances: Sequence[float], valid_rate: float) -> Calibration:
    """Estimate the r_target below which the given share of distances lies; see `quantile`.

    Args:
        distances: of a sample of nonces; one that is not finite counts as never valid.
        valid_rate: (0, 1).

    Raises:
        InvalidRound: valid_rate is out of bounds.
        CalibrationError: there are too few samples, or too many of them are equal or not finite.
    """
    num = len(distances)
    check_valid_rate(valid_rate, num)
    ordered = sorted(d if math.isfinite(d) else math.inf for d in distances)
    num_finite = sum(map(math.isfinite, ordered))
    value, low, high = quantile(ordered, valid_rate)
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
    return Calibration(
        r_target=value,
        # Where the sample gives no bound, these are all distances there are.
        low=max(low, 0.0),
        high=min(high, 2.0),
        confidence=CONFIDENCE,
        valid_rate=valid_rate,
        sampled_rate=sampled_rate,
        num_samples=num,
        num_nonfinite=num - num_finite,
    )


def spread_between(samples: Sequence[Sequence[float]], r_target: float) -> Spread:
    """Compare the valid rates of blocks.

    Args:
        samples: distances of each block, none empty; at least two blocks.
        r_target: a distance below it is valid; NaN never is.
    """
    rates = [sum(d < r_target for d in block) / len(block) for block in samples]
    mean = statistics.fmean(rates)
    # The mean over blocks of a binomial share's variance.
    chance = statistics.fmean(mean * (1 - mean) / len(block) for block in samples)
    return Spread(tuple(rates), statistics.stdev(rates, mean), math.sqrt(chance))


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowEstimate:
    """What a window will give, and how sure that is."""

    window_s: float
    num_nonces: int  #: that the engine gets through
    r_target: float
    confidence: float  #: of both intervals
    num_samples: int
    num_blocks: int  #: that the samples are of
    rate: float  #: share of the samples that are valid
    rate_low: float
    rate_high: float
    #: Standard deviation, beyond chance, of blocks' rates; None: there is one block only.
    between_blocks: float | None
    num_valid: float  #: expected number of valid nonces
    num_valid_low: float
    num_valid_high: float


def estimate_window(
    nonces_per_s: float,
    window_s: float,
    samples: Sequence[Sequence[float]],
    r_target: float,
) -> WindowEstimate:
    """Estimate the number of valid nonces of a window, for a block that nobody has seen yet.

    The interval of the rate is Clopper and Pearson's (1934), from the same binomial distribution as that
    of a calibration, and likewise holds its confidence or more. The number of valid nonces differs from
    rate x nonces for three reasons that have nothing to do with each other: the sample's error, the
    block's own rate, and chance among the nonces of the window. Their squares are added. How fast the
    engine will be is taken as known.

    Args:
        nonces_per_s: of the engine.
        window_s: seconds.
        samples: distances of each block; those that are not finite count as never valid.
        r_target: (0, 2].

    Raises:
        EngineError: there are no samples.
    """
    from scipy.special import betaincinv, ndtri, stdtrit

    num = sum(map(len, samples))
    if num == 0:
        raise EngineError("There are no distances to estimate a valid rate from.")
    valid = sum(is_valid(distance, r_target) for block in samples for distance in block)
    rate = valid / num
    low = float(betaincinv(valid, num - valid + 1, _ERROR)) if valid else 0.0
    high = float(betaincinv(valid + 1, num - valid, 1 - _ERROR)) if valid < num else 1.0
    nonces = nonces_per_s * window_s
    between, block = None, 0.0
    if len(samples) > 1:
        between = spread_between(samples, r_target).beyond_chance
        block = float(stdtrit(len(samples) - 1, 1 - _ERROR)) * between * nonces
    chance = float(ndtri(1 - _ERROR)) * math.sqrt(nonces * rate * (1 - rate))
    below = math.hypot(nonces * (rate - low), block, chance)
    above = math.hypot(nonces * (high - rate), block, chance)
    return WindowEstimate(
        window_s=window_s,
        num_nonces=int(nonces),
        r_target=r_target,
        confidence=CONFIDENCE,
        num_samples=num,
        num_blocks=len(samples),
        rate=rate,
        rate_low=low,
        rate_high=high,
        between_blocks=between,
        num_valid=nonces * rate,
        num_valid_low=max(0.0, nonces * rate - below),
        num_valid_high=min(nonces, nonces * rate + above),
    )
