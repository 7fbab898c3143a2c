"""The small node's routes: WIRE.md section 2, as chain-side clients of today call them.

Paths may carry the version prefix that chains put before them (`/v3.0.8/api/v1/…`). The routes ask for
no token, as they never did: they listen on loopback unless told otherwise.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pocqueue.errors import InvalidRound, NodeStateError, PocqueueError
from pocqueue.node.round import NodeRound
from pocqueue.node.schema import (
    InitBody,
    OkAnswer,
    PowStatus,
    ProofBody,
    RoundAnswer,
    StateAnswer,
    errors,
)
from pocqueue.node.service import NodeService
from pocqueue.poc.nonces import check_node
from pocqueue.settings import NodeSettings
from pocqueue.web.errors import SentenceRoute

_METRICS: dict[str, Any] = {
    "description": "Exposition text.",
    "content": {
        "text/plain": {
            "schema": {"type": "string"},
            "example": 'pocqueue_node_outbox_messages{state="waiting"} 1.0',
        }
    },
}
_VERSION = re.compile(r"^/v\d+(?:\.\d+)+(?=/)")


class Unhealthy(PocqueueError):
    """The node cannot work; says why."""

    http_status = 503


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


def mlnode_router(settings: NodeSettings) -> APIRouter:
    """Return all routes; the service is found in the application's state."""
    router = APIRouter(route_class=SentenceRoute)
    proof = APIRouter(prefix="/api/v1/pow", tags=["proof"], route_class=SentenceRoute)

    async def done(service: NodeService) -> dict[str, Any]:
        return {"status": "OK", "pow_status": await service.status()}

    def round_of(body: InitBody, purpose: str = "") -> NodeRound:
        if not body.has_node:
            raise NodeStateError(f"Node ID and node count must be set{purpose}")
        check_node(body.node_id, body.node_count)
        node_round = body.to_round(settings.callback_url)
        if node_round is None:
            raise InvalidRound(
                "url",
                None,
                "the http:// or https:// URL that signed batches go to, here or in POCQUEUE_NODE_CALLBACK_URL",
            )
        return node_round

    @proof.post(
        "/init",
        summary="Take a round",
        response_model=RoundAnswer,
        responses=errors(400, 413, 422, 503),
    )
    async def init(body: InitBody, request: Request) -> Any:
        """Take a round, without starting it."""
        service = _service(request)
        await service.init(round_of(body))
        return await done(service)

    @proof.post(
        "/init/generate",
        summary="Take a round and search",
        response_model=RoundAnswer,
        responses=errors(400, 409, 413, 422, 429, 502, 503),
    )
    async def init_generate(body: InitBody, request: Request) -> Any:
        """Take a round and search its nonces: by delegation where that is set up, else by itself.

        The same round again changes nothing; another one ends the round at hand.
        """
        service = _service(request)
        await service.generate(round_of(body, " to start generating"))
        return await done(service)

    @proof.post(
        "/init/validate",
        summary="Take a round to validate for",
        response_model=RoundAnswer,
        responses=errors(400, 413, 422, 503),
    )
    async def init_validate(body: InitBody, request: Request) -> Any:
        """Take a round to check proofs of others for. Needs an engine of this node's own."""
        service = _service(request)
        await service.validate_phase(round_of(body, " to start validating"))
        return await done(service)

    @proof.post(
        "/phase/generate",
        summary="Search",
        response_model=RoundAnswer,
        responses=errors(400, 409, 413, 422, 429, 502, 503),
    )
    async def phase_generate(request: Request) -> Any:
        """Search the nonces of the round at hand."""
        service = _service(request)
        await service.generate()
        return await done(service)

    @proof.post(
        "/phase/validate",
        summary="Validate",
        response_model=RoundAnswer,
        responses=errors(400, 413, 503),
    )
    async def phase_validate(request: Request) -> Any:
        """Stop searching and check proofs of the round at hand."""
        service = _service(request)
        await service.validate_phase()
        return await done(service)

    @proof.post(
        "/validate",
        summary="Validate a proof",
        response_model=None,
        responses=errors(400, 413, 422, 500, 503),
    )
    async def validate(body: ProofBody, request: Request) -> None:
        """Recompute somebody's proof; the signed verdict goes to the callback URL.

        Answers `null` once the verdict is on disk.
        """
        await _service(request).validate(body.to_batch())

    @proof.get(
        "/status",
        summary="Show how the node stands",
        response_model=PowStatus,
        responses=errors(503),
    )
    async def status(request: Request) -> Any:
        """Say how the node stands."""
        return await _service(request).status()

    @proof.post(
        "/stop", summary="End the round", response_model=RoundAnswer, responses=errors(413, 503)
    )
    async def stop(request: Request) -> Any:
        """End the round; what was found is still signed and sent."""
        service = _service(request)
        if not await service.stop():
            return {"status": "OK", "pow_status": "PoW is not running"}
        return await done(service)

    router.include_router(proof)

    @router.get(
        "/api/v1/state",
        summary="Show what the machine does",
        response_model=StateAnswer,
        tags=["node"],
    )
    async def state(request: Request) -> Any:
        """Say what the machine is used for."""
        return {"state": "STOPPED" if _service(request).round is None else "POW"}

    @router.post(
        "/api/v1/stop",
        summary="End whatever runs",
        response_model=OkAnswer,
        tags=["node"],
        responses=errors(413),
    )
    async def stop_all(request: Request) -> Any:
        """End whatever runs."""
        await _service(request).stop()
        return {"status": "OK"}

    @router.get(
        "/health",
        summary="Say whether the node can work",
        response_model=OkAnswer,
        tags=["node"],
        responses=errors(503),
    )
    @router.get(
        "/livez",
        summary="The same, for supervisors",
        response_model=OkAnswer,
        tags=["node"],
        responses=errors(503),
    )
    @router.get(
        "/readyz",
        summary="The same, for load balancers",
        response_model=OkAnswer,
        tags=["node"],
        responses=errors(503),
    )
    async def health(request: Request) -> Any:
        """Say whether the node can work."""
        if reason := _service(request).unhealthy:
            raise Unhealthy(reason)
        return {"status": "OK"}

    @router.get(
        "/metrics",
        summary="Figures for Prometheus",
        tags=["node"],
        response_class=Response,
        responses=errors(503) | {200: _METRICS},
    )
    async def metrics(request: Request) -> Any:
        """Return the node's figures in the text format of Prometheus."""
        content, media_type = await _service(request).render_metrics()
        return Response(content, media_type=media_type)

    return router


def _service(request: Request) -> NodeService:
    service: NodeService = request.app.state.service
    return service
