"""Which nonces of a session are recomputed, and when the result is called fraud. Pure maths, no engine.

A big node that makes nonces up is found by recomputing a random sample of what it sends, which it
cannot foresee. Two numbers have to be right: how often a cheat is caught, and how seldom an honest
node is called one.

**When it is fraud.** An honest nonce comes out as invalid with probability 5e-4 (float error;
`poc.distance.data.PROBABILITY_MISMATCH`), independently of the others. The sample grows during the
session and is looked at over and over, and each look is one more chance to be wrong. So the round's
fraud_threshold is split over the counts of invalid nonces: the k-th one, k >= 2, is given
fraud_threshold / (k (k - 1)), which sums to fraud_threshold over all k. It is fraud if k nonces
are invalid among n and

    P(X >= k) < fraud_threshold / (k (k - 1)),   X ~ B(n, 5e-4).

Let n_k be the largest n for which that holds. Counts never fall, so to be called a fraud at any look,
with k among n <= n_k, means to have at least k among the first n_k; the chance of that is below k's
part. An honest session is thus called fraud with a probability below fraud_threshold, however often
and whenever it is looked at, and however long it is. For the threshold 0.01: n_2 = 207, n_3 = 456,
n_4 = 816. One invalid nonce alone is never fraud.

**How many.** A made-up nonce claims to be valid, and its true distance is as anybody's: it is not below
r_target with probability 1 - valid_rate, 0.9 for a calibrated r_target, and farther from the claim than
float error with 0.96. Say that it comes out as invalid with 0.9. With 100 made-up ones among
2000 and the threshold 0.01, a fixed sample of 141 holds at least 2 that come out as invalid with
probability 0.9901 (exact, hypergeometric; 140 would have 0.9897). A stream whose end is not known cannot
be given a fixed sample, so each nonce is taken by itself, with probability 144 / 2000 = 0.072, the
margin being what the chance in the number taken costs. Then enough of them come out as invalid for the
size of the sample with probability 0.9902 or more; the session's end is one of the looks.
`tests/node/test_sampling.py` recomputes these numbers.

**Long and short sessions.** A small node may have one GPU for the proofs of a hundred. Beyond 2000
nonces the rate falls as 2000 / seen, which adds about 100 nonces to the sample for each doubling of
the session. A session shorter than 2000 nonces is sampled at the same rate and so with less certainty:
5 % of 1000 are caught with 0.84.

**Artifacts.** A vector that is made up is a mismatch for any threshold in use: unrelated ones are 1.41 apart on average, and
farther than 0.75 with more than 0.99. But honest ones are mismatches far more often than distances, with a probability of
up to p_mismatch, and it is this that a cheat can hide in. Worst for us are GPUs that are never a mismatch by themselves: they have
all of p_mismatch to hide in, so that a cheat below it cannot be found by any sample. What is certain is that 20 % made up are
caught; `sample_size` says how many nonces that takes (binomial), at least as many as for distances:

    p_mismatch   of the first 2000   20 % of 2000   5 % of 2000    of 10 000      of 50 000      of 285 000
    0.005        144                 1.00           0.72 to 0.80   0.99 to 1.00   1.00           1.00
    0.01         144                 1.00           0.42 to 0.62   0.89 to 0.98   0.99 to 1.00   1.00
    0.02         144                 1.00           0.06 to 0.28   0.24 to 0.80   0.53 to 0.98   0.73 to 1.00
    0.05         179                 0.99           0 to 0.07      0 to 0.36      0 to 0.72      0 to 0.91
    0.1          622                 0.99           0 to 0.11      0 to 0.69      0 to 0.97      0 to 1.00

(chance to be caught where honest nonces are never mismatches, to where they are with p_mismatch; in a sample of the expected
size, and tested against 0.01). 285 000 is what 30 GPUs do in 190 s; of these 860 are recomputed with 0.01, and 3700 with 0.1.
So the threshold of a pool is to be measured for a p_mismatch of 0.01 or less (`pocqueue calibrate --proof artifact --p-mismatch
0.01`): it is higher than that for the chain's 0.1, and still far below what made-up vectors are apart.
An honest session is called fraud with less than the threshold, by the argument above, which holds for any p_mismatch.
"""

