"""Work that a client waits for, no longer than it does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from pocqueue.errors import PocqueueError

T = TypeVar("T")

#: How often a long answer looks whether anybody still waits for it.
_LOOK_EVERY_S = 1.0


class Disconnected(PocqueueError):
    """Nobody waits for the answer any more."""

    http_status = 400


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do what a client waits for, no longer than it does: it is cancelled then.

    Raises:
        Disconnected: the client went away.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_LOOK_EVERY_S)
            if not task.done() and await request.is_disconnected():
                raise Disconnected("The client went away.")
        return task.result()
    finally:
        task.cancel()
