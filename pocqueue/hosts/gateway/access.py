"""Who asks the REST routes: an admin with a token, an owner with a session, or anybody.

The admin's token is checked at the door. An owner's session is a cookie that pages of other sites cannot send
(SameSite=Strict, and `origins`), and that scripts cannot read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fastapi import Request, Response
from pydantic import SecretStr
from starlette.types import Scope

from pocqueue.errors import InvalidToken
from pocqueue.hosts.errors import WalletProofError
from pocqueue.hosts.gateway.hub import Hub
from pocqueue.hosts.store.owners import SESSION_MS
from pocqueue.settings import HostsSettings
from pocqueue.web.door import Access, Asks, digest, find_token
from pocqueue.web.failure_limit import FailureLimit

COOKIE: Final = "pocqueue_session"
#: A request that may come with the token of a node is for its own route to judge.
_OF_NODES: Final = re.compile(
    r"/api/(jobs/(report|available|[^/]+/(result|failure))|nodes/(register|heartbeat))"
)
_OF_ADMINS: Final = frozenset({"/api/nodes", "/api/jobs", "/api/gpu/hosts/all", "/metrics"})


@dataclass(frozen=True)
class Admin:
    """Whoever has the admin's token."""


def admin_access(token: SecretStr | None, failures: FailureLimit) -> Access[Admin]:
    """Return the rule for the admin's token; None: there is none, and nobody gets in."""
    known = [] if token is None else [digest(token.get_secret_value())]
    what = HostsSettings.variable("admin_token")
    if_missing = f"This is for admins: send the token of {what} as `Authorization: Bearer TOKEN`."
    if token is None:
        if_missing = f"This is for admins, and {what} is not set on this gateway."
    return Access(
        lambda given: Admin() if find_token(given, known) is not None else None,
        failures,
        if_missing=if_missing,
        if_wrong=f"Invalid auth token: it is not that of {what}.",
    )


def asks(scope: Scope) -> Asks:
    """Say what the door asks for at a path."""
    path = scope["path"]
    if scope["type"] == "websocket" or _OF_NODES.fullmatch(path):
        return Asks.NOTHING
    return Asks.TOKEN if path in _OF_ADMINS else Asks.IF_SENT


def is_admin(request: Request) -> bool:
    """Say whether a request has the admin's token."""
    return isinstance(request.user, Admin)


async def wallet_of(request: Request, hub: Hub) -> str | None:
    """Return whose session a request is in; None: nobody's."""
    secret = request.cookies.get(COOKIE)
    return None if not secret else await hub.db(hub.store.owners.wallet_of_session, secret)


async def owner(request: Request, hub: Hub) -> str:
    """Return whose session a request is in.

    Raises:
        WalletProofError: nobody's.
    """
    wallet = await wallet_of(request, hub)
    if wallet is None:
        raise WalletProofError(
            "This is for a wallet that has signed in: sign in on the page first."
        )
    return wallet


async def actor(request: Request, hub: Hub) -> tuple[str, str | None]:
    """Return who changes something, and whose it has to be: an admin may change anybody's (None).

    Raises:
        InvalidToken: neither an admin nor an owner asks.
    """
    if is_admin(request):
        return "admin", None
    wallet = await wallet_of(request, hub)
    if wallet is None:
        raise InvalidToken("This is for the node's owner, signed in, or for an admin with a token.")
    return wallet, wallet


def set_session(response: Response, secret: str, *, secure: bool) -> None:
    """Give a browser its session."""
    response.set_cookie(
        COOKIE,
        secret,
        max_age=SESSION_MS // 1000,
        path="/",
        secure=secure,
        httponly=True,
        samesite="strict",
    )


def end_session(response: Response, *, secure: bool) -> None:
    """Take a browser's session away."""
    response.delete_cookie(COOKIE, path="/", secure=secure, httponly=True, samesite="strict")
