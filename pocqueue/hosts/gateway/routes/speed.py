"""Where machines measure the way to the gateway: 20 MB each way, in pieces (`agent.self_test.speed`)."""

from __future__ import annotations

import os

from fastapi import APIRouter, Request, Response

from pocqueue.hosts.gateway.limits import Limit
from pocqueue.hosts.gateway.routes.parts import Parts, new_router
from pocqueue.hosts.gateway.schema import SpeedAnswer, errors
from pocqueue.hosts.protocol import SPEED_BYTES, SPEED_PATH
from pocqueue.web.errors import address_of


def speed_router(parts: Parts) -> APIRouter:
    """Make the routes. They have a limit of their own: they are the only ones that move so much for anybody."""
    hub, router = parts.hub, new_router(parts, limit=None)
    # Random, as something on the way may press it.
    piece = os.urandom(SPEED_BYTES)

    @router.get(
        SPEED_PATH,
        summary="Measure the way here",
        responses=errors() | {200: {"content": {"application/octet-stream": {}}}},
        response_class=Response,
    )
    async def down(request: Request) -> Response:
        """Give a million bytes, for a machine's self-test."""
        await hub.limits.count_address(Limit.PIECES, address_of(request.scope))
        return Response(piece, media_type="application/octet-stream")

    @router.post(SPEED_PATH, summary="Measure the way back", responses=errors(413))
    async def up(request: Request) -> SpeedAnswer:
        """Take up to a million bytes, for a machine's self-test; they are not kept."""
        await hub.limits.count_address(Limit.PIECES, address_of(request.scope))
        num_bytes = 0
        async for chunk in request.stream():
            num_bytes += len(chunk)
        return SpeedAnswer(bytes=num_bytes)

    return router
