"""Posts of results: a queue for each callback URL, so that no receiver holds up another one.

Promises:
- A result is one post. Those for one URL go out in their order, one at a time, and are tried for as long as the
  receiver is away; see `CallbackQueue`.
- How many posts are under way, and how many wait, is bounded over all URLs.
- `retire` gives what waits a last while; what is posted later is not affected.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from typing_extensions import override

from pocqueue.closing import AsyncClosing
from pocqueue.poc.callback import Kind, without_secrets
from pocqueue.poc.sender import CallbackQueue
from pocqueue.served.leaving import Leaving

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Posts(AsyncClosing):
    """Used from one event loop."""

    max_concurrent: int = 10  #: posts at a time, to as many URLs
    max_posts: int = 10_000  #: that wait; what comes beyond is dropped
    _: KW_ONLY
    grace_s: float = 300.0  #: seconds that what waits is given by `retire`
    flush_s: float = 10.0  #: the same by `close`
    queue: Mapping[str, Any]  #: bounds and timings of each URL's queue, fields of `CallbackQueue`

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.max_concurrent)
        self._queues: dict[str, CallbackQueue] = {}
        self._leaving = Leaving(self.grace_s, self.flush_s)

    @property
    def num_waiting(self) -> int:
        """Posts that wait, of all URLs."""
        return sum(queue.num_bodies for queue in self._queues.values())

    def send(self, url: str, kind: Kind, body: Mapping[str, Any]) -> None:
        """Have a body posted to ``{url}/{kind}``.

        Raises:
            InvalidRound: the URL is none.
        """
        for other in [u for u, queue in self._queues.items() if u != url and not queue.waiting]:
            self._leaving.see_off(self._queues.pop(other))
        if url not in self._queues:
            self._queues[url] = CallbackQueue(url, slots=self._slots, **self.queue)
        if self.num_waiting >= self.max_posts:
            name = without_secrets(url)
            logger.warning("A result for %s is dropped, as %d wait at most", name, self.max_posts)
            return
        self._queues[url].send(kind, body, is_whole=True)

    def retire(self) -> None:
        """Try what waits for `grace_s` more, in the background."""
        while self._queues:
            self._leaving.see_off(self._queues.popitem()[1])

    @override
    async def close(self) -> None:
        """Try what waits for `flush_s` more, and end."""
        self.retire()
        await self._leaving.close()
