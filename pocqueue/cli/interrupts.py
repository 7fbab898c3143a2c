"""Counts Ctrl-C while a round is watched, so that the first one can explain what a second one does."""

from __future__ import annotations

import signal
import time
from types import FrameType

from typing_extensions import override

from pocqueue.closing import Closing

#: After the first Ctrl-C, how long a second one still stops the round.
GRACE_S = 5.0


class Interrupts(Closing):
    """Ctrl-C is counted instead of raised, from now until it is closed."""

    def __init__(self) -> None:
        self.count = 0
        self._first = 0.0
        self._before = signal.signal(signal.SIGINT, self._note)

    @override
    def close(self) -> None:
        """Let Ctrl-C do again what it did before."""
        signal.signal(signal.SIGINT, self._before)

    @property
    def leave(self) -> bool:
        """Say whether the time for a second Ctrl-C is over."""
        return self.count == 1 and time.monotonic() - self._first > GRACE_S

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            self._first = time.monotonic()
