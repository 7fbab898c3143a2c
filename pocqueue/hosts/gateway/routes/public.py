"""Routes for everybody: health, a node, a job, machines that announce themselves, and a result over REST."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from pocqueue.errors import InvalidToken, StoreError
from pocqueue.hosts import wallets
from pocqueue.hosts.errors import DatabaseUnavailable, NodeKeyError, UnknownJob, UnknownNode
from pocqueue.hosts.gateway.access import is_admin, wallet_of
from pocqueue.hosts.gateway.limits import Limit
from pocqueue.hosts.gateway.results import count_result
from pocqueue.hosts.gateway.routes.parts import Missing, Parts, Wallet, new_router
from pocqueue.hosts.gateway.schema import (
    AnnouncedView,
    AnnouncementBody,
    HealthAnswer,
    JobView,
    NodeView,
    OkAnswer,
    ReadyAnswer,
    ReportBody,
    SuccessAnswer,
    errors,
    iso,
    job_view,
    node_view,
)
from pocqueue.hosts.node_keys import check_answer
from pocqueue.hosts.records import Node, Report
from pocqueue.hosts.store.jobs import Turn
from pocqueue.hosts.store.owners import Announcement
from pocqueue.hosts.wire import ErrorText, origin_of, signed_text
from pocqueue.web.door import bearer_token
from pocqueue.web.errors import address_of

#: The signature of a result over REST, as hex: that of a challenge whose nonce is the SHA-256 of the body, as hex.
SIGNATURE = "X-Node-Signature"


def public_router(parts: Parts) -> APIRouter:
    """Make the routes."""
    hub, router = parts.hub, new_router(parts)
    store = hub.store

    @router.get(
        "/api/nodes/{node_id}",
        summary="A node",
        responses=errors(404),
        response_model_exclude_none=True,
    )
    async def node(node_id: str, request: Request) -> NodeView:
        """Show a node; to its owner, signed in, and to admins with all that is known of it."""
        found = await hub.db(store.nodes.get, node_id)
        busy = await hub.db(store.presence.busy, [node_id])
        earned = await hub.db(store.ledger.earned_by_node, found.wallet)
        is_owner = is_admin(request) or found.wallet == await wallet_of(request, hub)
        test = await hub.db(store.health.self_test, node_id) if is_owner else None
        return node_view(
            found,
            status=parts.status(found, busy),
            micro=earned.get(node_id, 0),
            is_owner=is_owner,
            self_test=None if test is None else test.rows,
        )

    @router.get(
        "/api/nodes/{node_id}/self-test", summary="A node's self-test", responses=errors(404)
    )
    async def self_test(node_id: str, request: Request) -> list[dict[str, Any]]:
        """Show the rows of a node's newest self-test; for its owner, signed in, and admins."""
        found = await hub.db(store.nodes.get, node_id)
        if not is_admin(request) and found.wallet != await wallet_of(request, hub):
            raise UnknownNode
        test = await hub.db(store.health.self_test, node_id)
        return [] if test is None else test.rows

    @router.get("/api/jobs/{job_id}", summary="A job", responses=errors(404))
    async def job(job_id: str) -> JobView:
        """Show a job."""
        found = await hub.db(store.jobs.get, job_id)
        attempts = await hub.db(store.jobs.attempts, job_id)
        return job_view(found, Turn(found, attempts[-1]) if attempts else None)

    @router.post("/api/jobs/report", summary="Bring a result", responses=errors(400, 404))
    async def report(body: ReportBody, request: Request) -> SuccessAnswer:
        """Take a job's result from its node, which shows that it is the node: by its key, or without one by its token."""
        if not body.job_id or not body.node_id:
            raise Missing("jobId and nodeId are required")
        await hub.db(store.jobs.get, body.job_id)
        try:
            found = await hub.db(store.nodes.get, body.node_id)
        except UnknownNode:
            raise UnknownJob from None
        await _check_node(found, request)
        logs = body.logs if isinstance(body.logs, str) else json.dumps(body.logs)
        result = Report(
            status="completed" if body.status == "completed" else "failed",
            log="" if body.logs is None else logs,
        )
        done = await hub.db(store.leases.finish, body.job_id, found.id, result)
        count_result(hub, found.wallet, done)
        return SuccessAnswer()

    @router.post("/api/gpu/register", summary="Announce a machine", responses=errors(400))
    async def announce(body: AnnouncementBody, request: Request) -> OkAnswer:
        """Note that a machine is there. It is shown for 90 days; it gets no job and earns nothing."""
        if not body.wallet:
            raise Missing("wallet is required")
        if not body.hostname:
            raise Missing("hostname is required")
        wallets.public_key(body.wallet)
        await hub.limits.count_address(Limit.ANNOUNCEMENTS, address_of(request.scope))
        gpus = [
            gpu.model_dump(by_alias=True, exclude_none=True, exclude={"healthy", "reason"})
            for gpu in body.gpus
        ]
        await hub.db(store.owners.announce, body.wallet, body.hostname, gpus, body.os)
        return OkAnswer()

    @router.get(
        "/api/gpu/hosts", summary="Machines that announced themselves", responses=errors(400)
    )
    async def announced(wallet: Wallet = "") -> list[AnnouncedView]:
        """List a wallet's machines that announced themselves, newest first."""
        if not wallet:
            raise Missing("wallet parameter is required")
        wallets.public_key(wallet)
        return [announced_view(one) for one in await hub.db(store.owners.announced, wallet)]

    async def _check_node(found: Node, request: Request) -> None:
        """See that a node itself asks.

        Raises:
            InvalidToken: it does not, or it was revoked or banned.
            TooManyFailures: too many wrong tokens and signatures came from there.
        """
        if found.state in {"revoked", "banned"}:
            raise InvalidToken(ErrorText.BANNED)
        why = "This is for the node: send its token as `Authorization: Bearer TOKEN`."
        if found.key is not None:
            # Its token has let it in, and is nothing any more.
            why = f"This is for the node, which has a key: send {SIGNATURE}."
        signature, token = request.headers.get(SIGNATURE), bearer_token(request.scope)
        if token is not None and found.key is None:
            try:
                if (await hub.db(store.nodes.of_token, token)).id == found.id:
                    return
            except UnknownNode:
                why = "Invalid token"
        elif signature is not None and found.key is not None:
            digest = hashlib.sha256(await request.body()).hexdigest()
            origin = origin_of(f"//{request.headers.get('host', '')}")
            try:
                check_answer(found.key, signature, signed_text(origin, found.id, digest))
            except NodeKeyError as exc:
                why = str(exc)
            else:
                return
        if token is not None or signature is not None:
            hub.metrics.count("auth_failures")
            client = request.client
            await hub.failures.count("" if client is None else client.host)
        raise InvalidToken(why)

    return router


