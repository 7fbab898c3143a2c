"""A thread for what must not be used by two at a time, and a way past it for what is short."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class OneThread:
    """Does one thing after another: in a thread of its own, or in the event loop while that thread has nothing to do.

    A turn of two threads costs more than most of what is done with the histories of small models, and a slot has dozens
    of them one after another. Of one event loop.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        # What the thread was given and has not done, oldest first; what is done is taken out later.
        self._given: deque[Future[Any]] = deque()

    async def run(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Do something in the thread, after what it was given before."""
        self._forget_done()
        future = self._pool.submit(functools.partial(work, *args, **kwargs))
        self._given.append(future)
        return await asyncio.wrap_future(future)

    async def run_short(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Do something that takes a few milliseconds at most and waits for nothing: at once, or after what the thread does."""
        self._forget_done()
        if self._given:
            return await self.run(work, *args, **kwargs)
        return work(*args, **kwargs)

    def shutdown(self) -> None:
        """End the thread when it has done what it was given."""
        self._pool.shutdown()

    def _forget_done(self) -> None:
        while self._given and self._given[0].done():
            self._given.popleft()
