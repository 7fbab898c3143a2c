"""What a manager counts about a round, and the round's stopwatch."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class PoCStats:
    """Counters of one round. Wall-clock times, because `start_time` is set and read by others."""

    total_checked: int = 0  #: nonces whose distance was computed
    total_valid: int = 0  #: of these, valid ones; exact, also if their list is cut
    start_time: float = 0.0  #: seconds since the epoch; 0.0 before the first round
    stop_time: float = 0.0  #: seconds since the epoch when the clock stopped; 0.0 while it runs
    total_nonfinite: int = 0  #: of those checked, distances that were NaN or infinite, and dropped

    @property
    def elapsed(self) -> float:
        """Seconds from the start to now, or to the stop; never negative."""
        if self.start_time <= 0:
            return 0.0
        return max(0.0, (self.stop_time or time.time()) - self.start_time)

    @property
    def rate(self) -> float:
        """Nonces checked per second; 0.0 before the first round."""
        elapsed = self.elapsed
        return self.total_checked / elapsed if elapsed > 0 else 0.0

    def stop(self) -> None:
        """Stop the clock. Stopping it twice keeps the first stop."""
        if self.start_time > 0 and not self.stop_time:
            self.stop_time = time.time()

    def resume(self) -> None:
        """Let the clock run on from where it stopped, leaving out the pause."""
        if self.stop_time:
            self.start_time += time.time() - self.stop_time
            self.stop_time = 0.0