from __future__ import annotations

import random
import secrets
from dataclasses import KW_ONLY, dataclass, field

from pocqueue.poc.fraud import PROBABILITY_MISMATCH, fraud_test

#: Probability of each of a session's first SESSION_NONCES to be recomputed.
SAMPLE_RATE, SESSION_NONCES = 0.072, 2000
#: That rate catches 5 % made-up nonces with certainty 0.99 if the sample is tested against this.
FRAUD_THRESHOLD = 0.01
#: Of artifacts: that much made up is caught with that probability, each made-up one being a mismatch with the last one.
LARGE_CHEAT, CERTAINTY, FOUND = 0.2, 0.99, 0.99
#: Between engines of different kinds two things are tested; this part of the threshold is for the second,
#: the nonces that came out on the other side of the round's bound.
SIDES_SHARE = 0.1


def judge_sample(
    num_invalid: int,
    num_sampled: int,
    fraud_threshold: float,
    probability_mismatch: float = PROBABILITY_MISMATCH,
) -> tuple[float, bool]:
    """Say what a sample tells, at any time and as often as wanted; the module says why that is right.

    Args:
        num_invalid: nonces that came out as invalid; 0 … num_sampled.
        num_sampled: nonces that were recomputed.
        fraud_threshold: an honest session is called fraud with less than this probability; (0, 1).
        probability_mismatch: chance of an honest nonce to come out as invalid; (0, 1).

    Returns:
        The chance of an honest node to have that many invalid ones, or more, among so many, and
        whether that is fraud.

    Raises:
        ValueError: `num_invalid` is negative or above `num_sampled`.
    """
    pairs = num_invalid * (num_invalid - 1)
    threshold = fraud_threshold / pairs if pairs else 0.0
    return fraud_test(num_invalid, num_sampled, threshold, probability_mismatch)


def sample_size(probability_mismatch: float) -> int:
    """Return how many of a session's first SESSION_NONCES nonces to recompute, on average.

    Args:
        probability_mismatch: chance of an honest nonce to come out as invalid; (0, 1).
    """
    from scipy.special import betainc

    least = round(SAMPLE_RATE * SESSION_NONCES)
    # The fewest invalid nonces that are fraud; more of them in a larger sample.
    fewest = 2
    for size in range(least, SESSION_NONCES):
        while (
            fewest <= size
            and not judge_sample(fewest, size, FRAUD_THRESHOLD, probability_mismatch)[1]
        ):
            fewest += 1
        # The chance that so many are invalid if none but the made-up ones are.
        if fewest <= size and (
            betainc(fewest, size - fewest + 1, LARGE_CHEAT * FOUND) >= CERTAINTY
        ):
            return size
    return SESSION_NONCES


@dataclass
class Sampler:
    """Picks which nonces of a session to recompute, unforeseeably, page by page."""

    #: Probability of each of the first `num_nonces` to be picked; (0, 1].
    rate: float = SAMPLE_RATE
    _: KW_ONLY
    num_nonces: int = SESSION_NONCES  #: beyond these the rate falls as num_nonces / seen
    seen: int = 0  #: nonces of the session so far, before a restart too
    #: Randomness; the system's cannot be foreseen by a big node.
    rng: random.Random = field(default_factory=secrets.SystemRandom)

    def pick(self, count: int) -> list[int]:
        """Return which of the next `count` nonces to recompute: positions 0 … count - 1, ascending."""
        picked = []
        for position in range(count):
            self.seen += 1
            if self.rng.random() < self.rate * min(1.0, self.num_nonces / self.seen):
                picked.append(position)
        return picked
