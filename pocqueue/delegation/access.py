"""Access to a delegation: each customer has a token of its own.

Clients send the token as the header ``Authorization: Bearer TOKEN``. Legacy clients send it as
``auth_token``, in the query or in the JSON body; `BodyToken` reads it there before the door asks for it.
"""

from __future__ import annotations

import asyncio
import json

import redis.asyncio
from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocqueue.delegation.customers import Customer, Customers
from pocqueue.rounds.connection import store_errors
from pocqueue.rounds.store import Keys
from pocqueue.web.door import Access, Asks, bearer_token
from pocqueue.web.failures import WINDOW_S, FailureLimit

PREFIX = "/api/v1/delegation"
#: Wrong tokens that are counted at the same time.
_TURNS = 8
#: Health and documentation are for everybody.
_PUBLIC = frozenset(
    {"/health", f"{PREFIX}/health", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
)
_STATUS = frozenset({"/status", f"{PREFIX}/status"})


def customer_access(customers: Customers, max_failures: int) -> Access[Customer]:
    """Return what judges the tokens of customers.

    Args:
        max_failures: wrong tokens from one address in a minute that are still answered as such.
    """
    return Access(
        customers.find,
        FailureLimit(max_failures),
        if_missing="Invalid auth token: there is none; send it as `Authorization: Bearer TOKEN` or as "
        "`auth_token`.",
        if_wrong="Invalid auth token: check that DELEGATION_AUTH_TOKEN is the same on both nodes.",
    )


def asks(scope: Scope, *, public_status: bool) -> Asks:
    """Say what is asked for at a path.

    Args:
        public_status: the status needs no token.
    """
    if scope["path"] in _PUBLIC:
        return Asks.NOTHING
    return Asks.IF_SENT if public_status and scope["path"] in _STATUS else Asks.TOKEN


def token_of(scope: Scope) -> str | None:
    """Return the token of a request: of its header, its query or its body."""
    return (
        bearer_token(scope)
        or QueryParams(scope["query_string"]).get("auth_token")
        or scope.get("body_token")
    )


class RedisFailures:
    """The wrong tokens that all processes of the service have seen (a `SharedFailures`).

    Args:
        client: Redis.
        url: of that Redis, for messages.
    """

    def __init__(self, client: redis.asyncio.Redis, url: str) -> None:
        self._client = client
        self._url = url
        # Of the connections that sessions are read by, guesses get a few.
        self._turns = asyncio.Semaphore(_TURNS)

    async def count(self, address: str) -> tuple[int, float]:
        """Count one more; see `SharedFailures`."""
        key = f"{Keys.AUTH_FAILURES}:{address}"
        async with self._turns:
            with store_errors(self._url):
                async with self._client.pipeline(transaction=True) as pipe:
                    # First, so that no counter is ever without an end.
                    pipe.set(key, 0, ex=WINDOW_S, nx=True)
                    pipe.incr(key)
                    pipe.pttl(key)
                    pipe.hincrby(Keys.METRICS, "auth_failures", 1)
                    _, count, left_ms, _ = await pipe.execute()
        return int(count), max(int(left_ms), 1) / 1000


class BodyToken:
    """ASGI middleware that reads the body of a POST for the token in it: ``scope["body_token"]``.

    A JSON object is passed on as such whatever its content type: curl's `-d` says that it is a form.
    ``scope["bad_body"]`` is True for any other body, for the routes to refuse once the token is judged.

    Args:
        app: what comes behind; the door first.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        content = await _read(receive)
        body = _parse(content)
        if body is None:
            scope["bad_body"] = True
        else:
            # In the scope at hand: what stands around this reads from it, too.
            scope["headers"] = [
                *(pair for pair in scope["headers"] if pair[0] != b"content-type"),
                (b"content-type", b"application/json"),
            ]
            token = body.get("auth_token")
            scope["body_token"] = token if isinstance(token, str) and token else None
        is_passed = False

        async def again() -> Message:
            nonlocal is_passed
            if is_passed:
                return await receive()
            is_passed = True
            return {"type": "http.request", "body": content, "more_body": False}

        await self._app(scope, again, send)


async def _read(receive: Receive) -> bytes:
    """Return a whole body, or the part that came before the client went away."""
    parts = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _parse(content: bytes) -> dict[str, object] | None:
    """Return a JSON object; None: it is none."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None
