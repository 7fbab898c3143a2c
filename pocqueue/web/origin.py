"""Keeps web pages of others from a service that asks for no token.

A browser on the machine of such a service, or in its network, sends it whatever a page of a stranger asks for. Promises:

- What changes something (any method but GET, HEAD and OPTIONS) and a WebSocket are refused if they come from a page of
  another origin: browsers say so in `Origin`, and other clients send none.
- A request is refused if its `Host` is a name that a stranger could have: by DNS rebinding a page's own name can be
  made to lead here, and the page is then of this very origin. Addresses, `localhost`, names without a dot (of a
  machine in the same network, or a container) and the names of the setting cannot.
"""

from __future__ import annotations

import ipaddress
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override

from pocqueue.web.errors import answer

_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(eq=False)
class OriginGuard(ABC):
    """ASGI middleware that answers 403 to what a web page of another site must not do."""

    app: ASGIApp  #: what comes behind
    setting: str  #: the variable that names what is allowed beside the service's own, for messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] in {"http", "websocket"} and (why := self.refusal(scope)):
            if scope["type"] == "websocket":
                await receive()  # the connect event, which has to be read first
            await answer(403, why, scope)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def refusal(self, scope: Scope) -> str | None:
        """Say why a request must not be; None: it may."""
        headers = Headers(scope=scope)
        if "origin" not in headers or scope.get("method") in _HARMLESS:
            return None
        origin = headers["origin"].lower()
        if self.is_allowed(origin) or is_own(headers):
            return None
        return (
            f"Origin is {origin[:100]!r}, a web page of another site; allowed: the pages of this service, and "
            f"those that {self.setting} names."
        )

    @abstractmethod
    def is_allowed(self, origin: str) -> bool:
        """Say whether the pages of another origin, in small letters, may use the service."""


@dataclass(eq=False)
class OwnOrigin(OriginGuard):
    """The same, and for names that a stranger could have."""

    own: Collection[str]  #: host names of the service
    allowed: Collection[str]  #: further ones, whose pages may use it as well

    @override
    def refusal(self, scope: Scope) -> str | None:
        host = Headers(scope=scope).get("host", "").lower()
        if host and not self._is_ours(_name(f"//{host}")):
            return (
                f"Host is {host[:100]!r}; allowed: an address, localhost, a name without a dot, or one of "
                f"{self.setting}."
            )
        return super().refusal(scope)

    @override
    def is_allowed(self, origin: str) -> bool:
        return _name(origin) in self.allowed

    def _is_ours(self, name: str) -> bool:
        if name in {*self.own, *self.allowed} or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return bool(name) and "." not in name
        return True


def is_own(headers: Headers) -> bool:
    """Say whether `Origin` is the service itself, as the request calls it."""
    host = headers.get("host", "").lower()
    return headers.get("origin", "").lower() in {f"http://{host}", f"https://{host}"}


def host_names(text: str | None) -> frozenset[str]:
    """Return host names that stand in a setting, with commas between them."""
    names = (name.strip().rstrip(".").lower() for name in (text or "").split(","))
    return frozenset(name for name in names if name)


def _name(url: str) -> str:
    """Return the host of a URL in small letters; empty: it has none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""
