"""What the routes have in common."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.security import HTTPBearer

from pocqueue.errors import PocqueueError
from pocqueue.hosts.gateway.hub import Hub
from pocqueue.hosts.gateway.limits import Limit
from pocqueue.hosts.gateway.schema import NodeView, node_view
from pocqueue.hosts.records import Node
from pocqueue.hosts.wire import origin_of
from pocqueue.settings import HOSTS_PREFIX
from pocqueue.web.errors import SentenceRoute, address_of


class Missing(PocqueueError, ValueError):
    """A field is not there; its text is the one that older pages know."""

    http_status = 400


class NameNotOwn(PocqueueError):
    """A wallet would sign in to a name of which the gateway does not know that it is its own."""

    http_status = 403

    def __init__(self, host: str) -> None:
        super().__init__(
            f"Host is {host[:100]!r}, and nobody can sign in by a name that this gateway does not know: set "
            f"{HOSTS_PREFIX}PUBLIC_URL to where browsers find it, such as https://hosts.example.com, or use its address."
        )


@dataclass(frozen=True)
class Parts:
    """What the routes work on."""

    hub: Hub
    public_url: str | None  #: of the gateway; None: as it is called

    def url_of(self, request: Request) -> str:
        """Return the gateway's URL as a browser sees it, without a path."""
        if self.public_url is not None:
            return self.public_url.rstrip("/")
        return f"{request.url.scheme}://{request.url.netloc}"

    def signed_url(self, request: Request) -> str:
        """Return the gateway's URL as wallets sign it.

        Raises:
            NameNotOwn: it is called by a name that may be another site's, which would pass the signature on.
        """
        if self.public_url is None and not _is_nobodys(request.headers.get("host", "")):
            raise NameNotOwn(request.headers.get("host", ""))
        return self.url_of(request)

    def is_secure(self, request: Request) -> bool:
        """Say whether a browser reaches the gateway over TLS."""
        return self.url_of(request).startswith("https://")

    async def views(self, nodes: Sequence[Node], earned: dict[str, int]) -> list[NodeView]:
        """Show nodes as everybody may see them."""
        busy = await self.hub.db(self.hub.store.presence.busy, [node.id for node in nodes])
        return [
            node_view(node, status=self.status(node, busy), micro=earned.get(node.id, 0))
            for node in nodes
        ]

    def status(self, node: Node, busy: set[str]) -> str:
        """Return how a node stands, in one word."""
        store = self.hub.store
        return node.status(store.now_ms(), store.offline_ms, busy=node.id in busy)


def _is_nobodys(host: str) -> bool:
    """Say whether no other site can have this host: it is an address, or a name of this machine alone."""
    try:
        name = origin_of(f"//{host}")
        if name == "localhost" or name.endswith(".localhost"):
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def new_router(parts: Parts, *, limit: Limit | None = Limit.REQUESTS) -> APIRouter:
    """Make a router whose errors are a sentence.

    Args:
        limit: of an address, against which its requests count; None: none.
    """

    async def count(request: Request) -> None:
        if limit is not None:
            await parts.hub.limits.count_address(limit, address_of(request.scope))

    return APIRouter(route_class=SentenceRoute, dependencies=[Depends(count)])


#: For the OpenAPI document; the door does the work.
ADMIN = [
    Depends(
        HTTPBearer(
            scheme_name="admin",
            description="The admin's token, as `Authorization: Bearer TOKEN`.",
            auto_error=False,
        )
    )
]

Cursor = Annotated[
    str | None,
    Query(max_length=100, description="Of the page, from `X-Next-Cursor` of the one before."),
]
PageSize = Annotated[int, Query(ge=1, le=500)]
Wallet = Annotated[str, Query(max_length=10_000_000, description="Address of a Solana wallet.")]
NEXT_CURSOR = "X-Next-Cursor"
