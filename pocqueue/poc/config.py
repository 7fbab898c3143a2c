"""What a round asks for, what the manager is doing about it, and what it counts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum


class PoCState(Enum):
    """What a :class:`~pocqueue.poc.manager.PoCManager` is doing; values are the wire words."""

    IDLE = "IDLE"  #: no round yet, or one that is set up and not started
    GENERATING = "GENERATING"  #: searching nonces
    VALIDATING = "VALIDATING"  #: answering questions about the nonces of others
    STOPPED = "STOPPED"  #: the round is over; its results can still be read


@dataclass
class PoCConfig:
    """One round as its starter describes it.

    Field order, names and defaults are those of the reference implementation. Bounds are checked
    where a round enters the system (`poc/search.py`), not here.
    """

    block_hash: str  #: names the block; any non-empty text
    block_height: int  #: >= 0; carried along, no part of the maths
    public_key: str  #: whose proof this is; any non-empty text
    r_target: float  #: a nonce is valid if its distance is below this; (0, 2]
    fraud_threshold: float = 0.01  #: fraud if an honest node is less likely than this; (0, 1)
    node_id: int = 0  #: which of the nodes this is; 0 … node_count - 1
    node_count: int = 1  #: how many nodes share the nonces; >= 1
    batch_size: int = 32  #: nonces of one forward pass; >= 1
    seq_len: int = 256  #: tokens per nonce; >= 1, at most what the model takes
    callback_url: str | None = None  #: http(s) URL told of valid nonces; None tells nobody


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
