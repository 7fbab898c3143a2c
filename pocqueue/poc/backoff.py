"""How long it is waited between tries to deliver something, and after how many refusals it is given up."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

_random = secrets.SystemRandom()


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait between tries: longer after each failure."""

    first_s: float  #: pause after the first failure; doubles with each one
    longest_s: float  #: the most that it doubles to

    def pause_s(self, attempts: int) -> float:
        """Return the seconds to wait after a failure, shortened at random by up to half.

        The chance keeps many senders from returning to a receiver in step.

        Args:
            attempts: failures before this one.
        """
        # The exponent is bounded: after a day of failures the power would not fit into a float.
        pause_s = min(self.first_s * 2.0 ** min(attempts, 30), self.longest_s)
        return pause_s * (0.5 + 0.5 * _random.random())


#: Between two tries. A receiver that is back is noticed within the longest one.
PAUSES = Backoff(first_s=0.5, longest_s=4.0)
#: The same after a refusal that may not be final, as of the network's servers.
REFUSAL_PAUSES = Backoff(first_s=1.0, longest_s=30.0)
#: So many refusals of one thing are final where the first is not, as with the network's servers.
MAX_REFUSALS = 10
