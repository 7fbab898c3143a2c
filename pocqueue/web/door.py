"""The door of a service: only requests with a token get in, over HTTP and WebSocket alike.

Promises:
- The token is checked before the routes see anything of a request (only its size and its time are limited
  before that), so that a client without one learns nothing of the rest. Every path is behind the door unless the service says otherwise.
- Tokens are kept and compared as SHA-256 digests, all of them each time: how long it takes says nothing.
- A token is in no log line and in no error message.
- A right token gets in, whatever others at the same address have tried.
- A missing token is refused and not counted: it is no guess. Wrong ones are counted, see `failure_limit`.

A service gives `Access` its rule for tokens (a function from a token to its owner) and puts `Door`
before its application; its routes find the caller as ``request.user`` or ``websocket.user``. A protocol
that sends the token in its first message, as some WebSockets do, calls `Access.admit` itself.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pocqueue.errors import InvalidToken, PocqueueError
from pocqueue.web.errors import address_of, refusal
from pocqueue.web.failure_limit import FailureLimit

Caller = TypeVar("Caller")


class Asks(Enum):
    """What a door asks for at a path."""

    NOTHING = "nothing"  #: a token is not looked at; there is no caller
    IF_SENT = "if sent"  #: without a token the caller is None; a wrong one is refused
    TOKEN = "token"  # noqa: S105 - a right one


@dataclass(eq=False)
class Access(Generic[Caller]):
    """Judges tokens."""

    find: Callable[[str], Caller | None]  #: returns the owner of a token; None: it has none
    limit: FailureLimit  #: of wrong tokens
    _: KW_ONLY
    #: The sentence for requests without one.
    if_missing: str = "Invalid auth token: there is none; send it as `Authorization: Bearer TOKEN`."
    if_wrong: str = "Invalid auth token."  #: the sentence for a wrong one

    async def admit(self, address: str, token: str | None) -> Caller:
        """Return the owner of a token.

        Args:
            address: the client's, an IP address or any other text.
            token: as the client sent it; None or empty: it sent none.

        Raises:
            InvalidToken: it is missing or wrong.
            TooManyFailures: too many wrong ones came from there.
        """
        if not token:
            raise InvalidToken(self.if_missing)
        caller = self.find(token)
        if caller is None:
            await self.limit.count(address)
            raise InvalidToken(self.if_wrong)
        return caller


def bearer_token(scope: Scope) -> str | None:
    """Return the token of the header ``Authorization: Bearer TOKEN``; None: there is none."""
    scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


@dataclass(eq=False)
class Door:
    """ASGI middleware that sets ``scope["user"]``, or refuses the request."""

    app: ASGIApp  #: what is behind it
    access: Access[Any]  #: judges the tokens
    #: What is asked for, by request; paths that do not exist are no exception.
    asks: Callable[[Scope], Asks] = lambda _scope: Asks.TOKEN
    token: Callable[[Scope], str | None] = bearer_token  #: finds the token of a request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] in {"http", "websocket"}:
            try:
                scope["user"] = await self._caller(scope)
            except PocqueueError as exc:
                if scope["type"] == "websocket":
                    await receive()  # the connect event, which has to be read first
                await refusal(exc, scope)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _caller(self, scope: Scope) -> Any:
        asks = self.asks(scope)
        if asks is Asks.NOTHING:
            return None
        token = self.token(scope)
        if token is None and asks is Asks.IF_SENT:
            return None
        return await self.access.admit(address_of(scope), token)


def digest(token: str) -> str:
    """Return the SHA-256 of a token, 64 hex digits."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def find_token(token: str, digests: Sequence[str]) -> int | None:
    """Return which of the digests is that of a token; None: none of them."""
    given = digest(token)
    # All of them, always: the time says nothing about which one was close.
    matches = [secrets.compare_digest(given, known) for known in digests]
    return matches.index(True) if True in matches else None
