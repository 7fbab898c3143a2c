"""The files that a node fetches, a few at a time, so that those that nobody gives hold up no others."""

from __future__ import annotations

import asyncio
import logging
import time

from pocqueue.pouw.data.store import DataStore
from pocqueue.pouw.errors import PouwError
from pocqueue.pouw.flow.core import Bell, Core
from pocqueue.pouw.flow.fetch import Fetch

#: Files that are fetched at a time. One that nothing came of for so long makes way for the next, if there is one.
_AT_ONCE, _STUCK_S = 4, 30.0
#: What made way, or found no room, is tried again after this.
_PAUSE_S = 30.0

_log = logging.getLogger(__name__)


class Fetches:
    """The fetches of a node. Of its event loop.

    Args:
        core: of the node.
        store: where files go.
    """

    def __init__(self, core: Core, store: DataStore) -> None:
        self._core, self._store = core, store
        #: Names of data that make room for nothing. Each fetch has this very set.
        self.needed: set[str] = set()
        self._running: dict[str, tuple[asyncio.Task[None], Fetch]] = {}
        #: When a file was last left for others, or failed, by the monotonic clock.
        self._left: dict[str, float] = {}
        #: One more is here, or has failed.
        self.changed = Bell()

    def follow(self, names: list[str], own: set[str]) -> None:
        """Fetch these, the first ones first; what else is fetched is not needed any more."""
        self.needed.clear()
        self.needed.update(names, own)
        now_s = time.monotonic()
        for name in self._running.keys() - set(names):
            self._running[name][0].cancel()
        self._left = {name: at_s for name, at_s in self._left.items() if name in names}
        waiting = [
            name
            for name in names
            if name not in self._running
            and self._store.path(name) is None
            and self._left.get(name, -_PAUSE_S) + _PAUSE_S <= now_s
        ]
        # What was left longest ago, or never, comes before what was tried just now.
        waiting.sort(key=lambda name: self._left.get(name, 0.0))
        if waiting and len(self._running) >= _AT_ONCE:
            for name, (task, fetch) in self._running.items():
                if now_s - fetch.heard_s > _STUCK_S:
                    self._left[name] = now_s
                    task.cancel()
        for name in waiting[: _AT_ONCE - len(self._running)]:
            fetch = Fetch(self._core.network, self._store, name, self.needed)
            task = asyncio.create_task(self._run(name, fetch))
            self._running[name] = task, fetch

    async def close(self) -> None:
        """End all."""
        tasks = [task for task, _ in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, name: str, fetch: Fetch) -> None:
        try:
            await fetch.run()
            _log.debug("%s Data %s are here.", self._core.name, name)
        except PouwError as exc:
            self._left[name] = time.monotonic()
            _log.warning("%s Data %s are not fetched now: %s", self._core.name, name, exc)
        finally:
            del self._running[name]
            self.changed.ring()
