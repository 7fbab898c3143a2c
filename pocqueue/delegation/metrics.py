"""`GET /metrics` of the delegation service: the pool's figures, and how fast this process answers.

The pool's figures (`pocqueue.rounds.metrics`) are the same from every process. Times of requests and
what the process uses are its own: with several processes behind one port, each scrape shows the one
that happened to answer it. To have those exactly, run one process.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import Histogram

from pocqueue.delegation.customers import MAIN
from pocqueue.delegation.routes import SECURITY, Delegation
from pocqueue.delegation.schema import errors
from pocqueue.errors import InvalidToken
from pocqueue.rounds.metrics import PoolCollector, process_collector, render
from pocqueue.web.errors import SentenceRoute


def metrics_router(histogram: Histogram) -> APIRouter:
    """Return the route, for the token of the settings only."""
    router = APIRouter(tags=["delegation"], route_class=SentenceRoute)
    process = process_collector()

    # Not a coroutine: reading all of Redis's figures blocks, so it runs in a thread.
    def metrics(request: Request) -> Response:
        """Show counters and gauges of the pool and of this process, in Prometheus's text format."""
        if request.user.name != MAIN:
            # They are those of all customers together.
            raise InvalidToken(
                "Invalid auth token: figures are the operator's; send DELEGATION_AUTH_TOKEN."
            )
        delegation: Delegation = request.app.state.delegation
        page, media_type = render(PoolCollector(delegation.backend), histogram, process)
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
