"""The gateway's application: REST routes, and the agents' WebSocket at ``/`` and ``/ws``."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI, Request, Response, WebSocket
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from pocqueue.hosts.commands import Commands
from pocqueue.hosts.gateway.access import admin_access, asks
from pocqueue.hosts.gateway.hub import Hub
from pocqueue.hosts.gateway.limits import Limit, RateLimited
from pocqueue.hosts.gateway.origins import page_rules
from pocqueue.hosts.gateway.page.routes import page_router
from pocqueue.hosts.gateway.routes.admins import admin_router
from pocqueue.hosts.gateway.routes.decisions import decision_router
from pocqueue.hosts.gateway.routes.owners import owner_router
from pocqueue.hosts.gateway.routes.parts import Parts
from pocqueue.hosts.gateway.routes.polling import polling_router
from pocqueue.hosts.gateway.routes.public import health_router, public_router
from pocqueue.hosts.gateway.routes.speed import speed_router
from pocqueue.hosts.gateway.socket import AgentSocket
from pocqueue.hosts.wire import CloseCode, origin_of
from pocqueue.settings import HostsSettings
from pocqueue.web.app import make_app
from pocqueue.web.door import Door
from pocqueue.web.errors import address_of, answer

logger = logging.getLogger(__name__)

#: Results over REST have the output of a job in them.
MAX_BODY_BYTES = 1 << 20
#: Of the files that the process may have open, this share is for sockets.
_SHARE = 0.9

_DESCRIPTION = """
Machines join with a token, work and are paid; their owners see it.

A page asks for a *token* for a wallet, an agent on the machine brings it over the WebSocket (`/` or `/ws`, docs/hosts.md),
and is a *node* from then on. Errors are `{"error": sentence}`.
"""


def create_app(hub: Hub, hosts: HostsSettings) -> FastAPI:
    """Make the application.

    Args:
        hub: of this gateway; it begins and ends with the application.
        hosts: settings of the gateway.

    Raises:
        SettingsError: a setting is not allowed.
        CommandsError: the list of commands cannot be used.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with hub:
            yield

    app = make_app(
        "pocqueue hosts",
        _DESCRIPTION,
        lifespan,
        max_body_bytes=MAX_BODY_BYTES,
        error_field="error",
        middleware=[
            *page_rules(allowed_origins(hosts), hosts.variable("cors_origins")),
            Middleware(JsonBodies),
            Middleware(Door, admin_access(hosts.admin_token, hub.failures), asks=asks),
        ],
    )
    parts = Parts(hub, hosts.public_url)
    # What is named comes before what has an id in its place.
    app.include_router(polling_router(parts))
    app.include_router(owner_router(parts, require_proof=hosts.require_proof))
    app.include_router(decision_router(parts))
    app.include_router(page_router(parts, ws_port=hosts.ws_port, require_proof=hosts.require_proof))
    app.include_router(admin_router(parts, Commands.load(hosts.commands_file)))
    app.include_router(public_router(parts))
    app.include_router(health_router(parts))
    app.include_router(speed_router(parts))
    app.include_router(socket_router(hub))

    @app.exception_handler(HTTPException)
    async def _no_route(request: Request, exc: Exception) -> Response:
        # Outside of the routes there are only paths and methods that do not exist.
        assert isinstance(exc, HTTPException)
        return answer(exc.status_code, str(exc.detail), request.scope, exc.headers)

    return app


@dataclass(eq=False)
class JsonBodies:
    """ASGI middleware that has the bodies of the REST routes read as JSON, whatever curl's `-d` says of them.

    A page of another site, which could send such a body without asking first, is refused before (`origins`).
    """

    app: ASGIApp  #: what comes behind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and scope["path"].startswith("/api/"):
            kept = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
            scope["headers"] = [*kept, (b"content-type", b"application/json")]
        await self.app(scope, receive, send)


def allowed_origins(hosts: HostsSettings) -> list[str]:
    """Return the origins of pages that may use a gateway, beside its own as it is called."""
    public = urlsplit(hosts.public_url or "")
    own = [f"{public.scheme}://{public.netloc}"] if hosts.public_url else []
    return [*(hosts.cors_origins or "").split(","), *own]


def socket_router(hub: Hub) -> APIRouter:
    """Make the route of agents."""
    router = APIRouter()
    most = max_sockets()

    @router.websocket("/")
    @router.websocket("/ws")
    async def agent(websocket: WebSocket) -> None:
        address = address_of(websocket.scope)
        code = None
        try:
            await hub.limits.count_address(Limit.CONNECTS, address)
        except RateLimited:
            code = CloseCode.TOO_FAST
        if code is None and hub.num_sockets >= most:
            logger.warning("Refused an agent from %s: %d sockets are open.", address, most)
            code = CloseCode.TRY_LATER
        if code is None and not hub.limits.open_socket(address):
            code = CloseCode.TOO_FAST
        if code is not None:
            # A handshake that is refused has no code that an agent could read.
            await websocket.accept()
            await websocket.close(code)
            return
        hub.num_sockets += 1
        try:
            origin = origin_of(f"//{websocket.headers.get('host', '')}")
            await AgentSocket(hub, websocket, address, origin).run()
        except asyncio.CancelledError:
            # The server ends and waits no longer. It would log where each of thousands of sockets was, which takes
            # minutes, and the more where nobody reads the log any more.
            logger.debug("a socket was given up as the gateway ended")
        finally:
            hub.num_sockets -= 1
            hub.limits.close_socket(address)

    return router


def max_sockets() -> int:
    """Return how many sockets this process can hold: most of the files that it may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else int(_SHARE * soft)


def raise_file_limit() -> None:
    """Let this process open as many files as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
