"""Routes of owners: tokens for their machines, what these do and earn, and signing in."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pocqueue.hosts import wallets
from pocqueue.hosts.errors import UnknownJob, WalletProofError
from pocqueue.hosts.gateway.access import (
    COOKIE,
    end_session,
    is_admin,
    owner,
    set_session,
    wallet_of,
)
from pocqueue.hosts.gateway.hub import Hub
from pocqueue.hosts.gateway.limits import Limit
from pocqueue.hosts.gateway.routes.parts import (
    NEXT_CURSOR,
    Cursor,
    Missing,
    PageSize,
    Parts,
    Wallet,
    new_router,
)
from pocqueue.hosts.gateway.schema import (
    ChallengeAnswer,
    EarningsAnswer,
    JobView,
    LogAnswer,
    NodeView,
    SessionAnswer,
    SignInBody,
    TokenAnswer,
    TokenBody,
    WalletBody,
    earning_view,
    errors,
    hypers,
    iso,
    node_view,
    turn_view,
)
from pocqueue.web.errors import address_of


def owner_router(parts: Parts, *, require_proof: bool) -> APIRouter:
    """Make the routes.

    Args:
        require_proof: tokens are for wallets that have signed in.
    """
    hub, router = parts.hub, new_router(parts)
    store = hub.store

    @router.post(
        "/api/nodes/issue-token",
        summary="Get a token for a machine",
        responses=errors(400),
    )
    async def issue_token(body: TokenBody, request: Request) -> TokenAnswer:
        """Give a wallet a token, good for one machine. Without a signature or a session it is unproven.

        The node of an unproven token does a test job, and its pay is held until the wallet signs in.
        """
        return await issue(parts, request, body, require_proof=require_proof)

    @router.get(
        "/api/nodes/mine",
        summary="Nodes of a wallet",
        responses=errors(400),
        response_model_exclude_none=True,
    )
    async def my_nodes(request: Request, wallet: Wallet = "") -> list[NodeView]:
        """List a wallet's nodes, newest first; in a session of that wallet with all that is known of them."""
        if not wallet:
            raise Missing("wallet parameter is required")
        wallets.public_key(wallet)
        nodes = await hub.db(store.nodes.of_wallet, wallet)
        earned = await hub.db(store.ledger.earned_by_node, wallet)
        if wallet != await wallet_of(request, hub):
            return await parts.views(nodes, earned)
        busy = await hub.db(store.presence.busy, [node.id for node in nodes])
        found = []
        for node in nodes:
            test = await hub.db(store.health.self_test, node.id)
            rows = [] if test is None else [row for row in test.rows if row.get("state") != "pass"]
            view = node_view(
                node,
                status=parts.status(node, busy),
                micro=earned.get(node.id, 0),
                is_owner=True,
                self_test=rows,
            )
            found.append(view)
        return found

    @router.get("/api/jobs/mine", summary="Jobs of a wallet's nodes", responses=errors(400))
    async def my_jobs(
        response: Response, wallet: Wallet = "", cursor: Cursor = None
    ) -> list[JobView]:
        """List what a wallet's nodes did and do, newest first, 50 a page."""
        if not wallet:
            raise Missing("wallet parameter is required")
        wallets.public_key(wallet)
        turns, following = await hub.db(store.jobs.of_wallet, wallet, cursor=cursor, limit=50)
        if following is not None:
            response.headers[NEXT_CURSOR] = following
        return [turn_view(turn) for turn in turns]

    @router.get("/api/earnings", summary="What a wallet has earned", responses=errors())
    async def earnings(
        request: Request, response: Response, cursor: Cursor = None, limit: PageSize = 50
    ) -> EarningsAnswer:
        """Say what the wallet of the session has earned, with the rows of the ledger, newest first."""
        wallet = await owner(request, hub)
        balance = await hub.db(store.ledger.balance, wallet)
        before = int(cursor) if cursor and cursor.isascii() and cursor.isdigit() else None
        rows = await hub.db(
            store.overview.earnings, wallet, before=before and min(before, 2**62), limit=limit
        )
        if len(rows) == limit:
            response.headers[NEXT_CURSOR] = str(rows[-1].entry.id)
        return EarningsAnswer(
            earned=hypers(balance.earned),
            held=hypers(balance.held),
            paid=hypers(balance.paid),
            payable=hypers(balance.payable),
            rows=[earning_view(row) for row in rows],
        )

    @router.post("/api/session/challenge", summary="Get a text to sign", responses=errors(400))
    async def challenge(body: WalletBody, request: Request) -> ChallengeAnswer:
        """Make a text that the wallet signs; it is good for five minutes, once."""
        if not body.wallet:
            raise Missing("wallet address is required")
        await hub.limits.count_address(Limit.CHALLENGES, address_of(request.scope))
        made = await hub.db(store.owners.challenge, body.wallet, parts.signed_url(request))
        return ChallengeAnswer(nonce=made.nonce, message=made.text, expires_at=iso(made.expires_ms))

    @router.post("/api/session", summary="Sign in", responses=errors(400))
    async def sign_in(body: SignInBody, request: Request, response: Response) -> SessionAnswer:
        """Start a session, with a cookie, for the wallet that has signed its text."""
        if not body.wallet:
            raise Missing("wallet address is required")
        wallets.public_key(body.wallet)
        await hub.limits.count_address(Limit.CHALLENGES, address_of(request.scope))
        await _prove(hub, body.wallet, body.nonce, body.signature)
        secret = await hub.db(store.owners.start_session, body.wallet)
        set_session(response, secret, secure=parts.is_secure(request))
        return SessionAnswer(wallet=body.wallet)

    @router.get("/api/session", summary="Who is signed in", responses=errors())
    async def session(request: Request) -> SessionAnswer:
        """Say whose session this is."""
        return SessionAnswer(wallet=await wallet_of(request, hub))

    @router.delete("/api/session", summary="Sign out", responses=errors())
    async def sign_out(request: Request, response: Response) -> SessionAnswer:
        """End this session."""
        if secret := request.cookies.get(COOKIE):
            await hub.db(store.owners.end_session, secret)
        end_session(response, secure=parts.is_secure(request))
        return SessionAnswer(wallet=None)

    @router.get("/api/jobs/{job_id}/log", summary="A job's log", responses=errors(404))
    async def log(job_id: str, request: Request) -> LogAnswer:
        """Show what a job has written; for admins, and for the owner of its newest node, signed in."""
        n = None
        if not is_admin(request):
            wallet = await wallet_of(request, hub)
            attempts = await hub.db(store.jobs.attempts, job_id)
            node = await hub.db(store.nodes.get, attempts[-1].node_id) if attempts else None
            if wallet is None or node is None or node.wallet != wallet:
                raise UnknownJob
            # That one's alone: what other owners' nodes wrote before is theirs.
            n = attempts[-1].n
        found = await hub.db(store.jobs.log, job_id, n)
        return LogAnswer(log=found.text, truncated=found.truncated)

    return router


