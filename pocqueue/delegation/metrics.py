"""`GET /metrics` of the delegation service: the pool's figures, and how fast this process answers.

The pool's figures (`pocqueue.rounds.metrics`) are the same from every process. Times of requests and
what the process uses are its own: with several processes behind one port, each scrape shows the one
that happened to answer it. Who needs those exactly runs one process.
"""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override

from pocqueue.delegation.customers import MAIN
from pocqueue.delegation.routes import PREFIX, SECURITY, Handler, TokenRoute
from pocqueue.delegation.schema import errors
from pocqueue.errors import InvalidToken
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.metrics import PoolCollector, process_collector, render

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class RequestTimes:
    """ASGI middleware that keeps how long answers took.

    Args:
        app: what comes behind.
        histogram: by route and class of status; see `request_histogram`.
    """

    def __init__(self, app: ASGIApp, histogram: Histogram) -> None:
        self._app = app
        self._histogram = histogram
        # A look-up by label names for each request costs more than the rest of this.
        self._series: dict[tuple[str, int], Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and keep its time, the waiting of `wait=` included."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            # The route's template: paths have session ids in them, and unknown ones anything at all.
            route = str(getattr(scope.get("route"), "path", "other")).removeprefix(PREFIX)
            self._of(route, status // 100).observe(time.perf_counter() - began)

    def _of(self, route: str, status_class: int) -> Histogram:
        key = route, status_class
        if key not in self._series:
            self._series[key] = self._histogram.labels(route, f"{status_class}xx")
        return self._series[key]


def request_histogram() -> Histogram:
    """Make the histogram that `RequestTimes` fills and `/metrics` shows."""
    return Histogram(
        "pocqueue_delegation_request_seconds",
        "time to answer a request, by this process",
        ["route", "status"],
        buckets=_BUCKETS_S,
        registry=None,
    )


class MetricsRoute(TokenRoute):
    """A route for the operator: the figures are those of all customers together."""

    @override
    async def admit(self, request: Request, handler: Handler) -> Response:
        async def for_operator(admitted: Request) -> Response:
            if admitted.state.customer.name != MAIN:
                raise InvalidToken(
                    "Invalid auth token: figures are the operator's; send DELEGATION_AUTH_TOKEN."
                )
            return await handler(admitted)

        return await super().admit(request, for_operator)


def metrics_router(histogram: Histogram) -> APIRouter:
    """Return the route, for the token of the settings only."""
    router = APIRouter(tags=["delegation"], route_class=MetricsRoute)
    process = process_collector()

    # Not a coroutine: reading all of Redis's figures blocks, so it runs in a thread.
    def metrics(request: Request) -> Response:
        """Show counters and gauges of the pool and of this process, in Prometheus's text format."""
        backend: Backend = request.app.state.backend
        page, media_type = render(PoolCollector(backend), histogram, process)
        return Response(page, headers={"Content-Type": media_type})

    router.add_api_route(
        "/metrics",
        metrics,
        methods=["GET"],
        summary="Figures for Prometheus",
        response_class=Response,
        responses={
            200: {
                "description": "The figures; `pocqueue_up 0` and those of the process while Redis is away.",
                "content": {"text/plain": {"example": "pocqueue_up 1.0\n"}},
            },
            **errors(401, 429),
        },
        dependencies=SECURITY,
    )
    return router
