"""The routes of a delegation: WIRE.md section 1, as `/api/v1/delegation/X` and as bare `/X`.

Thin: who asks is found out here, what sessions do is in `rounds/sessions.py` and `session_desk.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from fastapi.security import APIKeyQuery, HTTPBearer
from starlette.requests import ClientDisconnect
from typing_extensions import override

from pocqueue.delegation.customers import Customer
from pocqueue.delegation.drain_response import DrainResponse, is_gone
from pocqueue.delegation.schema import (
    BatchesAnswer,
    HealthAnswer,
    SessionAnswer,
    StartAnswer,
    StartBody,
    StatusAnswer,
    StopAnswer,
    StopBody,
    errors,
)
from pocqueue.errors import UnknownSession
from pocqueue.rounds.sessions.control import SessionDesk
from pocqueue.rounds.sessions.reader import MAX_ENTRIES, Page, SessionReader, parse_cursor
from pocqueue.rounds.sessions.views import session_word
from pocqueue.rounds.store import START
from pocqueue.settings import DelegationSettings
from pocqueue.web.access import Access
from pocqueue.web.errors import SentenceRoute, answer

logger = logging.getLogger(__name__)

PREFIX = "/api/v1/delegation"
#: Longest time that a request for batches may wait, in seconds.
MAX_WAIT_S = 30.0

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True)
class Delegation:
    """What the routes work on; `app.state.delegation` has it while the application runs."""

    settings: DelegationSettings
    access: Access
    desk: SessionDesk
    reader: SessionReader


class TokenRoute(SentenceRoute):
    """A route for customers: `request.state.customer` is who asks.

    The token is looked for before anything else is judged: who has none learns nothing of the rest.
    """

    @override
    async def admit(self, request: Request, handler: Handler) -> Response:
        delegation: Delegation = request.app.state.delegation
        token = _token_beside_body(request)
        is_object = True
        if request.method == "POST":
            is_object, in_body = await _read_body(request)
            token = token or in_body
        if token is None and self.is_public(delegation.settings):
            request.state.customer = None
            return await handler(request)
        address = request.client.host if request.client is not None else ""
        request.state.customer = await delegation.access.admit(address, token)
        if not is_object:
            # Never shown: what cannot be read may have a token in it.
            return answer(422, "The body is not a JSON object.")
        return await handler(request)

    def is_public(self, settings: DelegationSettings) -> bool:
        """Say whether who sends no token is let in as well."""
        return False


class StatusRoute(TokenRoute):
    """A route for customers, or for all where the operator has status public."""

    @override
    def is_public(self, settings: DelegationSettings) -> bool:
        return settings.public_status


#: For the OpenAPI document; the routes' classes do the work.
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
    router = APIRouter(tags=["delegation"], route_class=TokenRoute)
    router.add_api_route(
        "/start",
        start,
        methods=["POST"],
        summary="Start a session",
        response_model=StartAnswer,
        responses=errors(401, 409, 413, 422, 429, 503),
        dependencies=SECURITY,
    )
    router.add_api_route(
        "/batches/{session_id}",
        batches,
        methods=["GET"],
        summary="Fetch a session's batches",
        response_model=BatchesAnswer,
        responses=errors(401, 404, 422, 429, 503),
        dependencies=SECURITY,
    )
    router.add_api_route(
        "/stop",
        stop,
        methods=["POST"],
        summary="Stop a session",
        response_model=StopAnswer,
        responses=errors(401, 404, 413, 422, 429, 503),
        dependencies=SECURITY,
    )
    status_router = APIRouter(tags=["delegation"], route_class=StatusRoute)
    status_router.add_api_route(
        "/status",
        status,
        methods=["GET"],
        summary="Show sessions",
        response_model=StatusAnswer,
        responses=errors(401, 429, 503),
        dependencies=SECURITY,
    )
    health_router = APIRouter(tags=["delegation"], route_class=SentenceRoute)
    health_router.add_api_route(
        "/health",
        health,
        methods=["GET"],
        summary="Say whether the service works",
        response_model=HealthAnswer,
        responses=errors(503),
    )
    router.include_router(status_router)
    router.include_router(health_router)
    return router


def start(body: StartBody, request: Request) -> StartAnswer:
    """Start a session: all live GPUs of its model search its nonces until it is stopped or expires.

    It shares them fairly with the other sessions. The search begins at once.
    """
    delegation: Delegation = request.app.state.delegation
    customer: Customer = request.state.customer
    started = delegation.desk.start(
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
        gpu_count=started.num_gpus,
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
            "first batch. The same cursor gives the same batches again. Without it each batch is "
            "handed over once.",
        ),
    ] = None,
    wait: Annotated[
        float,
        Query(
            ge=0,
            le=MAX_WAIT_S,
            allow_inf_nan=False,
            description="Seconds to wait where there is nothing yet; the answer comes as soon as there is.",
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
    customer: Customer = request.state.customer
    reader = delegation.reader
    begin = None if cursor is None else parse_cursor(cursor)
    page = await reader.read(session_id, begin, limit)
    if page.spec.customer != customer.name:
        raise UnknownSession(session_id)
    if wait > 0 and not page.num_batches and not page.is_over:
        await reader.wait(session_id, page.cursor, wait, gone=lambda: is_gone(request.receive))
        page = await reader.read(session_id, begin, limit)
    body = _batches_body(page)
    if cursor is not None or not page.num_batches:
        return Response(body, media_type="application/json")

    async def confirm() -> bool:
        return await _hand_over(reader, page)

    return DrainResponse(body, confirm)


def stop(body: StopBody, request: Request) -> StopAnswer:
    """Stop a session. What it found can still be fetched, for an hour; stopping twice is fine."""
    delegation: Delegation = request.app.state.delegation
    customer: Customer = request.state.customer
    ended = delegation.desk.stop(body.session_id, customer.name)
    return StopAnswer(
        session_id=ended.round_id,
        status=session_word(ended.state, begun=ended.next_index > 0),
        message="Session stopped successfully",
        total_batches_generated=delegation.desk.num_proofs(ended.round_id),
    )


def status(request: Request) -> StatusAnswer:
    """Show the caller's sessions of the last hour; everybody's where status is public and no token sent."""
    delegation: Delegation = request.app.state.delegation
    customer: Customer | None = request.state.customer
    in_all = delegation.settings.max_sessions
    views = delegation.desk.views(None if customer is None else customer.name)
    return StatusAnswer(
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


def _token_beside_body(request: Request) -> str | None:
    """Return the token of the header or of the query."""
    header = request.headers.get("authorization")
    if header is not None:
        scheme, _, token = header.partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return token.strip()
    return request.query_params.get("auth_token") or None


async def _read_body(request: Request) -> tuple[bool, str | None]:
    """Read a body; return whether it is a JSON object, and the token in it.

    What is JSON is taken as such, whatever its content type: curl's `-d` says that it is a form.
    """
    try:
        body = await request.json()
    except (ValueError, RecursionError, ClientDisconnect):
        return False, None
    if not isinstance(body, dict):
        return False, None
    # In place: the request has looked at its headers before and keeps that list.
    headers = request.scope["headers"]
    headers[:] = [pair for pair in headers if pair[0] != b"content-type"]
    headers.append((b"content-type", b"application/json"))
    token = body.get("auth_token")
    return True, token if isinstance(token, str) and token else None


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


async def _hand_over(reader: SessionReader, page: Page) -> bool:
    names = page.session_id, page.spec.node_id
    if not await reader.confirm_drain(page.session_id, page.before, page.cursor):
        logger.warning(
            "DELEGATION session %s of node %d: reply cut off, as another one was faster.", *names
        )
        return False
    if page.before == START:
        logger.info("DELEGATION session %s of node %d: first batches handed over.", *names)
    return True
