"""The fraud test: can so many invalid nonces be float error?"""

from __future__ import annotations

#: Chance that an honest nonce comes out on the other side of r_target on another machine, by float
#: error alone. Consensus: changing it changes verdicts.
PROBABILITY_MISMATCH = 5e-4


def fraud_test(
    n_invalid: int,
    n_total: int,
    fraud_threshold: float,
    probability_mismatch: float = PROBABILITY_MISMATCH,
) -> tuple[float, bool]:
    """Test whether that many invalid nonces can be float error.

    Args:
        n_invalid: invalid nonces; 0 … n_total.
        n_total: nonces checked; >= 0.
        fraud_threshold: it is fraud if the p-value is below this; (0, 1).
        probability_mismatch: chance of an honest nonce to be invalid; (0, 1).

    Returns:
        The p-value of the one-sided binomial test, P(X >= n_invalid) for X ~ B(n_total,
        probability_mismatch), and whether it is below `fraud_threshold`. No nonces: (1.0, False).

    Raises:
        ValueError: `n_invalid` is negative or above `n_total`.
    """
    if not 0 <= n_invalid <= n_total:
        raise ValueError(f"n_invalid is {n_invalid}; allowed: 0 to n_total, which is {n_total}.")
    # Imported when it is wanted, as honest proofs are nearly all there are. The tail as an incomplete beta
    # function (Abramowitz & Stegun 26.5.24) is what scipy.stats.binomtest(…, alternative="greater") comes
    # to; scipy.special loads far faster than scipy.stats.
    if n_invalid == 0:
        return 1.0, False
    from scipy.special import betainc

    p_value = float(betainc(n_invalid, n_total - n_invalid + 1, probability_mismatch))
    return p_value, p_value < fraud_threshold
