"""The routes of a delegation (docs/wire.md), as `/api/v1/delegation/X` and as bare `/X`.

Thin: the door (`access.py`) has found the caller, ``request.user``, and what sessions do is in
`rounds/sessions/`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from fastapi.security import APIKeyQuery, HTTPBearer
from prometheus_client import Histogram, ProcessCollector

from pocqueue.delegation.customers import MAIN, Customer
from pocqueue.delegation.drain_response import DrainResponse
from pocqueue.delegation.schema import (
    BatchesAnswer,
    HealthAnswer,
    SessionAnswer,
    SessionsAnswer,
    StartAnswer,
    StartBody,
    StopAnswer,
    StopBody,
    errors,
)
from pocqueue.errors import InvalidToken, UnknownSession
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.metrics import PoolCollector, render
from pocqueue.rounds.sessions.control import SessionControl, session_views, session_word
from pocqueue.rounds.sessions.reader import MAX_ENTRIES, Page, SessionReader, parse_cursor
from pocqueue.rounds.store import START
from pocqueue.settings import DelegationSettings
from pocqueue.web.connection import TRANSPORT
from pocqueue.web.errors import SentenceRoute

logger = logging.getLogger(__name__)

#: Longest time that a request for batches may wait, in seconds.
MAX_WAIT_S = 30.0


@dataclass(frozen=True)
class Delegation:
    """What the routes work on; `app.state.delegation` has it while the application runs."""

    settings: DelegationSettings
    backend: Backend
    sessions: SessionControl
    reader: SessionReader


#: For the OpenAPI document; the door does the work.
SECURITY = [
    Depends(
        HTTPBearer(
            scheme_name="bearer",
            description="The token, as `Authorization: Bearer TOKEN`.",
            auto_error=False,
        )
    ),
    Depends(
        APIKeyQuery(
            name="auth_token",
            scheme_name="query",
            description="The token in the query, as older clients send it. It may end up in logs of "
            "proxies: better use the header. `POST` bodies may have it as `auth_token`.",
            auto_error=False,
        )
    ),
]


def delegation_router() -> APIRouter:
    """Return the routes without a prefix."""
    router = APIRouter(tags=["delegation"], route_class=SentenceRoute)

    def add(
        method: str, path: str, route: Callable[..., Any], model: Any, summary: str, *statuses: int
    ) -> None:
        router.add_api_route(
            path,
            route,
            methods=[method],
            summary=summary,
            response_model=model,
            responses=errors(*statuses),
            dependencies=SECURITY if 401 in statuses else [],
        )

    get, post = partial(add, "GET"), partial(add, "POST")
    post("/start", start, StartAnswer, "Start a session", 401, 409, 413, 422, 429, 503)
    summary = "Fetch a session's batches"
    get("/batches/{session_id}", batches, BatchesAnswer, summary, 401, 404, 422, 429, 503)
    post("/stop", stop, StopAnswer, "Stop a session", 401, 404, 413, 422, 429, 503)
    get("/status", status, SessionsAnswer, "Show sessions", 401, 429, 503)
    get("/health", health, HealthAnswer, "Say whether the service works", 503)
    return router


def metrics_router(histogram: Histogram) -> APIRouter:
    """Return `GET /metrics`, which is for the token of the settings only.

    The pool's figures (`pocqueue.rounds.metrics`) are the same from every process. Times of requests and
    what the process uses are its own: with several processes behind one port, each scrape shows the one
    that happened to answer it. To have those exactly, run one process.
    """
    router = APIRouter(tags=["delegation"], route_class=SentenceRoute)
    process = ProcessCollector(registry=None)

    @router.get(
        "/metrics",
        summary="Figures for Prometheus",
        response_class=Response,
        responses={
            200: {
                "description": "The figures; `pocqueue_up 0` and those of the process while Redis is away.",
                "content": {"text/plain": {"example": "pocqueue_up 1.0\n"}},
            },
            **errors(401, 429),
        },
        dependencies=SECURITY,
    )
    # Not a coroutine: reading all of Redis's figures blocks, so it runs in a thread.
    def metrics(request: Request) -> Response:
        """Show counters and gauges of the pool and of this process, in Prometheus's text format."""
        if request.user.name != MAIN:
            # They are those of all customers together.
            raise InvalidToken(
                "Invalid auth token: figures are the operator's; send DELEGATION_AUTH_TOKEN."
            )
        delegation: Delegation = request.app.state.delegation
        page, media_type = render(PoolCollector(delegation.backend), histogram, process)
        return Response(page, headers={"Content-Type": media_type})

    return router


