"""How far a node is trusted with a kind of job: what it did, of which half is forgotten in a week."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

HALF_LIFE_MS: Final = 7 * 86_400_000
#: Good ones in a row from which on a node is no stranger (as in BOINC's adaptive replication).
KNOWN_STREAK: Final = 10
#: So many attempts that were lost within an hour, and a node pauses for an hour.
LOST_IN_AN_HOUR: Final = 3
HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class Reputation:
    """Of one node, with one kind of job."""

    good: float = 0.0  #: jobs that it did, those of a week ago as half
    bad: float = 0.0  #: those that it lost, refused or called failed
    streak: int = 0  #: good ones since the last bad one
    at_ms: int = 0  #: time for which the counts are

    def at(self, now_ms: int) -> Reputation:
        """Return it for a later time; a clock that went back changes nothing."""
        share = 0.5 ** (max(0, now_ms - self.at_ms) / HALF_LIFE_MS)
        return Reputation(self.good * share, self.bad * share, self.streak, max(now_ms, self.at_ms))

    def after(self, event: Literal["good", "bad"], now_ms: int) -> Reputation:
        """Return it after one more attempt."""
        then = self.at(now_ms)
        if event == "good":
            return Reputation(then.good + 1, then.bad, then.streak + 1, then.at_ms)
        return Reputation(then.good, then.bad + 1, 0, then.at_ms)

    @property
    def is_known(self) -> bool:
        """Whether it has done enough in a row to be no stranger."""
        return self.streak >= KNOWN_STREAK

    @property
    def score(self) -> float:
        """Share of good ones, above 0 and below 1, as if one of each had been before the first."""
        return (self.good + 1) / (self.good + self.bad + 2)


def paused_until(lost_ms: Sequence[int], now_ms: int) -> int | None:
    """Return until when a node pauses; None: it does not.

    Args:
        lost_ms: when attempts of it were lost, in any order.
    """
    lately = [at_ms for at_ms in lost_ms if now_ms - HOUR_MS < at_ms <= now_ms]
    return max(lately) + HOUR_MS if len(lately) >= LOST_IN_AN_HOUR else None
