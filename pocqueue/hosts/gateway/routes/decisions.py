"""Routes by which an owner, signed in, or an admin decides about nodes and tokens."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from fastapi import APIRouter, Request

from pocqueue.hosts.errors import NoNewKey, UnknownNode
from pocqueue.hosts.gateway.access import actor, owner
from pocqueue.hosts.gateway.messenger import What
from pocqueue.hosts.gateway.routes.parts import Parts, new_router
from pocqueue.hosts.gateway.schema import OkAnswer, TokenView, errors, iso
from pocqueue.hosts.records import NodeState


class Decision(StrEnum):
    """What can be decided about a node."""

    DRAIN = "drain"  #: let it finish what it has and give it nothing new
    RESUME = "resume"  #: give it jobs again
    REVOKE = "revoke"  #: keep it out for good
    ADOPT = "adopt"  #: it is the owner's: its pay is held no more
    ROTATE_KEY = "rotate-key"  #: it is to make itself a new key


_STATES: Final[Mapping[Decision, NodeState]] = {
    Decision.DRAIN: "draining",
    Decision.RESUME: "active",
    Decision.REVOKE: "revoked",
}

#: What the node's own gateway tells it.
_TOLD: Final[Mapping[Decision, What]] = {
    Decision.DRAIN: What.DRAIN,
    Decision.REVOKE: What.END,
    Decision.ROTATE_KEY: What.ROTATE,
}


def decision_router(parts: Parts) -> APIRouter:
    """Make the routes."""
    hub, router = parts.hub, new_router(parts)

    @router.post("/api/nodes/{node_id}/drain", summary="Drain a node", responses=errors(404))
    async def drain(node_id: str, request: Request) -> OkAnswer:
        """Let a node finish what it has and give it nothing new; for its owner or an admin."""
        await decide(parts, request, node_id, Decision.DRAIN)
        return OkAnswer()

    @router.post(
        "/api/nodes/{node_id}/resume", summary="Take a node back", responses=errors(404, 409)
    )
    async def take_back(node_id: str, request: Request) -> OkAnswer:
        """Give a node that was drained jobs again; for an admin, and for its owner if no admin has drained it."""
        await decide(parts, request, node_id, Decision.RESUME)
        return OkAnswer()

    @router.post("/api/nodes/{node_id}/revoke", summary="Revoke a node", responses=errors(404))
    async def revoke(node_id: str, request: Request) -> OkAnswer:
        """Keep a node out for good; for its owner or an admin. What it has earned stays."""
        await decide(parts, request, node_id, Decision.REVOKE)
        return OkAnswer()

    @router.post(
        "/api/nodes/{node_id}/rotate-key",
        summary="Have a node make a new key",
        responses=errors(404, 409),
    )
    async def rotate_key(node_id: str, request: Request) -> OkAnswer:
        """Ask a node that is connected to make itself a new key, after which the old one is of no use.

        For its owner or an admin.
        """
        await decide(parts, request, node_id, Decision.ROTATE_KEY)
        return OkAnswer()

    @router.post("/api/nodes/{node_id}/adopt", summary="Adopt a node", responses=errors(404))
    async def adopt(node_id: str, request: Request) -> OkAnswer:
        """Say that a node which joined with an unproven token is its wallet's own; for its owner or an admin.

        What it has earned is held no more, and it gets more than its test job.
        """
        await decide(parts, request, node_id, Decision.ADOPT)
        return OkAnswer()

    @router.get("/api/tokens", summary="Tokens that wait for a machine", responses=errors())
    async def tokens(request: Request) -> list[TokenView]:
        """List the tokens of the session's wallet that can still be used, newest first."""
        wallet = await owner(request, hub)
        return [
            TokenView(
                id=one.id,
                created_at=iso(one.created_ms),
                expires_at=iso(one.expires_ms),
                proven=one.proven,
            )
            for one in await hub.db(hub.store.tokens.open, wallet)
        ]

    @router.post("/api/tokens/{token_id}/revoke", summary="Revoke a token", responses=errors(404))
    async def revoke_token(token_id: str, request: Request) -> OkAnswer:
        """Make a token of the session's wallet worthless."""
        await end_token(parts, request, token_id)
        return OkAnswer()

    return router


async def decide(parts: Parts, request: Request, node_id: str, what: Decision) -> None:
    """Do what somebody has decided about a node.

    Raises:
        InvalidToken: neither an admin nor an owner asks.
        UnknownNode: there is none, it is not his, or it is out for good.
        NodeDrained: an admin has drained it.
        NoNewKey: it is not connected, or has no key.
    """
    hub = parts.hub
    nodes = hub.store.nodes
    who, wallet = await actor(request, hub)
    if what is Decision.ADOPT:
        node = await hub.db(nodes.adopt, node_id, actor=who, wallet=wallet)
    elif what is Decision.ROTATE_KEY:
        node = await hub.db(nodes.get, node_id)
        if wallet not in {None, node.wallet} or node.state in {"revoked", "banned"}:
            raise UnknownNode
        if node.key is None or node.relay is None:
            raise NoNewKey(has_key=node.key is not None)
    else:
        node = await hub.db(nodes.set_state, node_id, _STATES[what], actor=who, wallet=wallet)
    if what in _TOLD and node.relay is not None:
        hub.messenger.tell(node.relay, _TOLD[what], node.id)
    if what not in {Decision.DRAIN, Decision.ROTATE_KEY}:
        hub.messenger.look()
    hub.changes.tell(node.wallet)


async def end_token(parts: Parts, request: Request, token_id: str) -> None:
    """Make a token of the session's wallet worthless.

    Raises:
        WalletProofError: there is no session.
        UnknownToken: it has no such token that can be used.
    """
    wallet = await owner(request, parts.hub)
    await parts.hub.db(parts.hub.store.tokens.revoke, token_id, wallet=wallet)
    parts.hub.changes.tell(wallet)
