"""An owner's page as its reader has it: the events of one wallet."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time

import httpx
from typing_extensions import override

from pocqueue.closing import AsyncClosing

_STATUS = re.compile(r'class="status (\w+)"')
_PATIENCE_S = 60.0


class Page(AsyncClosing):
    """A page that is open. A context manager within the event loop.

    Args:
        client: of the gateway.
        wallet: whose page it is.
    """

    def __init__(self, client: httpx.AsyncClient, wallet: str) -> None:
        self._reading = asyncio.get_running_loop().create_task(self._read(client, wallet))
        self._news = asyncio.Event()
        self._shown: dict[str, str] = {}
        self._at = 0.0

    async def shown(self, node_id: str, status: str) -> float:
        """Wait until a node's status is shown; return when that line came: `time.perf_counter`."""
        async with asyncio.timeout(_PATIENCE_S):
            while self._shown.get(node_id) != status:
                if self._reading.done():
                    self._reading.result()
                    raise RuntimeError("The page's events have ended.")
                self._news.clear()
                await self._news.wait()
        return self._at

    @override
    async def close(self) -> None:
        """Close it."""
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading

    async def _read(self, client: httpx.AsyncClient, wallet: str) -> None:
        async with client.stream("GET", "/app/events", params={"wallet": wallet}) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                now = time.perf_counter()
                if (found := statuses(line)) is not None:
                    self._shown.update(found)
                    self._at = now
                    self._news.set()


def statuses(line: str) -> dict[str, str] | None:
    """Return what a line of the events shows of each node that has changed; None: nothing of nodes.

    >>> statuses('data: {"lists": {"nodes": {"rows": {"n1": "<span class=\\\\"status online\\\\">Online</span>"}}}}')
    {'n1': 'online'}
    """
    kind, _, data = line.partition(": ")
    if kind != "data" or "nodes" not in (lists := json.loads(data).get("lists", {})):
        return None
    rows = lists["nodes"]["rows"]
    return {key: found[1] for key, row in rows.items() if (found := _STATUS.search(row))}
