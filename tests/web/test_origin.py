"""Whose web pages may use a service that asks for no token, and by which names it may be called."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.middleware import Middleware

from pocqueue.web.origin import OwnOrigin, host_names

ALLOWED = "Node.example.com, pages.example.com"


async def ask(method: str = "POST", **headers: str) -> int:
    """Send a request with these headers; return the status of the answer."""
    own, allowed = host_names("host-1.lan,0.0.0.0"), host_names(ALLOWED)
    guard = Middleware(OwnOrigin, own=own, allowed=allowed, setting="NAMES")
    app = FastAPI(middleware=[guard])
    app.add_api_route("/", lambda: "ok", methods=[method])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a") as http:
        return (await http.request(method, "/", headers=headers)).status_code


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8080",
        "192.0.2.7:8080",
        "[::1]:8080",
        "[2001:db8::1]",
        "localhost",
        "LOCALHOST:8080",
        "a.localhost",
        "node:8080",
        "host-1.lan:8080",
        "node.example.com:8080",
        "Node.Example.Com.",
        "",
    ],
)
async def test_names_that_no_stranger_can_have(host: str) -> None:
    """Whatever is asked for."""
    assert await ask("GET", Host=host) == 200
    assert await ask("POST", Host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "node.example.com.evil",
        "[::1",
    ],
)
async def test_other_names_are_refused(host: str) -> None:
    """To read as well: a page whose own name was made to lead here is of the very same origin."""
    assert await ask("GET", Host=host) == 403
    assert await ask("POST", Host=host, Origin=f"http://{host}") == 403


@pytest.mark.parametrize(
    ("origin", "is_ours"),
    [
        ("http://127.0.0.1:8080", True),
        ("https://127.0.0.1:8080", True),
        ("http://pages.example.com:3000", True),
        ("http://127.0.0.1:3000", False),
        ("http://localhost:8080", False),
        ("http://host-1.lan", False),
        ("http://evil.example", False),
        ("null", False),
        ("", False),
    ],
)
async def test_pages_of_others_change_nothing(origin: str, is_ours: bool) -> None:
    """What they read, browsers do not show them."""
    assert await ask(Host="127.0.0.1:8080", Origin=origin) == (200 if is_ours else 403)
    assert await ask("GET", Host="127.0.0.1:8080", Origin=origin) == 200


async def test_websockets_of_other_pages_are_refused() -> None:
    """Their handshake is a GET, and is answered across origins."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def behind(*_: object) -> None:
        raise AssertionError("nobody gets here")

    guard = OwnOrigin(behind, own=(), allowed=(), setting="NAMES")
    headers = [(b"host", b"127.0.0.1"), (b"origin", b"http://evil.example")]
    scope = {
        "type": "websocket",
        "path": "/",
        "headers": headers,
        "extensions": {"websocket.http.response": {}},
    }
    await guard(scope, receive, send)
    assert sent[0]["status"] == 403
