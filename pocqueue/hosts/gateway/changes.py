"""Tells the pages that are open that something of a wallet has changed. Belongs to the event loop's thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class Changes:
    """Who waits for news of a wallet."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def tell(self, wallet: str) -> None:
        """Say that something of a wallet has changed."""
        for event in self._waiting.get(wallet, ()):
            event.set()

    @contextlib.contextmanager
    def watch(self, wallet: str) -> Iterator[asyncio.Event]:
        """Have an event that is set when something of a wallet changes."""
        event = asyncio.Event()
        self._waiting.setdefault(wallet, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[wallet].discard(event)
            if not self._waiting[wallet]:
                del self._waiting[wallet]