async def issue(
    parts: Parts, request: Request, body: TokenBody, *, require_proof: bool
) -> TokenAnswer:
    """Give a wallet a token for a machine.

    Raises:
        Missing, WalletRefused, WalletProofError, RateLimited, TooManyTokens: it gets none.
    """
    hub, address = parts.hub, address_of(request.scope)
    if not body.wallet:
        raise Missing("wallet address is required")
    wallets.public_key(body.wallet)
    proven = body.wallet == await wallet_of(request, hub)
    if not proven and body.signature and body.nonce:
        await hub.limits.count_address(Limit.CHALLENGES, address)
        await _prove(hub, body.wallet, body.nonce, body.signature)
        proven = True
    if proven:
        await hub.limits.count_address(Limit.TOKENS_PROVEN_OF_ADDRESS, address)
        await hub.limits.count(Limit.TOKENS_OF_WALLET, body.wallet)
    else:
        await hub.limits.count_address(Limit.TOKENS_OF_ADDRESS, address)
    if require_proof and not proven:
        raise WalletProofError(
            "Sign in with this wallet first: tokens are for its owner alone here."
        )
    made = await hub.db(
        hub.store.owners.issue_token, body.wallet, proven=proven, from_address=address
    )
    hub.changes.tell(body.wallet)
    hub.metrics.count("tokens", "issued" if proven else "issued_unproven")
    return TokenAnswer(token=made.token, expires_at=iso(made.expires_ms), proven=made.proven)


async def _prove(hub: Hub, wallet: str, nonce: str, signature: str) -> None:
    try:
        await hub.db(hub.store.owners.prove, wallet, nonce, wallets.signature_bytes(signature))
    except WalletProofError:
        hub.metrics.count("auth_failures")
        raise