def start(body: StartBody, request: Request) -> StartAnswer:
    """Start a session: all live GPUs of its model search its nonces until it is stopped or expires.

    It shares them fairly with the other sessions. The search begins at once.
    """
    delegation: Delegation = request.app.state.delegation
    customer: Customer = request.user
    started = delegation.sessions.start(
        body.to_draft(),
        body.params.to_wish(),
        customer=customer.name,
        max_sessions=customer.max_sessions(delegation.settings.max_sessions),
        share=customer.share,
        request_id=None if body.request_id is None else str(body.request_id),
    )
    message = f"Session created with {started.num_gpus} GPU groups"
    return StartAnswer(
        session_id=started.session_id,
        status="initializing",
        message=f"{message}. {started.warning}" if started.warning else message,
        warning=started.warning,
        gpu_count=started.num_gpus,
        proof=started.spec.scheme,
        model=started.spec.model,
        model_fingerprint=started.spec.model_fingerprint,
        model_dtype=started.spec.model_dtype or "",
        model_runtime=started.spec.model_runtime or "",
        expires_in=started.spec.window_s,
    )


async def batches(
    session_id: str,
    request: Request,
    cursor: Annotated[
        str | None,
        Query(
            max_length=64,
            description="Behind which batch to begin: the cursor of an earlier reply, or empty for the "
            "first batch. The same cursor gives the same batches again. Without it the reply has the batches "
            "that were not handed over yet: all of an earlier reply are once it has arrived.",
        ),
    ] = None,
    wait: Annotated[
        float,
        Query(
            ge=0,
            le=MAX_WAIT_S,
            allow_inf_nan=False,
            description="Seconds to wait for a batch if there is none yet; the answer comes with the first one.",
        ),
    ] = 0.0,
    limit: Annotated[
        int, Query(ge=1, le=MAX_ENTRIES, description="Most batches of the reply.")
    ] = MAX_ENTRIES,
) -> Response:
    """Fetch batches, oldest first: those that were not handed over yet, or those behind a cursor.

    Until a reply has `session_active: false` there may be more; that one has the last of them. It
    comes after the session was stopped or has expired, and once all of its batches are handed over.
    """
    delegation: Delegation = request.app.state.delegation
    customer: Customer = request.user
    reader = delegation.reader
    begin = None if cursor is None else parse_cursor(cursor)
    page = await reader.read(session_id, begin, limit)
    if page.spec.customer != customer.name:
        raise UnknownSession(session_id)
    if wait > 0 and not page.num_batches and page.state.is_active:
        transport = getattr(request.state, TRANSPORT, None)
        gone = None if transport is None else transport.is_closing
        await reader.wait(session_id, page.cursor, wait, gone)
        page = await reader.read(session_id, begin, limit)
    body = _batches_body(page)
    if cursor is not None or not page.num_batches:
        return Response(body, media_type="application/json")
    return DrainResponse(body, partial(_hand_over, reader, page))


def stop(body: StopBody, request: Request) -> StopAnswer:
    """Stop a session. What it found can still be fetched, for an hour; stopping twice is fine."""
    delegation: Delegation = request.app.state.delegation
    customer: Customer = request.user
    ended = delegation.sessions.stop(body.session_id, customer.name)
    return StopAnswer(
        session_id=ended.round_id,
        status=session_word(ended.state, begun=ended.next_index > 0),
        message="Session stopped successfully",
        total_batches_generated=delegation.backend.store.num_proofs([ended.round_id])[0],
    )


def status(request: Request) -> SessionsAnswer:
    """Show the caller's sessions of the last hour; everybody's if status is public and no token sent."""
    delegation: Delegation = request.app.state.delegation
    customer: Customer | None = request.user
    in_all = delegation.settings.max_sessions
    views = session_views(delegation.backend, None if customer is None else customer.name)
    return SessionsAnswer(
        total_sessions=len(views),
        active_sessions=sum(view.status.state.is_active for view in views),
        max_sessions=in_all if customer is None else customer.max_sessions(in_all),
        sessions={view.status.round_id: SessionAnswer(**view.to_dict()) for view in views},
    )


async def health(request: Request) -> HealthAnswer:
    """Say whether the service and its Redis answer. Needs no token."""
    delegation: Delegation = request.app.state.delegation
    await delegation.reader.ping()
    return HealthAnswer()


def _batches_body(page: Page) -> bytes:
    # An answer of one kind, made some hundred times a second: put together by hand.
    parts = [
        f'{{"session_id":"{page.session_id}","batches":',
        page.batches_json(),
        ',"session_active":',
        "false" if page.drained else "true",
        f',"status":"{page.word}","total_batches_generated":{page.total}',
        f',"cursor":"{page.cursor}"',
        f',"reason":{json.dumps(page.reason)}' if page.reason else "",
        "}",
    ]
    return "".join(parts).encode()


async def _hand_over(reader: SessionReader, page: Page) -> None:
    names = page.session_id, page.spec.node_id
    if not await reader.confirm_drain(page.session_id, page.before, page.cursor):
        logger.info(
            "DELEGATION session %s of node %d: two polls at a time got the same batches.", *names
        )
    elif page.before == START:
        logger.info("DELEGATION session %s of node %d: first batches handed over.", *names)
