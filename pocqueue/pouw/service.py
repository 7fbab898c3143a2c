"""What a node's own commands ask it over HTTP, on loopback: read only, but for the wish to check a block again, and
for signed transactions that it passes on.

The node lives as long as the application does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Path, Query
from starlette.middleware import Middleware

from pocqueue.errors import PocqueueError
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.node import PoUWNode
from pocqueue.web.app import make_app
from pocqueue.web.errors import SentenceRoute
from pocqueue.web.origin import OwnOrigin

_MAX_BODY_BYTES = 1024

_Height = Annotated[int, Path(ge=1)]
_Identifier = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
_Evidence = Annotated[str, Path(pattern=r"^[0-9a-f]{64}([0-9a-f]{2})?$")]
#: Of a transfer or a release; nothing longer is sent this way.
_Transaction = Annotated[str, Path(pattern=r"^([0-9a-f]{2}){1,400}$")]
_Account = Annotated[str, Path(pattern=r"^[0-9a-f]{66}$")]


def make_node_app(node: PoUWNode, *, stake: float | None, mine: bool) -> FastAPI:
    """Make the application that a node lives in.

    Args:
        node: not started.
        stake: PAI of the ticket that it takes when it starts, if it has none of its role; None: it takes none.
        mine: it mines, if its role may.

    Returns:
        The application. If the node did not start, the server ends, and its ``state.failure`` says why.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            try:
                await node.start()
                role = node.config.role
                if stake is not None and role is not NodeRole.PEER and node.ticket is None:
                    node.stake_and_register(stake)
                if mine and role in {NodeRole.MINER, NodeRole.SUPERVISOR}:
                    await node.start_mining()
            except PocqueueError as exc:
                # Raised here it would be a traceback in the server's log: the server is told to end instead.
                app.state.failure = exc
                signal.raise_signal(signal.SIGTERM)
            yield
        finally:
            await node.stop()

    app = make_app(
        "pocqueue pouw node",
        "What a node of the network of useful work says of itself and of the chain.",
        lifespan,
        max_body_bytes=_MAX_BODY_BYTES,
        middleware=[Middleware(OwnOrigin, setting="--http-port", own=(), allowed=())],
    )
    app.state.failure = None
    app.include_router(_routes(node))
    return app


def _routes(node: PoUWNode) -> APIRouter:
    router = APIRouter(prefix="/api", route_class=SentenceRoute)

    @router.get("/status")
    async def status() -> dict[str, Any]:
        """Return what `get_status`, `get_economic_status` and the share of right answers say."""
        return {
            **node.get_status(),
            "economics": node.get_economic_status(),
            "accuracy": node.views.accuracy,
        }

    @router.get("/health")
    async def health() -> dict[str, Any]:
        """Return the health metrics."""
        metrics = node.get_health_metrics()
        return {**dataclasses.asdict(metrics), "is_healthy": metrics.is_healthy()}

    @router.get("/peers")
    async def peers() -> list[dict[str, Any]]:
        """Return the links."""
        return node.views.peers()

    @router.get("/committee")
    async def committee() -> dict[str, Any]:
        """Return who certifies now, and the making of the next committee's key."""
        return await node.views.security.committee()

    @router.get("/alerts")
    async def alerts() -> dict[str, Any]:
        """Return what was noticed, newest first."""
        return node.views.security.alerts()

    @router.get("/evidence/{identifier}")
    async def evidence(identifier: _Evidence) -> list[dict[str, Any]]:
        """Return what evidence in the chain shows, checked again."""
        return await node.views.security.evidence(identifier)

    @router.get("/tasks")
    async def tasks() -> list[dict[str, Any]]:
        """Return the clients' tasks, newest first."""
        return await node.views.tasks()

    @router.get("/accounts/{account}")
    async def account(account: _Account) -> dict[str, Any]:
        """Return what an account owns."""
        return await node.views.account(account)

    @router.get("/blocks")
    async def blocks(last: Annotated[int, Query(ge=1, le=1000)] = 10) -> list[dict[str, Any]]:
        """Return the newest blocks, newest first."""
        return await node.views.blocks(last)

    @router.get("/slots")
    async def slots(last: Annotated[int, Query(ge=1, le=1000)] = 10) -> list[dict[str, Any]]:
        """Return the newest slots, newest first."""
        return await node.views.slots(last)

    @router.get("/blocks/{height}")
    async def block(height: _Height) -> dict[str, Any]:
        """Return a block, and what was checked of it."""
        return await node.views.block(height)

    @router.post("/blocks/{height}/verify")
    async def verify(height: _Height) -> dict[str, Any]:
        """Check a block again, its training too."""
        return await node.views.verify_block(height)

    @router.get("/transactions/{identifier}")
    async def taken(identifier: _Identifier) -> dict[str, Any]:
        """Return which of the newest blocks has a transaction."""
        return await node.views.transaction(identifier)

    @router.post("/transactions/{transaction}")
    async def transaction(transaction: _Transaction) -> dict[str, Any]:
        """Pass on a transaction that somebody has signed, as any node does."""
        return await node.views.pass_on(transaction)

    return router
