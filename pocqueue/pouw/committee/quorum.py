"""How many of a committee have to agree."""

from __future__ import annotations


def faults(n: int) -> int:
    """Return how many of `n` members may do as they like: fewer than a third.

    Args:
        n: 1 and up.
    """
    return (n - 1) // 3


def quorum(n: int) -> int:
    """Return how many of `n` members have to agree: any two such sets share one that is not faulty.

    Args:
        n: 1 and up; 1: 1, 4: 3, 5: 4, 7: 5, 16: 11.
    """
    return (n + faults(n)) // 2 + 1
