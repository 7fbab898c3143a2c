"""When an address is dialled again. Time is an argument, in seconds."""

from __future__ import annotations

from random import Random

FIRST_S = 1.0
LONGEST_S = 60.0
SPREAD = 0.2  #: so that those who lost the same peer do not come back at one moment
#: Addresses whose failures are remembered.
_MAX_REMEMBERED = 4_000


class Backoff:
    """Waits 1, 2, 4 … 60 s after failures in a row, each a random fifth more or less."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._failures: dict[tuple[str, int], tuple[int, float]] = {}

    def failed(self, host: str, port: int, now_s: float) -> float:
        """Note a failure; return how long to wait."""
        count = self._failures.pop((host, port), (0, 0.0))[0] + 1
        wait_s = min(LONGEST_S, FIRST_S * 2.0 ** min(count - 1, 10))
        wait_s *= self._rng.uniform(1 - SPREAD, 1 + SPREAD)
        self._failures[host, port] = (count, now_s + wait_s)
        if len(self._failures) > _MAX_REMEMBERED:
            del self._failures[next(iter(self._failures))]
        return wait_s

    def worked(self, host: str, port: int) -> None:
        """Forget its failures."""
        self._failures.pop((host, port), None)

    def is_due(self, host: str, port: int, now_s: float) -> bool:
        """Say whether it may be dialled now."""
        return now_s >= self._failures.get((host, port), (0, now_s))[1]
