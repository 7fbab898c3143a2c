"""A service made of the toolkit alone: its door over HTTP and a real WebSocket, its limits, its file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from pocqueue.web.body_limit import BodyLimit
from tests.support.ports import free_port
from tests.support.waiting import wait_until
from tests.web.guest_book.app import MAX_FAILURES, create_app
from tests.web.guest_book.store import UPGRADES, GuestBook

HOST, GUEST = "the-token-of-the-host", "the-token-of-a-guest"


class Service:
    """The guest book as a process."""

    def __init__(self, file: Path) -> None:
        self._place = f"127.0.0.1:{free_port()}"
        argv = [sys.executable, "-m", "tests.web.guest_book", str(file)]
        self.process = subprocess.Popen(
            [*argv, self._place.rpartition(":")[2]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.http = httpx.Client(base_url=f"http://{self._place}", trust_env=False, timeout=60)
        wait_until(self._answers, message="an answer of the service")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()
        with contextlib.suppress(httpx.TransportError):
            return bool(self.http.get("/health").json() == "ok")
        return False

    def post(self, path: str, sent: str | None, body: Any = None, **query: Any) -> httpx.Response:
        """Send a POST with a token."""
        return self.http.post(path, json=body, params=query, headers=bearer(sent))

    def socket(self, path: str, token: str | None = None) -> ClientConnection:
        """Open a WebSocket."""
        url = f"ws://{self._place}{path}"
        return connect(url, additional_headers=bearer(token), proxy=None)

    def end(self) -> str:
        """End it as an operator would; return what it said."""
        self.http.close()
        self.process.terminate()
        said, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, said
        return said


def bearer(token: str | None) -> dict[str, str]:
    """Return the header that a token is sent in."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A guest book with a host."""
    with GuestBook(tmp_path / "book" / "guests.sqlite3") as book:
        book.invite("host", HOST, is_host=True)
    return tmp_path / "book" / "guests.sqlite3"


@pytest.fixture
def service(file: Path) -> Iterator[Service]:
    """The service at work."""
    service = Service(file)
    yield service
    if service.process.poll() is None:
        service.end()


@pytest.fixture
def client(file: Path) -> Iterator[TestClient]:
    """The service in memory."""
    with TestClient(create_app(file)) as client:
        yield client


def test_token_rules_over_http_and_websocket(service: Service) -> None:
    """One rule and one caller, whichever way somebody comes in; nothing is said without a token."""
    assert service.post("/guests/ann", HOST, token=GUEST).status_code == 200
    assert service.post("/notes", GUEST, {"text": "a"}).json() == {"by": "ann", "number": 1}
    with service.socket("/live", GUEST) as live:
        live.send("b")
        assert json.loads(live.recv(timeout=120)) == {"by": "ann", "number": 2}
    with service.socket("/visit") as visit:
        visit.send(HOST)
        visit.send("c")
        assert json.loads(visit.recv(timeout=120)) == {"by": "host", "number": 3}
    reply = service.post("/guests/bob", GUEST, token="x")
    assert (reply.status_code, reply.json()) == (403, {"detail": "Ask the host of the house."})
    # The body of whoever has no token is not judged, and there is no path for them.
    for path in ("/notes", "/nowhere"):
        reply = service.post(path, None, {"text": 5})
        assert reply.status_code == 401
        assert reply.headers["WWW-Authenticate"] == "Bearer"
        assert reply.json()["detail"].startswith("Invalid auth token: there is none")
    for path in ("/live", "/nowhere"):
        with pytest.raises(InvalidStatus) as caught:
            service.socket(path)
        assert caught.value.response.status_code == 401
        assert json.loads(caught.value.response.body or b"")["detail"]
    assert service.post("/notes", GUEST, {"text": ""}).status_code == 422
    assert service.post("/nowhere", GUEST).status_code == 404


def test_guesses_count_together(service: Service) -> None:
    """Over HTTP, in the handshake and in a first message; right ones get in, and no log has a token."""
    guess = "a-guess-at-the-token"
    assert service.post("/notes", guess, {"text": "a"}).status_code == 401
    with pytest.raises(InvalidStatus) as caught:
        service.socket("/live", guess)
    assert caught.value.response.status_code == 401
    with service.socket("/visit") as visit:
        visit.send(guess)
        with pytest.raises(ConnectionClosed) as closed:
            visit.recv(timeout=120)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "Invalid auth token.")
    assert MAX_FAILURES == 3
    reply = service.post("/notes", guess, {"text": "a"})
    assert reply.status_code == 429
    assert 1 <= int(reply.headers["Retry-After"]) <= 60
    with pytest.raises(InvalidStatus) as caught:
        service.socket("/live", guess)
    assert caught.value.response.status_code == 429
    assert "Retry-After" in caught.value.response.headers
    assert service.post("/notes", HOST, {"text": "a"}).status_code == 200
    assert service.http.get("/health").status_code == 200
    said = service.end()
    assert "Refused POST /notes from 127.0.0.1: 401 Invalid auth token." in said
    assert "Refused WEBSOCKET /live from 127.0.0.1: 401 Invalid auth token." in said
    assert "Refused POST /notes from 127.0.0.1: 429 Too many wrong tokens" in said
    assert guess not in said
    assert HOST not in said


