"""Queues of posts that take nothing more: what waits in them is tried for a last while, in the background."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from typing_extensions import override

from pocqueue.closing import AsyncClosing
from pocqueue.poc.sender import CallbackQueue


@dataclass(eq=False)
class Leaving(AsyncClosing):
    """Used from one event loop."""

    grace_s: float = 300.0  #: seconds that what waits is given
    flush_s: float = 10.0  #: the same when the server ends
    _tasks: dict[CallbackQueue, asyncio.Task[None]] = field(default_factory=dict, init=False)

    def see_off(self, queue: CallbackQueue) -> None:
        """Have a queue take nothing more, from now on, and close once what waits is delivered or its time is over."""
        if queue.closing:
            return
        queue.closing = True
        task = asyncio.create_task(queue.close(self.grace_s), name="poc-posts-close")
        self._tasks[queue] = task
        task.add_done_callback(lambda _: self._tasks.pop(queue, None))

    @override
    async def close(self) -> None:
        """Try what waits for `flush_s` more, and end."""
        leaving = dict(self._tasks)
        await asyncio.gather(*(queue.close(self.flush_s) for queue in leaving))
        await asyncio.gather(*leaving.values())
