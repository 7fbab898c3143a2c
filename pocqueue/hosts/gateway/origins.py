"""Which web pages may use the gateway: its own, and those of the origins in a setting.

Browsers name the page that asks in `Origin`; agents and commands send none. A page of another site is refused where it
could change something (any method but GET, HEAD and OPTIONS) or open a WebSocket; what it could read, its browser keeps
from it, as it gets no CORS header. Requests in a page of an allowed origin may come with the session's cookie, unless
the setting is ``*``: then everybody's page may ask, and nobody's has a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from pocqueue.errors import SettingsError
from pocqueue.web.errors import answer

_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})
_EVERYBODY = "*"


@dataclass(eq=False)
class PageOrigin:
    """ASGI middleware that answers 403 to what a page of another site must not do."""

    app: ASGIApp  #: what comes behind
    allowed: frozenset[str]  #: origins, such as ``https://app.example.com``
    setting: str  #: the variable that names them, for messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] in {"http", "websocket"} and (why := self._wrong(scope)):
            if scope["type"] == "websocket":
                await receive()  # the connect event, which has to be read first
            await answer(403, why, scope)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _wrong(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        origin = headers.get("origin", "").lower()
        if not origin or scope.get("method") in _HARMLESS:
            return None
        host = headers.get("host", "").lower()
        if {origin, _EVERYBODY} & self.allowed or origin in {f"http://{host}", f"https://{host}"}:
            return None
        return (
            f"Origin is {origin[:100]!r}, a web page of another site; allowed: the pages of this gateway, and "
            f"of the origins in {self.setting}."
        )


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
