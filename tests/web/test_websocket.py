"""A WebSocket in a real server thread: who is still there, who does not read, and what its end looks like."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.sync.client import connect

from pocqueue.errors import SettingsError
from pocqueue.web.app import make_app
from pocqueue.web.errors import SentenceRoute
from pocqueue.web.listener import listen
from pocqueue.web.serve import ServerThread
from pocqueue.web.tls import Certificate
from pocqueue.web.websocket import SOCKET, LiveSocket, is_between, only_text, text_frame
from tests.support.tls import make_certificate

#: Bytes that no system keeps for a client that does not read them.
FLOOD = 64 << 20
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def make() -> FastAPI:
    """Make an application with a socket that says whether its client answers, and an error of another name.

    A client that says "flood" gets more than it reads; "now" is answered as it comes.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield

    app = make_app("sockets", "Of the tests.", lifespan, max_body_bytes=1000, error_field="error")
    router = APIRouter(route_class=SentenceRoute)

    @router.get("/fails")
    async def fails() -> str:
        raise SettingsError("It is so.")

    @router.websocket("/")
    async def live(websocket: WebSocket) -> None:
        await websocket.accept()
        kept: LiveSocket = websocket.scope["state"][SOCKET]
        kept.take = lambda data: data == b"now" and kept.say_at_once(text_frame("taken"))
        async for text in websocket.iter_text():
            assert text != "now"
            if text == "flood":
                await websocket.send_text("x" * FLOOD)
                continue
            await websocket.send_text(json.dumps(await kept.answers(float(text))))

    app.include_router(router)
    return app


@pytest.fixture
def ports() -> Iterator[list[int]]:
    """The ports of a server thread at work."""
    listeners = [listen("127.0.0.1", 0, "TEST_") for _ in range(2)]
    with ServerThread(make(), listeners, pong_s=330, end_s=3) as server:
        assert server.start()
        yield [one.getsockname()[1] for one in listeners]


def test_one_server_on_two_ports(ports: list[int]) -> None:
    """Each has routes and sockets; error answers have the name that the application gives them."""
    for port in ports:
        reply = httpx.get(f"http://127.0.0.1:{port}/fails", trust_env=False, timeout=60)
        assert (reply.status_code, reply.json()) == (503, {"error": "It is so."})
        reply = httpx.post(
            f"http://127.0.0.1:{port}/fails", content="x" * 2000, trust_env=False, timeout=60
        )
        assert list(reply.json()) == ["error"]
        with connect(f"ws://127.0.0.1:{port}/", proxy=None) as client:
            client.send("60")
            assert client.recv(timeout=120) == "true"


def test_what_is_taken_as_it_comes(ports: list[int]) -> None:
    """The application never sees it, and all else as before, also what comes in parts."""
    with connect(f"ws://127.0.0.1:{ports[0]}/", proxy=None) as client:
        for said, answer in (
            ("now", "taken"),
            ("60", "true"),
            ("now", "taken"),
            (["6", "0"], "true"),
        ):
            client.send(said)
            assert client.recv(timeout=120) == answer
        client.send(["n", "ow"])  # is the application's, which fails
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=120)


def test_what_is_taken_over_tls(tmp_path: Path) -> None:
    """As it comes, too."""
    certificate = Certificate(*make_certificate(tmp_path))
    listener = listen("127.0.0.1", 0, "TEST_")
    port = listener.getsockname()[1]
    trusted = ssl.create_default_context(cafile=str(certificate.cert))
    with ServerThread(make(), [listener], certificate=certificate, pong_s=330, end_s=3) as server:
        assert server.start()
        with connect(f"wss://127.0.0.1:{port}/", proxy=None, ssl=trusted) as client:
            for said, answer in (("now", "taken"), ("60", "true"), ("now", "taken")):
                client.send(said)
                assert client.recv(timeout=120) == answer


@pytest.mark.parametrize(
    "pieces",
    [
        [b"\x81\x83\0\0\0\0now"],
        [b"\x81", b"\x83\0\0", b"\0\0no", b"w"],
        [b"\x89\x80\0\0\0\0\x81\x83\0\0\0\0now"],
        [b"\x81\xfe\0\x03\x01\x02\x03\x04omt"],
    ],
    ids=["by itself", "in pieces", "behind a ping", "of another length, masked"],
)
def test_texts_come_in_any_way(pieces: list[bytes], ports: list[int]) -> None:
    """What was not taken as it came is the application's, here one that fails: nothing of it is lost or comes twice."""
    with _handshake(ports[0]) as raw:
        for piece in pieces:
            raw.sendall(piece)
        said = _until_the_end(raw, b"taken")
        assert said in {b"\x81\x05taken", b"\x8a\0\x81\x05taken"} or b"taken" not in said


