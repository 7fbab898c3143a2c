"""The sample of a session: its size, exactly; cheats caught and honest nodes spared, simulated."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import stats
from typing_extensions import override

from pocqueue.node.sampling import (
    CERTAINTY,
    FOUND,
    LARGE_CHEAT,
    SAMPLE_RATE,
    SESSION_NONCES,
    SIDES_SHARE,
    Sampler,
    judge_sample,
    sample_size,
)
from pocqueue.poc.data import PROBABILITY_MISMATCH, fraud_test

THRESHOLD = 0.01


def needed(num_sampled: int, threshold: float = THRESHOLD) -> int:
    """Return the fewest invalid nonces of a sample that are fraud."""
    return next(k for k in range(num_sampled + 1) if judge_sample(k, num_sampled, threshold)[1])


def caught(size: int) -> float:
    """Return the chance that a fixed sample finds 100 made-up nonces of 2000, by scipy.stats."""
    hits = np.arange(101)
    weights = stats.hypergeom.pmf(hits, 2000, 100, size)
    return float(weights @ stats.binom.sf(needed(size) - 1, hits, 0.9))


def caught_by_rate(rate: float, threshold: float = THRESHOLD, invalid: float = 0.9) -> float:
    """Return the same for a sample that takes each nonce with a probability, at the session's end.

    Args:
        rate: that probability.
        threshold: that the sample is tested against.
        invalid: share of made-up nonces that come out as invalid.
    """
    others = stats.binom.pmf(np.arange(1901), 1900, rate)
    total = 0.0
    for found in range(61):  # more than that have no chance
        taken_but_valid = rate * (1 - invalid) / (1 - rate * invalid)
        bad = stats.binom.pmf(np.arange(101 - found), 100 - found, taken_but_valid)
        sizes = np.convolve(others, bad)[: max(0, largest(found, threshold) - found + 1)]
        total += float(stats.binom.pmf(found, 100, rate * invalid) * sizes.sum())
    return total


def largest(num_invalid: int, threshold: float = THRESHOLD) -> int:
    """Return the largest sample that so many invalid nonces make fraud; 0: none."""
    if num_invalid < 2:
        return 0
    part = threshold / (num_invalid * (num_invalid - 1))
    sizes = np.arange(num_invalid, 1000 * num_invalid)
    fraud = np.asarray(stats.binom.sf(num_invalid - 1, sizes, PROBABILITY_MISMATCH)) < part
    return int(sizes[fraud][-1]) if fraud.any() else 0


def test_sample_of_a_session() -> None:
    """The least fixed one that catches 5 % of 2000 with 99 %, and the rate that does so on average."""
    assert caught(141) >= 0.99
    assert max(caught(smaller) for smaller in range(20, 141)) < 0.99
    assert SAMPLE_RATE * SESSION_NONCES == 144
    assert caught_by_rate(SAMPLE_RATE) >= 0.99
    assert caught_by_rate(SAMPLE_RATE - 2 / 2000) < 0.99


def test_unlike_engines() -> None:
    """With what is left of the threshold, and made-up distances of which 4 % are near the true ones."""
    left = THRESHOLD * (1 - SIDES_SHARE)
    assert caught_by_rate(SAMPLE_RATE, left, invalid=0.96) >= 0.99


def test_a_larger_sample_is_never_worse_than_asked_for() -> None:
    """Where one more invalid nonce is needed, the sample is large enough for it."""
    steps = [207, 208, 456, 457, 816, 817]
    assert [needed(size) for size in steps] == [2, 3, 3, 4, 4, 5]
    assert min(caught(size) for size in (*range(141, 300), *steps)) >= 0.99


def test_parts_of_the_threshold_add_up_to_it() -> None:
    """Whatever the count of looks: the chance to have k among the first n_k, summed over all k."""
    total = 0.0
    for k in range(2, 40):
        size = largest(k)
        assert judge_sample(k, size, THRESHOLD)[1]
        assert not judge_sample(k, size + 1, THRESHOLD)[1]
        total += float(stats.binom.sf(k - 1, size, PROBABILITY_MISMATCH))
    assert 0.005 < total < THRESHOLD


def test_one_invalid_nonce_is_no_fraud() -> None:
    """However few there are; and none at all is none."""
    assert not judge_sample(1, 1, 0.5)[1]
    assert not judge_sample(0, 0, 0.5)[1]
    assert judge_sample(2, 100, THRESHOLD) == fraud_test(2, 100, THRESHOLD / 2)
    assert judge_sample(2, 100, THRESHOLD)[1]
    with pytest.raises(ValueError, match="n_invalid is 3"):
        judge_sample(3, 2, THRESHOLD)


def test_other_arithmetic() -> None:
    """If honest nonces differ more often, it takes more of them to be fraud."""
    verdicts = [judge_sample(4, 100, THRESHOLD, chance) for chance in (PROBABILITY_MISMATCH, 0.02)]
    assert [is_fraud for _, is_fraud in verdicts] == [True, False]


def simulate(made_up: float, num_sessions: int, num_nonces: int, page: int, seed: int) -> float:
    """Return the share of sessions called fraud, where a look follows each page.

    Made-up nonces are spread at random.
    """
    rng = np.random.default_rng(seed)
    rates = SAMPLE_RATE * np.minimum(1.0, SESSION_NONCES / np.arange(1, num_nonces + 1))
    limits = [(k, largest(k)) for k in range(2, 8)]
    found = 0
    for _ in range(num_sessions):
        invalid = rng.random(num_nonces) < PROBABILITY_MISMATCH
        bad = rng.permutation(num_nonces)[: round(made_up * num_nonces)]
        invalid[bad] = rng.random(len(bad)) < 0.9
        picked = rng.random(num_nonces) < rates
        sampled = np.cumsum(picked)[page - 1 :: page]
        wrong = np.cumsum(picked & invalid)[page - 1 :: page]
        found += any(((wrong >= k) & (sampled <= limit)).any() for k, limit in limits)
    return found / num_sessions


def test_cheats_are_caught() -> None:
    """5 % of 2000 made up, in simulated sessions: caught in 99 %. Also in long ones."""
    # 20 000 sessions leave a standard error of 0.0007.
    assert simulate(0.05, 20_000, 2000, page=50, seed=1) >= 0.99 - 2 * 0.0007
    assert simulate(0.05, 500, 20_000, page=500, seed=2) >= 0.99


@pytest.mark.parametrize("page", [1, 10, 200])
def test_honest_nodes_are_spared(page: int) -> None:
    """20 times the sample of a session, with a look after every page: less than the threshold."""
    assert simulate(0.0, 1500, 40_000, page=page, seed=3) < THRESHOLD


def test_honest_sample_looked_at_all_the_time() -> None:
    """3000 samples of 2000 nonces each, a look after each: the plain test would call far more fraud."""
    rng = np.random.default_rng(4)
    ours = plain = 0
    for _ in range(3000):
        [places] = np.nonzero(rng.random(2000) < PROBABILITY_MISMATCH)
        looks = [(k, int(place) + 1) for k, place in enumerate(places, 1)]
        ours += any(judge_sample(k, n, THRESHOLD)[1] for k, n in looks)
        plain += any(fraud_test(k, n, THRESHOLD)[1] for k, n in looks)
    assert ours / 3000 < THRESHOLD < plain / 3000


# Artifacts, whose honest nonces are mismatches more often

#: The table of the module: p_mismatch, size of the sample of 2000, then for each length of a session the chance
#: that 5 % made up are caught, where honest nonces are never mismatches and where they are with p_mismatch.
LENGTHS = (2000, 10_000, 50_000, 285_000)
TABLE = {
    0.005: (144, (0.72, 0.80), (0.99, 1.00), (1.00, 1.00), (1.00, 1.00)),
    0.01: (144, (0.42, 0.62), (0.89, 0.98), (0.99, 1.00), (1.00, 1.00)),
    0.02: (144, (0.06, 0.28), (0.24, 0.80), (0.53, 0.98), (0.73, 1.00)),
    0.05: (179, (0.0, 0.07), (0.0, 0.36), (0.0, 0.72), (0.0, 0.91)),
    0.1: (622, (0.0, 0.11), (0.0, 0.69), (0.0, 0.97), (0.0, 1.00)),
}


def fewest(size: int, mismatch: float) -> int:
    """Return the fewest invalid nonces of a sample that are fraud, by scipy.stats."""
    counts = np.arange(2, size + 2)
    tails = np.asarray(stats.binom.sf(counts - 1, size, mismatch))
    # More than all of them: none is.
    return int(counts[np.argmax(tails < THRESHOLD / (counts * (counts - 1)))])


def chance(size: int, mismatch: float, made_up: float, honest: float) -> float:
    """Return the chance that a sample of this size is called fraud.

    Args:
        mismatch: that the test allows for.
        made_up: share of made-up nonces.
        honest: chance of the others to be mismatches.
    """
    each = made_up * FOUND + (1 - made_up) * honest
    return float(stats.binom.sf(fewest(size, mismatch) - 1, size, each))


def sampled(first: int, length: int) -> int:
    """Return how many nonces of a session are recomputed, on average."""
    return round(first * (1 + float(np.log(length / SESSION_NONCES))))


@pytest.mark.parametrize("mismatch", TABLE)
def test_the_table_of_artifacts(mismatch: float) -> None:
    """Each number of it."""
    first, *columns = TABLE[mismatch]
    assert sample_size(mismatch) == first
    for honest in (0.0, mismatch):
        assert chance(first, mismatch, LARGE_CHEAT, honest) >= CERTAINTY
    for length, (never, at_most) in zip(LENGTHS, columns, strict=True):
        size = sampled(first, length)
        # A sample's size is not exactly the expected one, and one nonce more may need one more that is invalid.
        assert chance(size, mismatch, 0.05, 0.0) == pytest.approx(never, abs=0.015)
        assert chance(size, mismatch, 0.05, mismatch) == pytest.approx(at_most, abs=0.015)


def test_how_many_are_recomputed() -> None:
    """Of what 30 GPUs do in 190 s."""
    assert sampled(sample_size(0.01), 285_000) == pytest.approx(860, abs=5)
    assert sampled(sample_size(0.1), 285_000) == pytest.approx(3700, abs=20)


def test_a_sample_of_distances_is_as_ever() -> None:
    """And one for which no sample is large enough is all there is."""
    assert sample_size(PROBABILITY_MISMATCH) == round(SAMPLE_RATE * SESSION_NONCES)
    assert sample_size(0.3) == SESSION_NONCES


def test_the_size_of_a_sample_varies() -> None:
    """Each nonce is taken by itself; over all sizes that may come of it, the certainty is nearly the same."""
    for mismatch in (0.05, 0.1):
        mean = sample_size(mismatch)
        sizes = np.arange(mean - 6 * int(mean**0.5), mean + 6 * int(mean**0.5))
        weights = stats.binom.pmf(sizes, SESSION_NONCES, mean / SESSION_NONCES)
        caught = [chance(int(size), mismatch, LARGE_CHEAT, 0.0) for size in sizes]
        assert 0.985 < float(weights @ caught) < 0.99


@pytest.mark.parametrize("mismatch", [0.01, 0.1])
def test_honest_artifacts_are_spared(mismatch: float) -> None:
    """Looked at after each, over all of a long session, at the most mismatches that are allowed for."""
    rng = np.random.default_rng(7)
    size, sessions = sampled(sample_size(mismatch), 50_000), 2000
    counts = np.cumsum(rng.random((sessions, size)) < mismatch, axis=1)
    bounds = np.array([fewest(num, mismatch) for num in range(1, size + 1)])
    assert (counts >= bounds).any(axis=1).mean() < THRESHOLD


@pytest.mark.parametrize("dist_threshold", [0.4, 0.75])
def test_made_up_artifacts_are_mismatches(dist_threshold: float) -> None:
    """Unrelated vectors of 12 numbers, as long as those of a model: farther apart than any threshold in use."""
    rng = np.random.default_rng(8)
    pairs = rng.standard_normal((2, 20_000, 12))
    pairs /= np.linalg.norm(pairs, axis=2, keepdims=True)
    apart = np.linalg.norm(pairs[0] - pairs[1], axis=1)
    assert apart.mean() == pytest.approx(1.41, abs=0.03)
    assert (apart > dist_threshold).mean() > FOUND


def test_sampler_picks_at_its_rate() -> None:
    """Of each page, ascending; less and less of a long session, also after a restart."""
    sampler = Sampler(0.1, num_nonces=10_000, rng=random.Random(5))  # noqa: S311 - a fixed seed
    pages = [sampler.pick(100) for _ in range(100)]
    assert all(page == sorted(set(page)) for page in pages)
    assert all(0 <= position < 100 for page in pages for position in page)
    assert 900 < sum(map(len, pages)) < 1100
    # Doubled, and doubled once more: 10 000 * 0.1 * ln 2 = 693 each.
    assert 620 < len(sampler.pick(10_000)) < 770
    again = Sampler(0.1, num_nonces=10_000, seen=20_000, rng=random.Random(6))  # noqa: S311
    assert 620 < len(again.pick(20_000)) < 770
    assert sampler.pick(0) == []
    assert Sampler(1.0).pick(5) == [0, 1, 2, 3, 4]


def test_sampler_cannot_be_foreseen() -> None:
    """Whoever knows the state of Python's generator knows nothing of the sample."""
    samples = []
    for _ in range(2):
        random.seed(1)
        samples.append(Sampler().pick(2000))
    assert samples[0] != samples[1]


def test_sampler_has_the_rate_of_a_session() -> None:
    """Unless it is told another one."""
    draws = iter([SAMPLE_RATE - 1e-9, SAMPLE_RATE + 1e-9])

    class Scripted(random.Random):
        @override
        def random(self) -> float:
            return next(draws)

    assert Sampler(rng=Scripted()).pick(2) == [0]
