"""Which web pages may use the gateway: its own, and those of the origins in a setting.

Browsers name the page that asks in `Origin`; agents and commands send none. A page of another site is refused where it
could change something (any method but GET, HEAD and OPTIONS) or open a WebSocket; what it could read, its browser keeps
from it, as it gets no CORS header. Requests in a page of an allowed origin may come with the session's cookie, those
that ``*`` alone lets in without it: then everybody's page may ask, and none but the gateway's own has a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override

from pocqueue.errors import SettingsError
from pocqueue.web.origin import OriginGuard, is_own

_EVERYBODY = "*"


@dataclass(eq=False)
class PageOrigin(OriginGuard):
    """Asks the origins of a setting."""

    allowed: frozenset[str]  #: such as ``https://app.example.com``

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it; what comes from anybody's page has no session, and gets none."""
        if scope["type"] in {"http", "websocket"} and self._is_anybodys(Headers(scope=scope)):
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
            send = _without_cookies(send)
        await super().__call__(scope, receive, send)

    def _is_anybodys(self, headers: Headers) -> bool:
        """Say whether a request comes from a page that ``*`` alone lets in.

        SameSite keeps the cookie from other sites alone: another port of this machine is the same site.
        """
        is_listed = headers.get("origin", "").lower() in self.allowed
        return "origin" in headers and not is_listed and not is_own(headers)

    @override
    def is_allowed(self, origin: str) -> bool:
        return bool({origin, _EVERYBODY} & self.allowed)


def _without_cookies(send: Send) -> Send:
    """Return what sends an answer that neither starts nor ends a session."""

    async def send_it(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [pair for pair in message["headers"] if pair[0] != b"set-cookie"]
            message["headers"] = kept
        await send(message)

    return send_it


def page_rules(origins: Sequence[str], setting: str) -> list[Middleware]:
    """Return the middleware that lets these pages in, and no other ones.

    Args:
        origins: of the setting and of the gateway's public URL.
        setting: its variable.

    Raises:
        SettingsError: one of them is no origin.
    """
    allowed = frozenset(origin.strip().lower().rstrip("/") for origin in origins if origin.strip())
    for origin in allowed - {_EVERYBODY}:
        url = urlsplit(origin)
        if url.scheme not in {"http", "https"} or not url.netloc or url.path or url.query:
            raise SettingsError(
                f"{setting} has {origin[:100]!r} in it; allowed: origins such as https://app.example.com, with "
                "commas between them, or *."
            )
    everybody = _EVERYBODY in allowed
    return [
        Middleware(PageOrigin, allowed=allowed, setting=setting),
        Middleware(
            CORSMiddleware,
            allow_origins=[_EVERYBODY] if everybody else sorted(allowed),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            allow_credentials=not everybody,
            max_age=600,
        ),
    ]
