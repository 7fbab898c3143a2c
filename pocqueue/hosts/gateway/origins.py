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

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from typing_extensions import override

from pocqueue.errors import SettingsError
from pocqueue.web.origin import OriginGuard

_EVERYBODY = "*"


@dataclass(eq=False)
class PageOrigin(OriginGuard):
    """Asks the origins of a setting."""

    allowed: frozenset[str]  #: such as ``https://app.example.com``

    @override
    def is_allowed(self, origin: str) -> bool:
        return bool({origin, _EVERYBODY} & self.allowed)


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
