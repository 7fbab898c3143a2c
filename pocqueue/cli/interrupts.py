"""Counts Ctrl-C while a round is watched, so that the first one can explain what a second one does."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Self

#: After the first Ctrl-C, how long a second one still stops the round.
GRACE_S = 5.0


class Interrupts:
    """Context manager: Ctrl-C is counted instead of raised."""

    def __init__(self) -> None:
        self.count = 0
        self._first = 0.0
        self._before: signal._HANDLER = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    @property
    def leave(self) -> bool:
        """Say whether the time for a second Ctrl-C is over."""
        return self.count == 1 and time.monotonic() - self._first > GRACE_S

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            self._first = time.monotonic()
