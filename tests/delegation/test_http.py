"""The delegation as a real service: processes, sockets, restarts, replies that are cut off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pocqueue.delegation.access import PREFIX
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.spec import RoundState
from pocqueue.rounds.store import Keys
from tests.support.cutting_proxy import cutting
from tests.support.delegation_server import BODY, TOKEN, Work, live_gpus, nonces_of
from tests.support.factories import make_spec
from tests.support.rounds import pass_deadline
from tests.support.tls import make_certificate
from tests.support.waiting import until, wait_until


class Service:
    """A `pocqueue delegation serve` in processes of its own.

    Args:
        env: its environment.
        log: file that gets its output.
    """

    def __init__(self, env: dict[str, str], log: Path) -> None:
        self.env = {k: v for k, v in env.items() if not k.startswith("DELEGATION_")}
        self.env |= {"DELEGATION_AUTH_TOKEN": TOKEN, "PYTHONWARNINGS": "error"}
        self.log = log
        self.port = 0
        self.scheme = "http"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def start(self, *options: str, verify: ssl.SSLContext | bool = True) -> None:
        """Start it on the port that it had before, or a free one; return when it answers."""
        size = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pocqueue", "delegation", "serve"),
                    *("--host=127.0.0.1", f"--port={self.port}", *options),
                ],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

        def port() -> int:
            assert self.process is not None
            text = self.log.read_bytes()[size:].decode()
            assert self.process.poll() is None, text
            return int(
                text.partition("serves on ")[2].partition(" with")[0].rpartition(":")[2] or 0
            )

        self.port = wait_until(port, message="the port of the service")

        def answers() -> bool:
            with contextlib.suppress(httpx.TransportError):
                reply = httpx.get(f"{self.url}/health", verify=verify, timeout=60)
                return reply.status_code in {200, 503}
            return False

        wait_until(answers, message="an answer of the service")

    def kill(self) -> None:
        """Kill it as if its machine had lost power."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=120)

    def end(self, signum: int = signal.SIGTERM) -> int:
        """Ask it to end; return its exit code."""
        assert self.process is not None
        self.process.send_signal(signum)
        return self.process.wait(timeout=120)

    # A legacy client: the token in query and body, no cursor.

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> httpx.Response:
        """Send a request to a path behind the prefix."""
        token = {"auth_token": TOKEN}
        if method == "POST":
            return httpx.post(f"{self.url}{PREFIX}/{path}", json=body | token, timeout=60)
        return httpx.get(f"{self.url}{PREFIX}/{path}", params=query | token, timeout=120)

    def begin(self, **changes: Any) -> str:
        """Start a session; return its id."""
        reply = self.call("POST", "start", BODY | changes)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["session_id"])

    def batches(self, session_id: str, **query: Any) -> dict[str, Any]:
        """Fetch batches."""
        reply = self.call("GET", f"batches/{session_id}", **query)
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer


def noted(backend: Backend, session_id: str) -> None:
    """Wait until everything that the session has is noted as handed over."""

    def is_noted() -> bool:
        stands = backend.client.get(Keys.of_round(session_id, "drain")) or ""
        found: Any = backend.client.xrevrange(Keys.of_round(session_id, "proofs"), count=1)
        return str(stands).split(" ")[0] in [cursor for cursor, _ in found]

    wait_until(is_noted, message="the note")


@pytest.fixture
def service(backend: Backend, child_env: dict[str, str], tmp_path: Path) -> Iterator[Service]:
    """A service on the shared Redis, not started yet; the pool has two GPUs."""
    live_gpus(backend, 2)
    with running(child_env, tmp_path) as service:
        yield service


@contextlib.contextmanager
def running(env: dict[str, str], folder: Path) -> Iterator[Service]:
    """Yield a service, not started yet; its log has no token and no traceback in the end."""
    service = Service(env, folder / "service.log")
    try:
        yield service
    finally:
        if service.process is not None and service.process.poll() is None:
            # Its processes would outlive it otherwise.
            service.end()
        text = service.log.read_text() if service.log.exists() else ""
        assert TOKEN not in text
        assert "Traceback" not in text


