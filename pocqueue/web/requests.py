"""What is kept of each request: how long its answer took, and a line of the log.

Neither has paths or queries in it, which may have ids and tokens of clients in them: a request is named
by its route.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from prometheus_client import Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@dataclass(eq=False)
class RequestTimes:
    """ASGI middleware that keeps how long answers took, and logs each at level DEBUG."""

    app: ASGIApp  #: what comes behind
    #: By route and class of status, from `request_histogram`; None: only the log.
    histogram: Histogram | None = None
    prefix: str = ""  #: of routes, not shown

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and keep its time, the waiting of long polls included."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            route = str(getattr(scope.get("route"), "path", "other")).removeprefix(self.prefix)
            took_s = time.perf_counter() - began
            if self.histogram is not None:
                self.histogram.labels(route, f"{status // 100}xx").observe(took_s)
            logger.debug("%s %s: %d in %.1f ms", scope["method"], route, status, 1000 * took_s)


def request_histogram(service: str) -> Histogram:
    """Make the histogram that `RequestTimes` fills, for the page of a service's figures.

    Args:
        service: second part of its name, such as ``delegation``.
    """
    return Histogram(
        f"pocqueue_{service}_request_seconds",
        "time to answer a request, by this process",
        ["route", "status"],
        buckets=_BUCKETS_S,
        registry=None,
    )
