"""The small node's routes, as chain-side clients call them: docs/wire.md.

Paths may carry the version prefix that chains put before them (`/v3.0.8/api/v1/…`, `/v3.0.12-post6/…`). The routes ask for
no token, as they never did: they listen on loopback unless told otherwise.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Receive, Scope, Send

from pocqueue.errors import EngineUnavailable
from pocqueue.node.round import NodeRound
from pocqueue.node.schema import (
    InitBody,
    OkAnswer,
    PowStatus,
    RoundAnswer,
    StateAnswer,
    errors,
)
from pocqueue.node.service import NodeService
from pocqueue.poc.distance.scheme import Distance, ProofBody
from pocqueue.settings import NodeSettings
from pocqueue.web.errors import SentenceRoute

logger = logging.getLogger(__name__)

_FIGURES = {"text/plain": {"example": 'pocqueue_node_outbox_messages{state="waiting"} 1.0'}}
Handler = TypeVar("Handler", bound=Callable[..., Coroutine[Any, Any, Any]])

_VERSION = re.compile(r"^/v\d+(?:\.\d+)+(?:-[\w.]+)?(?=/)", re.ASCII)


class VersionPrefix:
    """ASGI middleware that takes the version off the path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and (found := _VERSION.match(scope["path"])):
            path = scope["path"][found.end() :]
            scope = dict(scope) | {"path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)


def node_router(settings: NodeSettings, service: NodeService) -> APIRouter:
    """Return all routes."""
    node = APIRouter(tags=["node"], route_class=SentenceRoute)
    proof = APIRouter(prefix="/api/v1/pow", tags=["proof"], route_class=SentenceRoute)

    def post(path: str, summary: str, *statuses: int) -> Callable[[Handler], Handler]:
        """Register what changes the round: it is answered with how the node stands afterwards."""
        responses = errors(413, 503, *statuses)
        return proof.post(path, summary=summary, response_model=RoundAnswer, responses=responses)

    async def done(node_round: NodeRound | None = None) -> dict[str, Any]:
        warnings = [] if node_round is None else node_round.notes()
        for warning in warnings:
            logger.warning("A round was asked for: %s.", warning)
        return {"status": "OK", "pow_status": await service.report.status(), "warnings": warnings}

    @post("/init", "Take a round", 400, 422)
    async def init(body: InitBody) -> Any:
        """Take a round, without starting it."""
        node_round = body.to_round(settings.callback_url)
        await service.init(node_round)
        return await done(node_round)

    @post("/init/generate", "Take a round and search", 400, 409, 422, 429, 502)
    async def init_generate(body: InitBody) -> Any:
        """Take a round and search its nonces: by delegation if that is set up, else by itself.

        The same round again changes nothing; another one ends the round at hand.
        """
        node_round = body.to_round(settings.callback_url, " to start generating")
        await service.generate(node_round)
        return await done(node_round)

    @post("/init/validate", "Take a round to validate for", 400, 422)
    async def init_validate(body: InitBody) -> Any:
        """Take a round to check proofs of others for. Needs an engine of this node's own."""
        node_round = body.to_round(settings.callback_url, " to start validating")
        await service.validate_phase(node_round)
        return await done(node_round)

    @post("/phase/generate", "Search", 400, 409, 422, 429, 502)
    async def phase_generate() -> Any:
        """Search the nonces of the round at hand."""
        await service.generate()
        return await done()

    @post("/phase/validate", "Validate", 400)
    async def phase_validate() -> Any:
        """Stop searching and check proofs of the round at hand."""
        await service.validate_phase()
        return await done()

    @post("/stop", "End the round")
    async def stop() -> Any:
        """End the round; what was found is still signed and sent."""
        if not await service.stop():
            return {"status": "OK", "pow_status": "PoW is not running"}
        return await done()

    @proof.post(
        "/validate",
        summary="Validate a proof",
        response_model=None,
        responses=errors(400, 413, 422, 500, 503),
    )
    async def validate(body: ProofBody) -> None:
        """Recompute somebody's proof; the signed verdict goes to the callback URL.

        Answers `null` once the verdict is on disk.
        """
        await service.validate(Distance.read(body))

    @proof.get("/status", summary="Show how the node stands", responses=errors(503))
    async def status() -> PowStatus:
        """Say how the node stands."""
        return PowStatus(**await service.report.status())

    @node.get("/api/v1/state", summary="Show what the machine does")
    async def state() -> StateAnswer:
        """Say what the machine is used for."""
        return StateAnswer(state="POW" if service.is_at_work else "STOPPED")

    @node.post("/api/v1/stop", summary="End whatever runs", responses=errors(413))
    async def stop_all() -> OkAnswer:
        """End whatever runs."""
        await service.stop_all()
        return OkAnswer()

    @node.get("/health", summary="Say whether the node can work", responses=errors(503))
    @node.get("/livez", summary="The same, for supervisors", responses=errors(503))
    @node.get("/readyz", summary="The same, for load balancers", responses=errors(503))
    async def health() -> OkAnswer:
        """Say whether the node can work."""
        if reason := service.report.unhealthy:
            raise EngineUnavailable(reason)
        return OkAnswer()

    @node.get(
        "/metrics",
        summary="Figures for Prometheus",
        response_class=Response,
        responses=errors(503) | {200: {"description": "Exposition text.", "content": _FIGURES}},
    )
    async def metrics() -> Any:
        """Return the node's figures in the text format of Prometheus."""
        return Response(await service.report.metrics(), media_type=CONTENT_TYPE_LATEST)

    router = APIRouter()
    router.include_router(proof)
    router.include_router(node)
    return router
