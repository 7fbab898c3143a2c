"""Heartbeats that have come and are not answered yet. Belongs to the event loop's thread.

What a heartbeat takes is mostly the processor's waiting for memory: between two of them others have used its caches. So
those of a moment are taken together, one right after the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

#: Seconds for which the first of them waits for others; an agent waits for its answer much longer.
MOMENT_S: Final = 0.02


class Beats:
    """Those that wait."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def add(self, take: Callable[[], None]) -> None:
        """Have a heartbeat taken within a moment."""
        self._waiting.append(take)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_later(MOMENT_S, self._take)

    def _take(self) -> None:
        waiting, self._waiting = self._waiting, []
        for take in waiting:
            try:
                take()
            except Exception:
                logger.exception("A heartbeat is not taken.")
