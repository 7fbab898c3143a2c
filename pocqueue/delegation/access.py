"""Access to a delegation: each customer has a token of its own.

Clients send the token as the header ``Authorization: Bearer TOKEN``. Legacy clients send it as
``auth_token``, in the query or in the JSON body; `BodyToken` reads it there before the door asks for it.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import redis.asyncio
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocqueue.errors import InvalidToken
from pocqueue.rounds.refusals import store_errors
from pocqueue.rounds.store import Keys
from pocqueue.web.door import Asks, bearer_token
from pocqueue.web.failure_limit import WINDOW_S

PREFIX = "/api/v1/delegation"
#: Wrong tokens that are counted at the same time.
_TURNS = 8
#: Health and documentation are for everybody.
_PUBLIC = frozenset(
    {"/health", f"{PREFIX}/health", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
)
_STATUS = frozenset({"/status", f"{PREFIX}/status"})


def asks(scope: Scope, *, public_status: bool) -> Asks:
    """Say what is asked for at a path.

    Args:
        public_status: the status needs no token.
    """
    if scope["path"] in _PUBLIC:
        return Asks.NOTHING
    return Asks.IF_SENT if public_status and scope["path"] in _STATUS else Asks.TOKEN


def token_of(scope: Scope) -> str | None:
    """Return the token of a request: of its header, its query or its body.

    Raises:
        InvalidToken: it could be in the body only, and that cannot be read.
    """
    token = bearer_token(scope) or QueryParams(scope["query_string"]).get("auth_token")
    if token is None and "body_token" not in scope and scope["method"] == "POST":
        raise InvalidToken(
            "Invalid auth token: there is none in the header or the query, and the body, which may have one, is "
            "not a JSON object."
        )
    return token or scope.get("body_token")


@dataclass(eq=False)
class RedisFailures:
    """The wrong tokens that all processes of the service have seen."""

    client: redis.asyncio.Redis
    url: str  #: of that Redis, for messages

    def __post_init__(self) -> None:
        # Of the connections that sessions are read by, guesses get a few.
        self._turns = asyncio.Semaphore(_TURNS)

    async def count(self, address: str) -> tuple[int, float]:
        """Count one more; see `FailureLimit.shared`."""
        key = f"{Keys.AUTH_FAILURES}:{address}"
        async with self._turns:
            with store_errors(self.url):
                async with self.client.pipeline(transaction=True) as pipe:
                    # First, so that no counter is ever without an end.
                    pipe.set(key, 0, ex=WINDOW_S, nx=True)
                    pipe.incr(key)
                    pipe.pttl(key)
                    pipe.hincrby(Keys.METRICS, "auth_failures", 1)
                    _, count, left_ms, _ = await pipe.execute()
        return int(count), max(int(left_ms), 1) / 1000


@dataclass(eq=False)
class BodyToken:
    """ASGI middleware that reads the body of a POST for the token in it: ``scope["body_token"]``.

    It is passed on as JSON whatever its content type: curl's `-d` says that it is a form. What is no JSON
    object is passed on as no JSON, for the routes to refuse once the token is judged: never shown, as it may
    have a token in it.
    """

    app: ASGIApp  #: what comes behind; the door first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        try:
            content = await Request(scope, receive).body()
        except ClientDisconnect:
            return  # nobody waits for an answer
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            body = None
        # In the scope at hand: what stands around this reads from it, too.
        scope["headers"] = [
            *(pair for pair in scope["headers"] if pair[0] != b"content-type"),
            (b"content-type", b"application/json"),
        ]
        if isinstance(body, dict):
            token = body.get("auth_token")
            scope["body_token"] = token if isinstance(token, str) and token else None
        else:
            content = b"?"
        is_passed = False

        async def again() -> Message:
            nonlocal is_passed
            if is_passed:
                return await receive()
            is_passed = True
            return {"type": "http.request", "body": content, "more_body": False}

        await self.app(scope, again, send)