def test_the_file_is_upgraded_and_kept(tmp_path: Path) -> None:
    """What an older version wrote is there; the file of a running service is taken."""
    path = tmp_path / "old.sqlite3"
    db = sqlite3.connect(path)
    db.executescript(UPGRADES[0] + "; PRAGMA user_version = 1;")
    db.execute("INSERT INTO note (name, text) VALUES ('ann', 'long ago')")
    db.commit()
    db.close()
    with GuestBook(path) as book:
        book.invite("host", HOST, is_host=True)
    service = Service(path)
    assert service.post("/notes", HOST, {"text": "now"}).json()["number"] == 2
    argv = [sys.executable, "-m", "tests.web.guest_book", str(path), "0"]
    second = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert second.returncode != 0
    assert "in use by another guest book service" in second.stderr
    service.process.kill()
    service.process.communicate()
    service.http.close()
    again = Service(path)
    assert again.post("/notes", HOST, {"text": "later"}).json()["number"] == 3
    again.end()


def test_bodies_are_limited(client: TestClient) -> None:
    """In size, whether it was announced or not; each answer says the limit."""

    def pieces() -> Iterator[bytes]:
        for _ in range(3):
            yield b"x" * 500

    for reply in (
        client.post("/notes", json={"text": "x" * 2000}, headers=bearer(HOST)),
        client.post("/notes", content=pieces(), headers=bearer(HOST)),
    ):
        assert reply.status_code == 413
        assert reply.json() == {"detail": "The body is larger than 1000 bytes."}


async def test_a_slow_body_is_given_up() -> None:
    """In time as well: nobody holds a request open by sending a byte now and then."""

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        while True:
            await receive()

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    await BodyLimit(app, max_bytes=10**6, max_s=0.1)(scope, receive, send)
    assert sent[0]["status"] == 408
    assert b"did not come within 0.1 seconds" in sent[1]["body"]
    assert (b"connection", b"close") in sent[0]["headers"]


def test_requests_that_do_not_come_in_whole_end(service: Service) -> None:
    """Wherever they stop: the service ends the connection, and answers where it knows the route."""
    head = f"POST /notes HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {HOST}\r\n"
    starts = [
        f'{head}Content-Type: application/json\r\nContent-Length: 20\r\n\r\n{{"te',
        f"{head}Transfer-Encoding: chunked\r\n\r\n4\r\n",
        head,
        "P",
        "\r\n",
    ]
    address = "127.0.0.1", service.http.base_url.port
    with contextlib.ExitStack() as stack:
        open_ones = []
        for start in starts:
            connection = stack.enter_context(socket.create_connection(address, timeout=60))
            connection.sendall(start.encode())
            open_ones.append(connection)
        replies = [b"".join(iter(partial(one.recv, 65536), b"")) for one in open_ones]
    for reply in replies[:2]:
        assert reply.startswith(b"HTTP/1.1 408")
        assert b"The body did not come within 10 seconds." in reply
    assert replies[2:] == [b"", b"", b""]


def test_a_line_about_a_refusal_is_one_line(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a client writes; paths are in it as routes."""
    client.post("/notes", json={"text": "a\nb" * 50}, headers=bearer(HOST))
    client.post("/guests/a-secret-name", params={"token": "x"})
    client.post("/a-secret-path", headers=bearer("x"))
    lines = [line for line in caplog.messages if line.startswith("Refused")]
    assert [line.partition(" from testclient: ")[0] for line in lines] == [
        "Refused POST /notes",
        "Refused POST /guests/{name}",
        "Refused POST (no route)",
    ]
    assert all("\n" not in line and "secret" not in line for line in lines)


def test_requests_are_logged_without_secrets(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Method, route, status and time; neither the path nor the query."""
    caplog.set_level(logging.DEBUG, logger="pocqueue")
    client.post("/guests/a-secret-name", params={"token": GUEST}, headers=bearer(HOST))
    [line] = [r.getMessage() for r in caplog.records if r.name.startswith("pocqueue")]
    assert line.startswith("POST /guests/{name}: 200 in ")


def test_errors_are_documented_in_one_shape(client: TestClient) -> None:
    """Each with a sentence as an example."""
    answers = client.get("/openapi.json", headers=bearer(HOST)).json()["paths"]["/notes"]["post"]
    for status in ("401", "422", "429"):
        answer = answers["responses"][status]
        assert answer["content"]["application/json"]["example"]["detail"]
        assert ("headers" in answer) is (status == "429")


def test_a_port_is_free_again(service: Service) -> None:
    """A service that is told to end gives it back at once."""
    port = service.http.base_url.port
    assert port is not None
    service.end()
    with socket.create_server(("127.0.0.1", port)):
        pass