def health_router(parts: Parts) -> APIRouter:
    """Make the routes that say how it is."""
    hub, router = parts.hub, new_router(parts, limit=None)

    @router.get("/health", summary="Whether it runs")
    async def health() -> HealthAnswer:
        """Say that the process answers."""
        return HealthAnswer(status="ok", timestamp=iso(hub.store.now_ms()))

    @router.get(
        "/readyz", summary="Whether it can work", responses=errors() | {503: {"model": ReadyAnswer}}
    )
    async def ready(request: Request) -> JSONResponse:
        """Say whether database and Redis answer."""
        await hub.limits.count_address(Limit.LOOKS, address_of(request.scope))
        database = redis = True
        try:
            await hub.db(hub.store.database.check)
        except DatabaseUnavailable:
            database = False
        if hub.relays is not None:
            try:
                await asyncio.to_thread(hub.relays.live)
            except StoreError:
                redis = False
        is_ready = database and redis
        answer = ReadyAnswer(status="ok" if is_ready else "waiting", database=database, redis=redis)
        return JSONResponse(answer.model_dump(), status_code=200 if is_ready else 503)

    return router


def announced_view(one: Announcement) -> AnnouncedView:
    """Show a machine that announced itself."""
    return AnnouncedView(
        wallet=one.wallet,
        hostname=one.hostname,
        gpus=one.gpus,
        os=one.os,
        last_seen=iso(one.at_ms),
    )
