"""How many valid nonces a window gives, by the rate of an engine and a sample of its distances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pocqueue.errors import EngineError
from pocqueue.poc.data import is_valid


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
    between_blocks: (
        float | None
    )  #: standard deviation, beyond chance, of blocks' rates; None: unknown
    num_valid: float  #: expected number of valid nonces
    num_valid_low: float
    num_valid_high: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate_window(
    nonces_per_s: float,
    window_s: float,
    samples: Sequence[Sequence[float]],
    r_target: float,
    between_blocks: float | None,
    confidence: float = 0.95,
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
        between_blocks: standard deviation of blocks' valid rates without what chance makes of it.
        confidence: (0, 1).

    Raises:
        EngineError: there are no samples.
    """
    from scipy.special import betaincinv, ndtri, stdtrit

    num = sum(map(len, samples))
    if num == 0:
        raise EngineError("There are no distances to estimate a valid rate from.")
    valid = sum(is_valid(distance, r_target) for block in samples for distance in block)
    error = (1 - confidence) / 2
    rate = valid / num
    low = float(betaincinv(valid, num - valid + 1, error)) if valid else 0.0
    high = float(betaincinv(valid + 1, num - valid, 1 - error)) if valid < num else 1.0
    nonces = nonces_per_s * window_s
    block = 0.0
    if between_blocks:
        block = float(stdtrit(len(samples) - 1, 1 - error)) * between_blocks * nonces
    chance = float(ndtri(1 - error)) * math.sqrt(nonces * rate * (1 - rate))
    below = math.hypot(nonces * (rate - low), block, chance)
    above = math.hypot(nonces * (high - rate), block, chance)
    return WindowEstimate(
        window_s=window_s,
        num_nonces=int(nonces),
        r_target=r_target,
        confidence=confidence,
        num_samples=num,
        num_blocks=len(samples),
        rate=rate,
        rate_low=low,
        rate_high=high,
        between_blocks=between_blocks,
        num_valid=nonces * rate,
        num_valid_low=max(0.0, nonces * rate - below),
        num_valid_high=min(nonces, nonces * rate + above),
    )
