"""When an address is dialled again. Time is an argument, in seconds."""

from __future__ import annotations

from pocqueue.poc.backoff import Backoff

_FIRST_S, _LONGEST_S = 1.0, 60.0
#: Addresses whose failures are remembered.
_MAX_REMEMBERED = 4_000


class Failures:
    """Dials that failed, in a row, and when the address is due again."""

    def __init__(self) -> None:
        self._failures: dict[tuple[str, int], tuple[int, float]] = {}

    def failed(self, host: str, port: int, now_s: float, longest_s: float = _LONGEST_S) -> float:
        """Note a failure; return how long to wait: twice as long each time, `longest_s` at most."""
        before = self._failures.pop((host, port), (0, 0.0))[0]
        wait_s = Backoff(_FIRST_S, longest_s).pause_s(before)
        self._failures[host, port] = (before + 1, now_s + wait_s)
        if len(self._failures) > _MAX_REMEMBERED:
            del self._failures[next(iter(self._failures))]
        return wait_s

    def worked(self, host: str, port: int) -> bool:
        """Forget its failures; say whether there were any."""
        return self._failures.pop((host, port), None) is not None

    def all_due(self, now_s: float) -> None:
        """Let every address be dialled now. What fails again waits as it would have."""
        self._failures = {where: (number, now_s) for where, (number, _) in self._failures.items()}

    def is_due(self, host: str, port: int, now_s: float) -> bool:
        """Say whether it may be dialled now."""
        return now_s >= self._failures.get((host, port), (0, now_s))[1]