@pytest.mark.parametrize(
    "sent",
    [
        b"\x01\x83\0\0\0\0now\x81\x83\0\0\0\0now",
        b"\xc1\x83\0\0\0\0now",
        b"\x81\x03now",
    ],
    ids=["within another one", "with an extension that was not agreed on", "not masked"],
)
def test_frames_that_are_against_the_protocol(sent: bytes, ports: list[int]) -> None:
    """Each byte of them comes by itself, then all at once: none is taken, and the socket ends with 1002."""
    for pieces in ([sent[n : n + 1] for n in range(len(sent))], [sent[:9], sent[9:]]):
        with _handshake(ports[0]) as raw:
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    raw.sendall(piece)
            said = _until_the_end(raw)
            assert said[:1] + said[2:4] == b"\x88\x03\xea"


@pytest.mark.parametrize("head", [b"\x81\x85", b"\x81\xfe\0\5"], ids=["short", "longer"])
def test_a_frame_whose_rest_looks_like_one(head: bytes, ports: list[int]) -> None:
    """Its mask and its payload are a whole frame with a text that would be taken: it is not, and its own is no UTF-8."""
    with _handshake(ports[0]) as raw:
        raw.sendall(_frame(9, b"") + head)
        assert raw.recv(2, socket.MSG_WAITALL) == b"\x8a\0"  # the head has come too
        raw.sendall(b"\x81\x83\0\0\0\0now")
        said = _until_the_end(raw)
        assert said[:1] + said[2:4] == b"\x88\x03\xef"


def test_what_is_between_messages() -> None:
    """After each of a client's bytes; with a websockets that does not tell, nothing is."""
    conn = ServerProtocol()
    conn.receive_data(HANDSHAKE)
    [request] = conn.events_received()
    assert isinstance(request, Request)
    assert not is_between(conn)
    conn.send_response(conn.accept(request))
    assert is_between(conn)
    for frame, is_last in [
        (_frame(9, b"ping"), True),
        (b"\x81\xfe\0\x7e" + bytes(4) + 126 * b"x", True),
        (b"\x82\xff" + (1 << 16).to_bytes(8) + bytes(4 + (1 << 16)), True),
        (b"\x01\x80" + bytes(4), False),
        (_frame(9, b"ping"), False),
        (_frame(0, b"end"), True),
    ]:
        for byte in frame[:-1]:
            conn.receive_data(bytes([byte]))
            assert not is_between(conn)
        conn.receive_data(frame[-1:])
        assert conn.parser_exc is None
        assert is_between(conn) is is_last
    size = conn.current_size
    del conn.current_size
    assert not is_between(conn)
    conn.current_size = size
    assert is_between(conn)
    del conn.parser
    assert not is_between(conn)


def test_a_machine_that_nothing_is_compiled_for() -> None:
    """Has websockets without its compiled part, and is served all the same."""
    code = """
import sys
sys.modules["websockets.speedups"] = None
from pocqueue.web.websocket import only_text
print(only_text(b"\\x81\\x83\\1\\2\\3\\4omt"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "b'now'\n"


def test_what_is_only_a_text() -> None:
    """Whole, final, masked, of one frame, and nothing before or behind it."""
    whole = b"\x81\x83\x01\x02\x03\x04" + bytes(
        a ^ b for a, b in zip(b"now", b"\1\2\3", strict=True)
    )
    assert only_text(whole) == b"now"
    assert only_text(b"\x81\x80\1\2\3\4") == b""
    long = b"\x81\xfe\xff\xff\0\0\0\0" + 65_535 * b"x"
    assert only_text(long) == 65_535 * b"x"
    longer = b"\x81\xff\0\0\0\0\0\1\0\0\0\0\0\0" + 65_536 * b"x"
    others = [b"", whole + b"x", longer, long + whole, *(whole[:n] for n in range(len(whole)))]
    others += [bytes([whole[0] ^ bit]) + whole[1:] for bit in (0x80, 0x40, 0x20, 0x10, 1, 3)]
    assert [only_text(data) for data in others] == len(others) * [None]


def _handshake(port: int) -> socket.socket:
    """Return a WebSocket of a client that has no idea of pings."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=60)
    raw.sendall(HANDSHAKE)
    head = b""
    while b"\r\n\r\n" not in head:
        head += raw.recv(1)
    assert head.startswith(b"HTTP/1.1 101")
    return raw


