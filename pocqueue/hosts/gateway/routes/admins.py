"""Routes of admins: all nodes and jobs, and the gateway's figures."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from pocqueue.errors import InvalidToken
from pocqueue.hosts.commands import Commands, Submission
from pocqueue.hosts.gateway.access import is_admin
from pocqueue.hosts.gateway.limits import Limit
from pocqueue.hosts.gateway.messenger import What
from pocqueue.hosts.gateway.results import count_end
from pocqueue.hosts.gateway.routes.parts import (
    ADMIN,
    NEXT_CURSOR,
    Cursor,
    PageSize,
    Parts,
    new_router,
)
from pocqueue.hosts.gateway.routes.public import announced_view
from pocqueue.hosts.gateway.schema import (
    AnnouncedView,
    JobView,
    NodeView,
    OkAnswer,
    errors,
    job_view,
)
from pocqueue.web.errors import address_of


def admin_router(parts: Parts, commands: Commands) -> APIRouter:
    """Make the routes.

    Args:
        commands: that jobs may run.
    """
    hub, router = parts.hub, new_router(parts, limit=None)
    store = hub.store

    @router.get(
        "/api/nodes",
        summary="All nodes",
        dependencies=ADMIN,
        responses=errors(),
        response_model_exclude_none=True,
    )
    async def nodes(
        response: Response, cursor: Cursor = None, limit: PageSize = 100
    ) -> list[NodeView]:
        """List nodes by id, a page at a time."""
        found = await hub.db(store.nodes.listed, after=cursor, limit=limit)
        if len(found) == limit:
            response.headers[NEXT_CURSOR] = found[-1].id
        earned: dict[str, int] = {}
        for wallet in {node.wallet for node in found}:
            earned |= await hub.db(store.ledger.earned_by_node, wallet)
        return await parts.views(found, earned)

    @router.get("/api/jobs", summary="All jobs", dependencies=ADMIN, responses=errors())
    async def jobs(
        response: Response, cursor: Cursor = None, limit: PageSize = 100
    ) -> list[JobView]:
        """List jobs, newest first, a page at a time."""
        found, following = await hub.db(store.jobs.listed, cursor=cursor, limit=limit)
        if following is not None:
            response.headers[NEXT_CURSOR] = following
        return [job_view(job, None) for job in found]

    @router.post(
        "/api/jobs",
        summary="Submit a job",
        dependencies=ADMIN,
        responses=errors(404),
    )
    async def submit(body: Submission, request: Request) -> JobView:
        """Queue a job of the operator's list of commands and images; it goes to a node as soon as one can do it."""
        await hub.limits.count_address(Limit.JOBS, address_of(request.scope))
        if body.node is not None:
            await hub.db(store.nodes.get, body.node)
        job = await hub.db(store.jobs.submit, commands.job(body, "admin"))
        hub.messenger.place(job.id)
        return job_view(job, None)

    @router.get(
        "/api/gpu/hosts/all",
        summary="All machines that announced themselves",
        dependencies=ADMIN,
        responses=errors(),
    )
    async def announced() -> list[AnnouncedView]:
        """List the machines that announced themselves, newest first."""
        return [announced_view(one) for one in await hub.db(store.owners.announced)]

    @router.post(
        "/api/jobs/{job_id}/cancel",
        summary="Cancel a job",
        dependencies=ADMIN,
        responses=errors(404, 409),
    )
    async def cancel(job_id: str, request: Request) -> OkAnswer:
        """Cancel a job; what its node has done until then is paid."""
        _must_be_admin(request)
        done = await hub.db(store.leases.cancel, job_id, actor="admin")
        if done is not None:
            count_end(hub.metrics, done)
            attempt = done.attempt
            hub.messenger.tell(attempt.relay, What.CANCEL, attempt.node_id, job_id, attempt.n)
        return OkAnswer()

    @router.get(
        "/metrics", summary="Figures for Prometheus", dependencies=ADMIN, include_in_schema=False
    )
    async def metrics() -> Response:
        """Return the gateway's figures in Prometheus's format."""
        gauges = hub.metrics.gauges(
            nodes=await hub.db(store.presence.counts),
            jobs=await hub.db(store.jobs.counts),
            num_connections=hub.num_connections,
        )
        return PlainTextResponse(hub.metrics.page(gauges), media_type=CONTENT_TYPE_LATEST)

    return router


def _must_be_admin(request: Request) -> None:
    """Refuse everybody else.

    Raises:
        InvalidToken: no admin asks.
    """
    if not is_admin(request):
        raise InvalidToken(
            "This is for admins: send the admin's token as `Authorization: Bearer TOKEN`."
        )
