"""The artifact routes of an MLNode, as the network's chain calls them: docs/wire.md."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from pocqueue.node.mlnode.proxy import Proxy
from pocqueue.node.mlnode.schema import (
    FailedAnswer,
    JobAnswer,
    JobBody,
    RoundBody,
    StartAnswer,
    StatusAnswer,
    StopAnswer,
    errors,
)
from pocqueue.web.errors import SentenceRoute

_FAILED: dict[int | str, dict[str, Any]] = {
    502: {"model": FailedAnswer, "description": "It cannot be begun; says why."}
}
_JOB: dict[int | str, dict[str, Any]] = {200: {"model": JobAnswer}}


def mlnode_router(proxy: Proxy) -> APIRouter:
    """Return the routes."""
    router = APIRouter(
        prefix="/api/v1/inference/pow", tags=["artifacts"], route_class=SentenceRoute
    )

    @router.post(
        "/init/generate",
        summary="Search a round of artifacts",
        response_model=StartAnswer,
        responses=errors(413, 422, 503) | _FAILED,
    )
    async def init_generate(body: RoundBody) -> Any:
        """Search the nonces of this node until stopped, with all that it works with.

        The same round again changes nothing; another one ends the round at hand.
        """
        return await proxy.start(body)

    @router.post(
        "/generate",
        summary="Compute given nonces, or validate claims of them",
        response_model=None,
        responses=errors(400, 409, 413, 422, 429, 500, 503) | _JOB,
    )
    async def generate(body: JobBody) -> Any:
        """Compute given nonces of any node, or validate claims of them, ahead of a round that searches.

        Answers at once, unless `wait` is set; then `url` is told of the result.
        """
        return await proxy.generate(body)

    @router.get(
        "/generate/{request_id}",
        summary="Show how a request stands",
        response_model=None,
        responses=errors(400, 404, 422) | _JOB,
    )
    async def result(request_id: str) -> Any:
        """Say how a request stands, with its result for five minutes after its end."""
        return proxy.result(request_id)

    @router.get("/status", summary="Show how the round stands")
    async def status() -> StatusAnswer:
        """Say whether a round of artifacts is searched."""
        return await proxy.status()

    @router.post(
        "/stop",
        summary="End the round and all requests",
        response_model_exclude_unset=True,
        responses=errors(413),
    )
    async def stop() -> StopAnswer:
        """End the round and all requests for given nonces; what was found is still sent."""
        return await proxy.stop()

    return router
