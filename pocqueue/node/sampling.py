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