def test_the_flow_of_a_legacy_client(service: Service, backend: Backend) -> None:
    """Two processes on one port: start, poll until the session is over, every batch in order."""
    service.start("--workers=2")
    session_id = service.begin()
    work = Work(backend, session_id)
    nonces = []
    for _ in range(10):
        work.batch()
        nonces += nonces_of(service.batches(session_id))
        noted(backend, session_id)
    work.batch()
    pass_deadline(backend, session_id)
    answer = service.batches(session_id)
    assert answer["session_active"] is False
    assert answer["total_batches_generated"] == 11
    assert nonces + nonces_of(answer) == work.nonces
    status = service.call("GET", "status").json()["sessions"][session_id]
    assert (status["status"], status["gpu_count"], status["total_generated"]) == ("expired", 2, 11)
    assert service.end() == 0
    assert f"DELEGATION session {session_id} of node 0" in service.log.read_text()


def test_a_service_that_is_killed_loses_nothing(service: Service, backend: Backend) -> None:
    """Between two polls, and between start and first poll; another process goes on."""
    service.start()
    session_id = service.begin()
    service.kill()
    work = Work(backend, session_id)
    work.batch()
    service.start()
    nonces = nonces_of(service.batches(session_id))
    noted(backend, session_id)
    work.batch()
    service.kill()
    service.start()
    reply = service.call("POST", "stop", {"session_id": session_id})
    assert reply.json()["status"] == "stopped"
    answer = service.batches(session_id)
    assert nonces + nonces_of(answer) == work.nonces
    assert answer["session_active"] is False
    assert service.end(signal.SIGINT) == 0


def test_who_waits_does_not_hold_up_the_end(service: Service, backend: Backend) -> None:
    """A service that is told to end answers those that wait, and ends."""
    service.start()
    session_id = service.begin()

    async def wait_and_end() -> dict[str, Any]:
        async with httpx.AsyncClient(timeout=120) as http:
            query: dict[str, Any] = {"auth_token": TOKEN, "wait": 30}
            waiting = asyncio.create_task(
                http.get(f"{service.url}/batches/{session_id}", params=query)
            )
            await until(lambda: int(backend.client.info("clients")["blocked_clients"]) > 0)
            async with asyncio.timeout(20):
                assert await asyncio.to_thread(service.end) == 0
                reply = await waiting
        answer: dict[str, Any] = reply.json()
        return answer

    answer = asyncio.run(wait_and_end())
    assert (answer["batches"], answer["session_active"]) == ([], True)


@pytest.mark.long
def test_redis_is_restarted(
    own_backend: Backend, own_redis: RedisServer, child_env: dict[str, str], tmp_path: Path
) -> None:
    """503 while it is away, in every process, and the session goes on where it was."""
    live_gpus(own_backend)
    with running(child_env | {"POCQUEUE_REDIS_URL": own_redis.url}, tmp_path) as service:
        service.start("--workers=2")
        session_id = service.begin()
        work = Work(own_backend, session_id)
        work.batch()
        own_redis.stop()
        for _ in range(4):
            reply = service.call("GET", f"batches/{session_id}")
            assert reply.status_code == 503
            assert int(reply.headers["Retry-After"]) >= 1
        own_redis.ensure()
        assert nonces_of(service.batches(session_id)) == work.nonces
        noted(own_backend, session_id)
        own_redis.stop()
        # Started while Redis is away, it waits for it.
        service.end()
        service.start()
        assert service.call("GET", "health").status_code == 503
        own_redis.ensure()
        work.batch()
        assert nonces_of(service.batches(session_id)) == work.nonces[2:]
        service.end()


@pytest.mark.parametrize("trusted", ["", "127.0.0.0/8"])
def test_who_is_told_to_wait_behind_a_proxy(
    service: Service, backend: Backend, trusted: str
) -> None:
    """What a proxy says of its clients is believed if a setting names it; right tokens get in either way."""
    service.env |= {"POCQUEUE_TRUSTED_PROXIES": trusted, "DELEGATION_AUTH_FAILURES": "3"}
    service.start()

    def ask(client: str, token: str) -> int:
        headers = {"X-Forwarded-For": client, "Authorization": f"Bearer {token}"}
        return httpx.get(f"{service.url}/status", headers=headers, timeout=60).status_code

    assert [ask("203.0.113.66", "a-guess") for _ in range(5)] == [401, 401, 401, 429, 429]
    assert ask("198.51.100.7", "a-guess") == (401 if trusted else 429)
    assert ask("198.51.100.7", TOKEN) == ask("203.0.113.66", TOKEN) == 200
    said = service.log.read_text()
    address = "203.0.113.66" if trusted else "127.0.0.1"
    assert f"Refused GET /status from {address}: 429 Too many wrong tokens" in said
    assert "a-guess" not in said


# Replies that are cut off