def _until_the_end(raw: socket.socket, text: bytes = b"no such text") -> bytes:
    """Return what comes until a text has come or the socket has ended."""
    said = b""
    while text not in said and (more := raw.recv(100)):
        said += more
    return said


def _frame(opcode: int, payload: bytes) -> bytes:
    """Return a frame as a client sends it, masked with zeros."""
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


def test_who_does_not_answer(ports: list[int]) -> None:
    """A client that is connected and silent does not answer, and is told nothing of it."""
    with _handshake(ports[0]) as raw:
        raw.sendall(_frame(1, b"0.05"))
        raw.settimeout(60)
        received = b""
        while b"false" not in received:
            received += raw.recv(100)
        assert received[0] == 0x89  # the ping that nobody answered


def test_pings_of_a_client_that_never_reads(ports: list[int]) -> None:
    """Their answers are not kept for it for ever: it is cut off."""
    with _handshake(ports[0]) as raw, pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
        raw.sendall(_frame(9, os.urandom(125)) * 1_000_000)  # 125 MB


def test_clients_are_told_of_the_end() -> None:
    """With close code 1012, after which they come back; the ports are free again."""
    listeners = [listen("127.0.0.1", 0, "TEST_")]
    port = listeners[0].getsockname()[1]
    server = ServerThread(make(), listeners, end_s=3)
    assert server.start()
    with connect(f"ws://127.0.0.1:{port}/", proxy=None) as client:
        server.close()
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=120)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    server.close()
    with contextlib.closing(socket.create_server(("127.0.0.1", port))):
        pass


def test_who_does_not_read_its_farewell_keeps_nobody_from_theirs() -> None:
    """A client says good-bye and reads nothing; a server that ends then drops it, and tells the others."""
    listeners = [listen("127.0.0.1", 0, "TEST_")]
    port = listeners[0].getsockname()[1]
    with ServerThread(make(), listeners, end_s=60) as server:
        assert server.start()
        with _handshake(port) as raw, connect(f"ws://127.0.0.1:{port}/", proxy=None) as other:
            raw.sendall(_frame(1, b"flood"))
            raw.recv(1)  # it comes
            raw.sendall(_frame(8, (1000).to_bytes(2)))
            # Sent on another socket after that, and answered: the server has seen the good-bye.
            other.send("60")
            assert other.recv(timeout=120) == "true"
            server.close()
            with pytest.raises(ConnectionClosed) as closed:
                other.recv(timeout=120)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012


def test_who_speaks_is_not_asked_whether_it_is_there() -> None:
    """A ping goes to a client that has been silent for a while, and to no other."""
    listeners, ping_s = [listen("127.0.0.1", 0, "TEST_")], 0.5
    port = listeners[0].getsockname()[1]

    def speak_until_the_other_is_asked() -> tuple[float, bytes]:
        """Return how long the one that speaks was silent at most, and what it was sent."""
        with _handshake(port) as speaks, _handshake(port) as silent:
            silent.settimeout(0.02)
            longest_s, last_s, received = 0.0, time.monotonic(), b""
            while not received:
                speaks.sendall(_frame(10, b""))
                longest_s, last_s = max(longest_s, time.monotonic() - last_s), time.monotonic()
                with contextlib.suppress(TimeoutError):
                    received = silent.recv(100)
            assert received[0] == 0x89
            speaks.settimeout(0.001)
            with contextlib.suppress(TimeoutError):
                return longest_s, speaks.recv(100)
            return longest_s, b""

    with ServerThread(make(), listeners, ping_s=ping_s, pong_s=330, end_s=3) as server:
        assert server.start()
        longest_s, sent = speak_until_the_other_is_asked()
        while longest_s > ping_s / 2:  # the test itself was held up
            longest_s, sent = speak_until_the_other_is_asked()
    assert sent == b""


def test_an_application_that_does_not_start() -> None:
    """Is known to whoever starts it."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        raise SettingsError("no")
        yield

    app = make_app("none", "Of the tests.", lifespan, max_body_bytes=1000)
    with ServerThread(app, [listen("127.0.0.1", 0, "TEST_")]) as server:
        assert not server.start()
