"""The page's routes: its snapshot, its forms for browsers without JavaScript, and what changes, as events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from importlib import resources
from typing import Annotated, Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse, StreamingResponse
from starlette.exceptions import HTTPException

from pocqueue.errors import PocqueueError
from pocqueue.hosts import wallets
from pocqueue.hosts.errors import DatabaseUnavailable, WalletRefused
from pocqueue.hosts.gateway.access import COOKIE, end_session, wallet_of
from pocqueue.hosts.gateway.limits import MAX_PAGES, MAX_SOCKETS, TooManyPages
from pocqueue.hosts.gateway.page.feed import Feed
from pocqueue.hosts.gateway.page.view import SHOWN, Asked, View, read, templates
from pocqueue.hosts.gateway.routes.decisions import Decision, decide, end_token
from pocqueue.hosts.gateway.routes.owners import issue
from pocqueue.hosts.gateway.routes.parts import Parts, new_router
from pocqueue.hosts.gateway.schema import TokenAnswer, TokenBody, iso
from pocqueue.web.errors import address_of

#: What no gateway's message says, such as silence, shows after this long.
_LOOK_S: Final = 2.0
#: Changes within this time are one.
_PAUSE_S: Final = 0.1
#: Proxies end a connection on which nothing comes for long.
_KEEP_ALIVE_S: Final = 15.0
#: What scripts ask for that put an answer into the page themselves.
FRAGMENT: Final = "text/x-fragment"

_TYPES: Final = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_SMALL_AGENT: Final = ("agent.py", "requirements.txt")
_FILES: Final = ("app.js", "live.js", "wallet.js", "style.css")
_SECURE: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    # With no-referrer the page's own forms would come from nowhere (`Origin: null`).
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_PRIVATE: Final = _SECURE | {"Cache-Control": "no-store"}

_Cursor = Annotated[str, Query(max_length=100)]


def _asked(
    wallet: Annotated[str, Query(max_length=1000)] = "",
    show: Annotated[str, Query(max_length=20)] = "all",
    nodes: _Cursor = "",
    jobs: _Cursor = "",
    earnings: _Cursor = "",
) -> Asked:
    return Asked(wallet.strip(), show if show in SHOWN else "all", nodes, jobs, earnings)


_Asked = Annotated[Asked, Depends(_asked)]


def page_router(parts: Parts, *, ws_port: int, require_proof: bool) -> APIRouter:
    """Make the routes.

    Args:
        ws_port: that agents know, where there is no public URL.
        require_proof: tokens are for wallets that have signed in.
    """
    hub, router = parts.hub, new_router(parts)
    folder = resources.files("pocqueue.hosts.gateway.page") / "static"
    files = {name: (folder / name).read_bytes() for name in _FILES}

    @router.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/app")

    @router.get("/app", include_in_schema=False)
    async def app(request: Request, asked: _Asked) -> Response:
        return await _page(request, asked)

    @router.post("/app/token", include_in_schema=False)
    async def token(request: Request) -> Response:
        wallet = parse_qs((await request.body()).decode("utf-8", "replace")).get("wallet", [""])[0]
        is_fragment = FRAGMENT in request.headers.get("accept", "")
        try:
            made = await issue(
                parts, request, TokenBody(wallet=wallet), require_proof=require_proof
            )
        except PocqueueError as exc:
            if is_fragment:
                raise
            return await _page(request, Asked(wallet), exc)
        if not is_fragment:
            return await _page(request, Asked(wallet), made=made)
        text = templates.get_template("_token.html").render(token=made, endpoint=_endpoint(request))
        return HTMLResponse(text, headers=_PRIVATE)

    @router.post("/app/nodes/{node_id}/{decision}", include_in_schema=False)
    async def decided(node_id: str, decision: Decision, request: Request) -> Response:
        try:
            await decide(parts, request, node_id, decision)
        except PocqueueError as exc:
            return await _page(request, Asked(), exc)
        return RedirectResponse("/app#nodes-title", status_code=303)

    @router.post("/app/tokens/{token_id}/revoke", include_in_schema=False)
    async def revoke_token(token_id: str, request: Request) -> Response:
        try:
            await end_token(parts, request, token_id)
        except PocqueueError as exc:
            return await _page(request, Asked(), exc)
        return RedirectResponse("/app#token-title", status_code=303)

    @router.post("/app/sign-out", include_in_schema=False)
    async def sign_out(request: Request) -> Response:
        if secret := request.cookies.get(COOKIE):
            await hub.db(hub.store.owners.end_session, secret)
        response = RedirectResponse("/app", status_code=303)
        end_session(response, secure=parts.is_secure(request))
        return response

    @router.get("/app/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        headers = _SECURE | {"Cache-Control": "no-cache"}
        kind = _TYPES[name.rpartition(".")[2]]
        return Response(files[name], media_type=kind, headers=headers)

    @router.get("/app/python-host/{name}", include_in_schema=False)
    async def small_agent(name: str) -> Response:
        if name not in _SMALL_AGENT:
            raise HTTPException(404)
        text = (resources.files("pocqueue.hosts") / "python_host" / name).read_bytes()
        headers = _SECURE | {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(text, media_type="text/plain; charset=utf-8", headers=headers)

    @router.get("/app/events", include_in_schema=False)
    async def events(request: Request, asked: _Asked) -> Response:
        wallets.public_key(asked.wallet)
        address = address_of(request.scope)
        watcher = None if asked.wallet == await wallet_of(request, hub) else address
        if not hub.limits.has_page(asked.wallet, watcher):
            raise TooManyPages(MAX_PAGES, "wallet")
        if not hub.limits.has_room(address):
            raise TooManyPages(MAX_SOCKETS, "network address")
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(
            _events(request, asked, watcher), media_type="text/event-stream", headers=headers
        )

    async def _events(request: Request, asked: Asked, watcher: str | None) -> AsyncIterator[str]:
        feed, number, quiet_s = Feed(), 0, 0.0
        view: View | None = None
        # Counted here, where it ends for certain: an answer that nobody waits for any more does not begin.
        with (
            hub.limits.socket(address_of(request.scope)),
            hub.limits.page(asked.wallet, watcher),
            hub.changes.watch(asked.wallet) as changed,
        ):
            yield "retry: 2000\n\n"
            while True:
                changed.clear()
                news = {}
                # A database that is away says nothing new.
                with contextlib.suppress(DatabaseUnavailable):
                    is_owner = asked.wallet == await wallet_of(request, hub)
                    view = await hub.db(read, hub.store, asked, is_owner=is_owner, before=view)
                    news = feed.news(view)
                if news:
                    quiet_s, number = 0.0, number + 1
                    yield f"id: {number}\ndata: {json.dumps(news)}\n\n"
                elif quiet_s >= _KEEP_ALIVE_S:
                    quiet_s = 0.0
                    yield ": still there\n\n"
                try:
                    async with asyncio.timeout(_LOOK_S):
                        await changed.wait()
                    await asyncio.sleep(_PAUSE_S)
                except TimeoutError:
                    quiet_s += _LOOK_S

    async def _page(
        request: Request,
        asked: Asked,
        problem: PocqueueError | None = None,
        *,
        made: TokenAnswer | None = None,
    ) -> Response:
        own = await wallet_of(request, hub)
        asked, view = replace(asked, wallet=asked.wallet or own or ""), None
        try:
            if asked.wallet:
                wallets.public_key(asked.wallet)
                view = await hub.db(read, hub.store, asked, is_owner=asked.wallet == own)
        except WalletRefused as exc:
            asked, problem = Asked(), exc
        text = templates.get_template("app.html").render(
            view=view,
            wallet=asked.wallet,
            signed_in=view is not None and view.is_owner,
            token=made,
            endpoint=_endpoint(request),
            problem="" if problem is None else str(problem),
            now=iso(hub.store.now_ms()),
        )
        status = 200 if problem is None else problem.http_status
        return HTMLResponse(text, status_code=status, headers=_PRIVATE)

    def _endpoint(request: Request) -> str:
        """Return where agents connect."""
        if parts.public_url is not None:
            return parts.url_of(request).replace("http", "ws", 1)
        scheme = "wss" if request.url.scheme == "https" else "ws"
        host = request.url.hostname or ""
        port = ws_port or request.url.port
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    return router
