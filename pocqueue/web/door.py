"""The door of a service: only requests with a token get in, over HTTP and WebSocket alike.

Promises:
- The token is checked before the routes see anything of a request (only its size and its time are limited
  before that), so that a client without one learns nothing of the rest. Every path is behind the door unless the service says otherwise.
- Tokens are kept and compared as SHA-256 digests, all of them each time: how long it takes says nothing.
- A token is in no log line and in no error message.
- A missing token is refused and not counted: it is no guess. Wrong ones are counted, see `failure_limit`.

A service gives `Access` its rule for tokens (a function from a token to its owner) and puts `Door`
before its application; its routes find the caller as ``request.user`` or ``websocket.user``. A protocol
that sends the token in its first message, as some WebSockets do, calls `Access.admit` itself.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Generic, TypeVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pocqueue.errors import InvalidToken, PocqueueError
from pocqueue.web.errors import refusal
from pocqueue.web.failure_limit import FailureLimit

Caller = TypeVar("Caller")

#: A WebSocket that is refused by a server that cannot answer it with a status (RFC 6455: policy violation).
_POLICY_VIOLATION = 1008
#: A close frame has no room for more.
_MAX_REASON_BYTES = 123


class Asks(Enum):
    """What a door asks for at a path."""

    NOTHING = "nothing"  #: a token is not looked at; there is no caller
    IF_SENT = "if sent"  #: without a token the caller is None; a wrong one is refused
    TOKEN = "token"  # noqa: S105 - a right one


class Access(Generic[Caller]):
    """Judges tokens.

    Args:
        find: returns the owner of a token; None: it has none.
        limit: of wrong tokens.
        if_missing: the sentence for requests without one.
        if_wrong: the sentence for a wrong one.
    """

    def __init__(
        self,
        find: Callable[[str], Caller | None],
        limit: FailureLimit,
        *,
        if_missing: str = "Invalid auth token: there is none; send it as `Authorization: Bearer TOKEN`.",
        if_wrong: str = "Invalid auth token.",
    ) -> None:
        self.limit = limit
        self._find = find
        self._if_missing = if_missing
        self._if_wrong = if_wrong

    async def admit(self, address: str, token: str | None) -> Caller:
        """Return the owner of a token.

        Args:
            address: the client's, an IP address or any other text.
            token: as the client sent it; None or empty: it sent none.

        Raises:
            InvalidToken: it is missing or wrong.
            TooManyFailures: too many wrong ones came from there.
        """
        self.limit.check(address)
        if not token:
            raise InvalidToken(self._if_missing)
        caller = self._find(token)
        if caller is None:
            await self.limit.count(address)
            raise InvalidToken(self._if_wrong)
        return caller


def bearer_token(scope: Scope) -> str | None:
    """Return the token of the header ``Authorization: Bearer TOKEN``; None: there is none."""
    scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def ask_everywhere(_scope: Scope) -> Asks:
    """Ask for a token at every path."""
    return Asks.TOKEN


class Door:
    """ASGI middleware that sets ``scope["user"]``, or refuses the request.

    Args:
        app: what is behind it.
        access: judges the tokens.
        asks: what is asked for, by request; paths that do not exist are no exception.
        token: finds the token of a request.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access[Any],
        asks: Callable[[Scope], Asks] = ask_everywhere,
        token: Callable[[Scope], str | None] = bearer_token,
    ) -> None:
        self._app = app
        self._access = access
        self._asks = asks
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] in {"http", "websocket"}:
            try:
                scope["user"] = await self._caller(scope)
            except PocqueueError as exc:
                await _refuse(exc, scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _caller(self, scope: Scope) -> Any:
        asks = self._asks(scope)
        if asks is Asks.NOTHING:
            return None
        token = self._token(scope)
        if token is None and asks is Asks.IF_SENT:
            return None
        client = scope.get("client")
        return await self._access.admit("" if client is None else client[0], token)


async def _refuse(exc: PocqueueError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()  # the connect event, which has to be read first
        if "websocket.http.response" not in scope.get("extensions", {}):
            reason = str(exc).encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": reason})
            return
    await refusal(exc)(scope, receive, send)


def digest(token: str) -> str:
    """Return the SHA-256 of a token, 64 hex digits."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def find_token(token: str, digests: Sequence[str]) -> int | None:
    """Return which of the digests is that of a token; None: none of them."""
    given = digest(token)
    # All of them, always: the time says nothing about which one was close.
    matches = [secrets.compare_digest(given, known) for known in digests]
    return matches.index(True) if True in matches else None