def _request(service: Service, session_id: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    connection.sendall(
        f"GET /batches/{session_id}?auth_token={TOKEN} HTTP/1.1\r\nHost: service\r\n\r\n".encode()
    )
    return connection


def test_a_reply_that_is_cut_off_loses_nothing(service: Service, backend: Backend) -> None:
    """A client that goes away in the middle of a large reply finds the same batches in its next one."""
    service.start()
    session_id = service.begin(batch_size=4096)
    work = Work(backend, session_id)
    # Several times what the sockets of both sides hold.
    big = " " * 2_000_000
    key = Keys.of_round(session_id, "proofs")
    for i in range(4):
        entry = {"nonces": f"[{100 + i}]{big}", "values": "[0.5]", "queue": "gpu0"}
        backend.client.xadd(key, entry)  # type: ignore[arg-type]
    work.batch()
    with _request(service, session_id) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        # Closed with bytes unread: the other side hears of it at once.
    answer = service.batches(session_id, limit=1)
    assert nonces_of(answer) == [100]
    nonces = nonces_of(answer)
    while nonces[-1:] != work.nonces[-1:]:
        nonces += nonces_of(service.batches(session_id))
    # Asked before the last reply was noted, the service hands it out once more.
    assert list(dict.fromkeys(nonces)) == [100, 101, 102, 103, *work.nonces]


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_a_reply_that_is_cut_on_its_way_comes_again(
    service: Service, backend: Backend, tmp_path: Path, is_encrypted: bool
) -> None:
    """Wherever it is cut, and though the service's kernel had taken the whole of it long before."""
    options, verify = [], None
    if is_encrypted:
        cert, key = make_certificate(tmp_path)
        verify = ssl.create_default_context(cafile=str(cert))
        service.scheme, options = "https", [f"--tls-cert={cert}", f"--tls-key={key}"]
    service.start(*options, verify=verify or True)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(verify=verify or True, headers=headers, timeout=60) as http:
        session_id = http.post(f"{service.url}/start", json=BODY).json()["session_id"]
        work = Work(backend, session_id)
        entry = {"nonces": f"[7]{' ' * 200_000}", "values": "[0.5]", "queue": "gpu0"}
        backend.client.xadd(Keys.of_round(session_id, "proofs"), entry)  # type: ignore[arg-type]
        work.batch()
        for after in (0, 5_000, 100_000, 150_000):
            with cutting(service.port, after) as port, pytest.raises(httpx.TransportError):
                http.get(f"{service.scheme}://127.0.0.1:{port}/batches/{session_id}")
        whole = http.get(f"{service.url}/batches/{session_id}").json()
        assert nonces_of(whole) == [7, *work.nonces]
        noted(backend, session_id)
        assert nonces_of(http.get(f"{service.url}/batches/{session_id}").json()) == []


def test_a_reply_has_a_length_and_is_noted_once_it_arrived(
    service: Service, backend: Backend
) -> None:
    """Before what the client asks next on the same connection, so that it finds no batch twice."""
    service.start()
    session_id = service.begin()
    work = Work(backend, session_id)
    work.batch()
    with _request(service, session_id) as connection:
        received = b""
        while not received.endswith(b"}"):
            received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert nonces_of(json.loads(body)) == work.nonces
    with httpx.Client(params={"auth_token": TOKEN}, timeout=60) as http:
        found = []
        for _ in range(50):
            work.batch()
            found += nonces_of(http.get(f"{service.url}/batches/{session_id}").json())
    assert list(dict.fromkeys([*nonces_of(json.loads(body)), *found])) == work.nonces
    # The first reply of the second connection may have come before the note of the first one.
    assert len(found) - len(set(found)) == 0


def test_polls_at_the_same_time_miss_no_batch(service: Service, backend: Backend) -> None:
    """Several polls of one session may get the same batches, and none is left out."""
    service.start("--workers=2")
    session_id = service.begin()
    work = Work(backend, session_id)

    async def poll(http: httpx.AsyncClient) -> list[int]:
        query = {"auth_token": TOKEN}
        reply = await http.get(f"{service.url}/batches/{session_id}", params=query)
        assert reply.status_code == 200
        return nonces_of(reply.json())

    async def polls() -> list[int]:
        found = []
        async with httpx.AsyncClient(timeout=120) as http:
            for _ in range(20):
                work.batch()
                for nonces in await asyncio.gather(*(poll(http) for _ in range(8))):
                    found += nonces
        return found

    found = asyncio.run(polls())
    backend.store.close(session_id, RoundState.STOPPED, "")
    found += nonces_of(service.batches(session_id))
    assert sorted(set(found)) == work.nonces


def test_redis_gone_in_the_middle_of_a_reply(
    own_backend: Backend, own_redis: RedisServer, child_env: dict[str, str], tmp_path: Path
) -> None:
    """The batches of a reply that could not be noted come again."""
    live_gpus(own_backend)
    with running(child_env | {"POCQUEUE_REDIS_URL": own_redis.url}, tmp_path) as service:
        service.start()
        session_id = service.begin()
        key = Keys.of_round(session_id, "proofs")
        for i in range(4):
            entry = {"nonces": f"[{i}]{' ' * 2_000_000}", "values": "[0.5]", "queue": "gpu0"}
            own_backend.client.xadd(key, entry)  # type: ignore[arg-type]
        with _request(service, session_id) as connection:
            received = len(connection.recv(100))
            # The service waits for this client to read on.
            own_redis.stop()
            while received < 8_000_000:
                received += len(connection.recv(1 << 20))
            said = "batches will be handed over again"
            wait_until(lambda: said in service.log.read_text(), message="a line of the log")
        own_redis.ensure()
        assert nonces_of(service.batches(session_id)) == [0, 1, 2, 3]
        service.end()


# The command


def test_tls(service: Service, tmp_path: Path) -> None:
    """With certificate and key it speaks https, and only that."""
    cert, key = make_certificate(tmp_path)
    context = ssl.create_default_context(cafile=str(cert))
    service.scheme = "https"
    service.start(f"--tls-cert={cert}", f"--tls-key={key}", verify=context)
    assert httpx.get(f"{service.url}/health", verify=context, timeout=60).json() == {"status": "ok"}
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{service.port}/health", timeout=60)
    service.end()


def test_settings_come_from_an_env_file(service: Service, tmp_path: Path) -> None:
    """As operators write it; what the environment has already wins."""
    path = tmp_path / "config.env"
    path.write_text(
        "# big node\n"
        f"export DELEGATION_AUTH_TOKEN={TOKEN}\n"
        "export DELEGATION_MAX_SESSIONS=3\n"
        "DELEGATION_WINDOW_SECONDS=60\n"
    )
    del service.env["DELEGATION_AUTH_TOKEN"]
    service.env["DELEGATION_WINDOW_SECONDS"] = "90"
    service.start(f"--env-file={path}", "--workers=2")
    assert service.call("POST", "start", BODY).json()["expires_in"] == 90
    assert service.call("GET", "status").json()["max_sessions"] == 3
    service.end()


def test_a_port_that_is_taken(service: Service, tmp_path: Path) -> None:
    """Exit code 2 and one sentence."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pocqueue",
                "delegation",
                "serve",
                "--host=127.0.0.1",
                f"--port={port}",
            ],
            env=service.env | {"PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert f"DELEGATION_PORT is {port} on 127.0.0.1" in done.stderr


def test_status_over_http(service: Service, backend: Backend) -> None:
    """The table and the JSON of one token's sessions; a wrong token hears why."""
    service.start()
    session_id = service.begin()
    Work(backend, session_id).batch()

    def status(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "pocqueue",
                "delegation",
                "status",
                f"--url={service.url}",
                *options,
            ],
            env=service.env | {"PYTHONWARNINGS": "ignore"} | env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    table = status().stdout.splitlines()
    assert table[1].split()[:6] == [session_id, "0", "2", "1", "2", "10"]
    assert list(json.loads(status("--json").stdout)["sessions"]) == [session_id]
    refused = status(DELEGATION_AUTH_TOKEN="another-token-than-ours")
    assert refused.returncode == 2
    assert "answers 401: Invalid auth token" in refused.stderr
    service.end()


def test_a_watch_goes_on_until_it_is_told_to_end(service: Service, backend: Backend) -> None:
    """It shows a session that began after it, and Ctrl-C is its ordinary end."""
    watch = subprocess.Popen(
        [sys.executable, "-m", "pocqueue", "delegation", "status", "--watch", "--json"],
        env=service.env | {"PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watch.stdout is not None
    with watch:
        assert watch.stdout.readline() == "{\n"
        session_id = backend.store.create(make_spec(customer="alice"))
        assert any(session_id in line for line in watch.stdout)
        watch.send_signal(signal.SIGINT)
        assert watch.wait(timeout=120) == 0
