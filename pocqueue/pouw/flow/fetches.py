"""The files that a node fetches, a few at a time, so that those that nobody gives hold up no others.

Where there is no room for all, those that come first make those after them go, and never the other way round.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from dataclasses import dataclass

from pocqueue.pouw.data.store import DataStore
from pocqueue.pouw.errors import PouwError
from pocqueue.pouw.flow.core import Bell, Core
from pocqueue.pouw.flow.fetch import Fetch

#: Files that are fetched at a time. One that fewer chunks than these came of in so long (2 MiB: 70 KB a second) makes
#: way for the next, if there is one.
_AT_ONCE, _STUCK_S, _LEAST_CHUNKS = 4, 30.0, 8
#: What made way, or found no room, is tried again after this.
_PAUSE_S = 30.0

_log = logging.getLogger(__name__)


@dataclass
class _Running:
    """A fetch that goes on, and how many chunks had come when it was last looked at, by the monotonic clock."""

    task: asyncio.Task[None]
    fetch: Fetch
    looked_s: float
    num_chunks: int = 0

    def is_stuck(self, now_s: float) -> bool:
        """Too little came of it since the last look; when that is too short ago, that is not known."""
        if now_s - self.looked_s <= _STUCK_S:
            return False
        came = self.fetch.num_chunks - self.num_chunks
        self.looked_s, self.num_chunks = now_s, self.fetch.num_chunks
        return came < _LEAST_CHUNKS


class Fetches:
    """The fetches of a node. Of its event loop.

    Args:
        core: of the node.
        store: where files go.
    """

    def __init__(self, core: Core, store: DataStore) -> None:
        self._core, self._store = core, store
        #: Names of data that are followed, and the place of each; and those that this node keeps whatever comes.
        self._places: dict[str, int] = {}
        self._kept: set[str] = set()
        self._running: dict[str, _Running] = {}
        #: When a file was last left for others, or failed, by the monotonic clock.
        self._left: dict[str, float] = {}
        #: One more is here, or has failed.
        self.changed = Bell()

    def follow(self, names: list[str], kept: set[str]) -> None:
        """Fetch these, the first ones first; what else is fetched is not needed any more.

        Args:
            names: of data.
            kept: names of data that make room for nothing.
        """
        self._places = {name: place for place, name in enumerate(names)}
        self._kept = kept
        now_s = time.monotonic()
        for name in self._running.keys() - set(names):
            self._running[name].task.cancel()
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
        for name, one in self._running.items():
            if one.is_stuck(now_s) and waiting and len(self._running) >= _AT_ONCE:
                self._left[name] = now_s
                one.task.cancel()
        for name in waiting[: _AT_ONCE - len(self._running)]:
            fetch = Fetch(
                self._core.network, self._store, name, functools.partial(self._needed, name)
            )
            task = asyncio.create_task(self._run(name, fetch))
            self._running[name] = _Running(task, fetch, now_s)

    async def close(self) -> None:
        """End all."""
        tasks = [one.task for one in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _needed(self, name: str) -> set[str]:
        """Return which data make no room for these."""
        place = self._places.get(name, 0)
        return self._kept.union(one for one, at in self._places.items() if at < place)

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
