"""Routes of machines that have no socket: they ask again and again, as the second public client does.

Such a machine has its token alone: the first use binds it to a node, and from then on it is the node's secret. Else it
is a node like any other, with the same leases, the same ledger, and one job at a time. Which job it has stands in the
database, so that it may ask any gateway; one whose answer was lost is given the same job again.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from pocqueue.errors import InvalidToken
from pocqueue.hosts.errors import LeaseLost, TokenRefused, UnknownNode, WalletRefused
from pocqueue.hosts.gateway.limits import Limit
from pocqueue.hosts.gateway.results import count_result, signed_32
from pocqueue.hosts.gateway.routes.parts import Parts, new_router
from pocqueue.hosts.gateway.schema import Body, SuccessAnswer, errors
from pocqueue.hosts.records import POLLS, Attempt, Gpu, HostFacts, Job, JobKind, Node, Report
from pocqueue.hosts.wire import ErrorText
from pocqueue.hosts.wire.fields import UNKNOWN, Line, Log
from pocqueue.web.door import bearer_token
from pocqueue.web.errors import address_of

_NO_TOKEN = "This is for nodes: send the node's token as `Authorization: Bearer TOKEN`."  # noqa: S105 - a sentence


class MachineBody(Body):
    """A machine, as its client knows it; what else it says of itself is not kept."""

    wallet_address: Annotated[str, Field(max_length=200)] = ""
    hostname: Line = UNKNOWN
    gpu_model: Line = UNKNOWN
    vram: Annotated[float, Field(ge=0, le=1 << 20)] | None = None  #: GiB; 0: it has no GPU
    host_os: Annotated[Line, Field(alias="hostOS")] = UNKNOWN
    #: What it can do; ``command`` among them: jobs of the operator's list, too, and not its test job alone.
    capabilities: Annotated[tuple[Any, ...], Field(max_length=100)] = ()


class NodeAnswer(Body):
    """Who the machine is from now on."""

    node_id: str


class RegisteredAnswer(Body):
    """The machine is a node."""

    success: bool = True
    node: NodeAnswer


class PolledJob(Body):
    """A job to be run."""

    job_id: str
    job_type: str  #: its kind
    attempt: int
    command: str  #: the same as `argv`, for `sh`
    argv: list[str]
    timeout_s: int


class AvailableAnswer(Body):
    """The job that the node has, if it has one."""

    job: PolledJob | None


class ResultBody(Body):
    """What a job came to; `nodeId` is not looked at, as the token says who it is."""

    result: Any = None  #: with an `exit_code`, if it has one
    logs: Any = None


class FailureBody(Body):
    """Why a job failed."""

    error: Log = ""


def polling_router(parts: Parts) -> APIRouter:
    """Make the routes."""
    # Counted by node once that is known, else by address: many of them are behind one. Before the database is asked
    # who it is, all of an address are counted, as anybody may ask for that.
    hub, router = parts.hub, new_router(parts, limit=Limit.POLLS_OF_ADDRESS)
    store = hub.store

    async def refused(request: Request, why: str, *, is_guess: bool) -> InvalidToken:
        """Return the refusal of a machine, after counting it."""
        address = address_of(request.scope)
        await hub.limits.count_address(Limit.REQUESTS, address)
        if is_guess:
            hub.metrics.count("auth_failures")
            await hub.failures.count(address)
        return InvalidToken(why)

    async def spoke(node: Node) -> None:
        """Note that a node is there."""
        socket = f"polls {node.id}"
        if node.relay is None or node.socket != socket:
            await hub.db(store.presence.connected, node.id, hub.relay, socket)
        hub.spoke(node.id, socket, polls=True)

    async def asking(request: Request) -> Node:
        """Return the node that asks.

        Raises:
            InvalidToken: it has shown no token, or a wrong one.
            TooManyFailures, RateLimited: it is to ask less often.
        """
        token = bearer_token(request.scope)
        if token is None:
            raise await refused(request, _NO_TOKEN, is_guess=False)
        try:
            node = await hub.db(store.nodes.of_token, token)
        except UnknownNode:
            raise await refused(request, ErrorText.INVALID_TOKEN, is_guess=True) from None
        if node.protocol != POLLS:
            raise await refused(request, ErrorText.TOKEN_USED, is_guess=False)
        await hub.limits.count(Limit.POLLS, node.id)
        await spoke(node)
        return node

    @router.post("/api/nodes/register", summary="Join without a socket", responses=errors(400))
    async def register(body: MachineBody, request: Request) -> RegisteredAnswer:
        """Let a machine in with its token, which is its secret from then on; with the same one it is the same node."""
        token = bearer_token(request.scope)
        if token is None:
            raise await refused(request, _NO_TOKEN, is_guess=False)
        address, made = address_of(request.scope), await hub.db(store.owners.known_token, token)
        if made is None:
            hub.metrics.count("tokens", "refused")
            raise await refused(request, ErrorText.INVALID_TOKEN, is_guess=True)
        wallet, is_used = made
        if body.wallet_address not in {"", wallet}:
            await hub.limits.count_address(Limit.REQUESTS, address)
            raise WalletRefused(
                "walletAddress is not that of the wallet for which this token was made: get one for your own."
            )
        facts = _facts(body)
        if is_used:
            node = await known(request, token, ErrorText.TOKEN_USED, facts)
        else:
            await hub.limits.count_address(Limit.CONNECTS, address)
            try:
                node = await hub.db(store.nodes.register, token, facts, address=address)
            except TokenRefused as exc:  # too old, or used meanwhile
                node = await known(request, token, str(exc), facts)
            else:
                hub.metrics.count("tokens", "used")
                hub.spawn(hub.give_first_job(node.id))
        await spoke(node)
        hub.changes.tell(node.wallet)
        hub.messenger.look()
        return RegisteredAnswer(node=NodeAnswer(node_id=node.id))

    async def known(request: Request, token: str, why: str, facts: HostFacts) -> Node:
        """Return the node that a token has let in before, with what it says of itself now."""
        try:
            node = await hub.db(store.nodes.of_token, token)
            if node.protocol == POLLS:
                await hub.limits.count(Limit.POLLS, node.id)
                address = address_of(request.scope)
                return await hub.db(store.nodes.update, node.id, facts, address=address, key=None)
        except UnknownNode:
            pass
        hub.metrics.count("tokens", "refused")
        raise await refused(request, why, is_guess=True)

    @router.post("/api/nodes/heartbeat", summary="Still there", responses=errors())
    async def heartbeat(request: Request) -> SuccessAnswer:
        """Note that a node is there."""
        await asking(request)
        return SuccessAnswer()

    @router.get("/api/jobs/available", summary="The job that a node has", responses=errors())
    async def available(request: Request) -> AvailableAnswer:
        """Give a node its job, if it has one; until it reports that, the same one again."""
        node = await asking(request)
        for job, turn in await hub.db(store.leases.open_on, node.id):
            try:
                _, sent = await hub.db(store.leases.sent, job.id, turn.n)
            except LeaseLost:
                continue
            if turn.sent_ms is None:
                hub.metrics.dispatch.observe((store.now_ms() - turn.leased_ms) / 1000)
                hub.changes.tell(node.wallet)
            return AvailableAnswer(job=_polled(job, sent))
        return AvailableAnswer(job=None)

    @router.post("/api/jobs/{job_id}/result", summary="Bring a result", responses=errors(404))
    async def result(job_id: str, body: ResultBody, request: Request) -> SuccessAnswer:
        """Take a job's result from its node. The gateway's clock says what it is paid."""
        node = await asking(request)
        code = _exit_code(body.result)
        log = "\n".join(filter(None, (_text(body.logs), _text(body.result))))
        return await finish(
            job_id, node, Report("failed" if code else "completed", log, exit_code=code)
        )

    @router.post("/api/jobs/{job_id}/failure", summary="Report a failure", responses=errors(404))
    async def failure(job_id: str, body: FailureBody, request: Request) -> SuccessAnswer:
        """Take a node's word that a job has failed there."""
        node = await asking(request)
        return await finish(job_id, node, Report("failed", body.error))

    async def finish(job_id: str, node: Node, report: Report) -> SuccessAnswer:
        done = await hub.db(store.leases.finish, job_id, node.id, report)
        count_result(hub, node.wallet, done)
        return SuccessAnswer()

    return router


