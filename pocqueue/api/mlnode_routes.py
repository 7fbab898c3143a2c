"""The small node's routes: WIRE.md section 2, as chain-side clients of today call them.

Paths may carry the version prefix that chains put before them (`/v3.0.8/api/v1/…`). The routes ask for
no token, as they never did: they listen on loopback unless told otherwise.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override

from pocqueue.api.errors import ErrorAnswer, SentenceRoute, answer
from pocqueue.api.mlnode_schema import (
    ERRORS,
    InitBody,
    OkAnswer,
    PowStatus,
    RoundAnswer,
    StateAnswer,
)
from pocqueue.api.pow_schema import ProofBody
from pocqueue.errors import (
    DelegationError,
    EngineError,
    EngineUnavailable,
    InvalidRound,
    ModelConflict,
    NodeStateError,
    PocqueueError,
    PoolError,
    StoreError,
)
from pocqueue.node.node_round import NodeRound
from pocqueue.node.service import NodeService
from pocqueue.poc.nonces import check_node
from pocqueue.settings import NodeSettings

_VERSION = re.compile(r"^/v\d+(?:\.\d+)+(?=/)")


class _NodeRoute(SentenceRoute):
    """Statuses of the small node's errors."""

    statuses = (
        (NodeStateError, 400),
        (ModelConflict, 409),
        (InvalidRound, 422),
        (EngineUnavailable, 503),
        (EngineError, 500),
        (StoreError, 503),
        (PoolError, 503),
    )

    @override
    def refuse(self, exc: PocqueueError) -> Response:
        if isinstance(exc, DelegationError):
            # What is wrong with the round is the chain's to know; what is wrong between the nodes is not.
            passed_on = exc.status in {409, 422, 429, 503}
            status = exc.status if passed_on and exc.status else (502 if exc.status else 503)
            return answer(status, str(exc))
        return super().refuse(exc)


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
    router = APIRouter(route_class=_NodeRoute)
    proof = APIRouter(
        prefix="/api/v1/pow", tags=["proof"], responses=ERRORS, route_class=_NodeRoute
    )

    def done(service: NodeService) -> dict[str, Any]:
        return {"status": "OK", "pow_status": service.status()}

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

    @proof.post("/init", response_model=RoundAnswer)
    async def init(body: InitBody, request: Request) -> Any:
        """Take a round, without starting it."""
        service = _service(request)
        await service.init(round_of(body))
        return done(service)

    @proof.post("/init/generate", response_model=RoundAnswer)
    async def init_generate(body: InitBody, request: Request) -> Any:
        """Take a round and search its nonces: by delegation where that is set up, else by itself.

        The same round again changes nothing; another one ends the round at hand.
        """
        service = _service(request)
        await service.generate(round_of(body, " to start generating"))
        return done(service)

    @proof.post("/init/validate", response_model=RoundAnswer)
    async def init_validate(body: InitBody, request: Request) -> Any:
        """Take a round to check proofs of others for. Needs an engine of this node's own."""
        service = _service(request)
        await service.validate_phase(round_of(body, " to start validating"))
        return done(service)

    @proof.post("/phase/generate", response_model=RoundAnswer)
    async def phase_generate(request: Request) -> Any:
        """Search the nonces of the round at hand."""
        service = _service(request)
        await service.generate()
        return done(service)

    @proof.post("/phase/validate", response_model=RoundAnswer)
    async def phase_validate(request: Request) -> Any:
        """Stop searching and check proofs of the round at hand."""
        service = _service(request)
        await service.validate_phase()
        return done(service)

    @proof.post("/validate", response_model=None)
    async def validate(body: ProofBody, request: Request) -> None:
        """Recompute somebody's proof; the signed verdict goes to the callback URL.

        Answers `null` once the verdict is on disk.
        """
        await _service(request).validate(body.to_batch())

    @proof.get("/status", response_model=PowStatus)
    async def status(request: Request) -> Any:
        """Say how the node stands."""
        return _service(request).status()

    @proof.post("/stop", response_model=RoundAnswer)
    async def stop(request: Request) -> Any:
        """End the round; what was found is still signed and sent."""
        service = _service(request)
        if not await service.stop():
            return {"status": "OK", "pow_status": "PoW is not running"}
        return done(service)

    router.include_router(proof)

    @router.get("/api/v1/state", response_model=StateAnswer, tags=["node"])
    async def state(request: Request) -> Any:
        """Say what the machine is used for."""
        return {"state": "STOPPED" if _service(request).round is None else "POW"}

    @router.post("/api/v1/stop", response_model=OkAnswer, tags=["node"])
    async def stop_all(request: Request) -> Any:
        """End whatever runs."""
        await _service(request).stop()
        return {"status": "OK"}

    unhealthy: dict[int | str, dict[str, Any]] = {
        503: {"model": ErrorAnswer, "description": "The node cannot work; says why."}
    }

    @router.get("/health", response_model=OkAnswer, tags=["node"], responses=unhealthy)
    @router.get("/livez", response_model=OkAnswer, tags=["node"], responses=unhealthy)
    @router.get("/readyz", response_model=OkAnswer, tags=["node"], responses=unhealthy)
    async def health(request: Request) -> Any:
        """Say whether the node can work."""
        if reason := _service(request).unhealthy:
            return JSONResponse({"detail": reason}, status_code=503)
        return {"status": "OK"}

    @router.get("/metrics", tags=["node"], response_class=Response)
    async def metrics(request: Request) -> Any:
        """Figures for Prometheus."""
        content, media_type = _service(request).render_metrics()
        return Response(content, media_type=media_type)

    return router


def _service(request: Request) -> NodeService:
    service: NodeService = request.app.state.service
    return service
