"""How long the follower of a search waits, for what."""

from __future__ import annotations

from dataclasses import dataclass

from pocqueue.node.sources import is_refused
from pocqueue.poc.backoff import Backoff


@dataclass(frozen=True, slots=True)
class Pauses(Backoff):
    """How long a follower waits, in seconds: longer with each try while the source is away."""

    first_s: float = 0.25
    longest_s: float = 5.0
    #: Between two tries if the source refuses our token: after too many wrong ones it would not listen
    #: to the right one either.
    refused_s: float = 20.0
    disk_s: float = 1.0  #: between two tries to write to the outbox
    close_s: float = 5.0  #: for a step under way when this process ends
    #: A page is sent so long before it is not taken any more. For the sample of one that comes after that.
    last_s: float = 10.0
    #: Before the end of the window, by which the end of a session is not early.
    early_s: float = 2.0

    def judging_s(self, left_s: float) -> float:
        """Return the seconds that the sample of a page has, which is taken for so many more.

        Args:
            left_s: below 0 if it comes too late, so that nothing is lost by waiting.
        """
        return max(left_s - self.last_s, left_s / 2) if left_s > 0 else self.last_s

    def after(self, trouble: Exception, tries: int) -> float:
        """Return the seconds to wait after a failure; `tries` failed before it."""
        return self.refused_s if is_refused(trouble) else self.pause_s(tries)