def _facts(body: MachineBody) -> HostFacts:
    """Return what a machine says of itself; its one GPU has the number 0."""
    has_gpu = body.gpu_model != UNKNOWN and body.vram != 0
    vram_mib = None if body.vram is None else int(1024 * body.vram)
    kinds: tuple[JobKind, ...] = (
        ("test", "command") if "command" in body.capabilities else ("test",)
    )
    return HostFacts(
        hostname=body.hostname,
        os=body.host_os,
        gpus=(Gpu("index-0", body.gpu_model, vram_mib),) if has_gpu else (),
        protocol=POLLS,
        kinds=kinds,
    )


def _polled(job: Job, turn: Attempt) -> PolledJob:
    return PolledJob(
        job_id=job.id,
        job_type=job.kind,
        attempt=turn.n,
        command=str(job.spec.get("text") or ""),
        argv=list(job.spec.get("argv") or ()),
        timeout_s=job.timeout_s,
    )


def _exit_code(result: Any) -> int | None:
    """Return the exit code in a result; None: it has none."""
    code = result.get("exit_code") if isinstance(result, dict) else None
    is_code = isinstance(code, int) and not isinstance(code, bool) and -(1 << 31) <= code < 1 << 32
    return signed_32(code) if is_code else None


def _text(value: Any) -> str:
    """Write what a client sent: lines as lines, the rest as JSON."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value)
