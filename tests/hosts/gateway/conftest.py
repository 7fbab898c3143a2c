"""A real gateway on two ports, with real sockets and a real database; its tasks run in a thread, without Celery."""

from __future__ import annotations

import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from limits.aio import strategies
from limits.aio.storage import memory
from pydantic import SecretStr

from pocqueue.hosts import wallets
from pocqueue.hosts.gateway.messenger import What
from pocqueue.hosts.gateway.service import GatewayService
from pocqueue.hosts.gateway.timings import GatewayTimings
from pocqueue.hosts.store import HostStore
from pocqueue.settings import HostsSettings, Settings
from tests.hosts.parts import sleep
from tests.support.commands import without_settings
from tests.support.processes import with_us

ADMIN = "a-token-of-the-admin"


class LocalMessenger:
    """Runs what is asked of it, in order, in a thread; may be stopped, as a Redis that is away is."""

    def __init__(self) -> None:
        self.service: GatewayService
        self.is_away = False
        self._work: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def look(self) -> None:
        self._put(lambda: self.service.sweep())

    def place(self, job_id: str) -> None:
        self._put(lambda: self.service.place(job_id))

    def tell(self, relay: str, what: What, node_id: str, job_id: str = "", n: int = 0) -> None:
        assert relay == "here"
        self._put(lambda: self.service.tell(str(what), node_id, job_id, n))

    def leave(self) -> None:
        """Take nothing from now on, and return once what was asked before is done."""
        self.is_away, done = True, threading.Event()
        self._work.put(done.set)
        assert done.wait(60)

    def end(self) -> None:
        """Run what was asked, and end."""
        self._work.put(None)
        self._thread.join()

    def _put(self, work: Callable[[], Any]) -> None:
        if not self.is_away:
            self._work.put(work)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


class Gateway:
    """A gateway and its clients. Made by `make`, which may make one again on the same database."""

    def __init__(
        self,
        state_dir: Path,
        hosts: HostsSettings,
        timings: GatewayTimings,
        limits_factor: float,
        trusted_proxies: str | None = None,
    ) -> None:
        self.messenger = LocalMessenger()
        settings = Settings(state_dir=state_dir, trusted_proxies=trusted_proxies)
        self.service = GatewayService(
            *("here", settings, self.messenger),
            hosts=hosts,
            timings=timings,
            limits_factor=limits_factor,
        )
        self.messenger.service = self.service
        self.service.start()
        first, second = (one.getsockname()[1] for one in self.service.listeners)
        self.url = f"http://127.0.0.1:{first}"
        self.ws_url = f"ws://127.0.0.1:{second}"
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=120)
        self.wallet = wallets.encode(secrets.token_bytes(32))

    @property
    def store(self) -> HostStore:
        """The gateway's store; tests may look and change, as other processes do."""
        return self.service.hub.store

    def token(self, wallet: str | None = None) -> str:
        """Get a token as the older page does."""
        reply = self.http.post("/api/nodes/issue-token", json={"wallet": wallet or self.wallet})
        assert reply.status_code == 200, reply.text
        return str(reply.json()["token"])

    def nodes(self) -> list[dict[str, Any]]:
        """Return the wallet's nodes, as the older page shows them."""
        reply = self.http.get("/api/nodes/mine", params={"wallet": self.wallet})
        assert reply.status_code == 200, reply.text
        found: list[dict[str, Any]] = reply.json()
        return found

    def jobs(self) -> list[dict[str, Any]]:
        """Return the jobs of the wallet's nodes, as the older page shows them."""
        reply = self.http.get("/api/jobs/mine", params={"wallet": self.wallet})
        assert reply.status_code == 200, reply.text
        found: list[dict[str, Any]] = reply.json()
        return found

    def admin(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Ask as an admin."""
        headers = {"Authorization": f"Bearer {ADMIN}"}
        return self.http.request(method, path, headers=headers, **more)

    def submit(self, **changes: Any) -> str:
        """Queue a job of an admin, and have it placed; return its id."""
        job = self.store.jobs.submit(sleep(0, **changes))
        self.messenger.place(job.id)
        return job.id

    def end(self) -> None:
        """End it, as an operator would; may be called again."""
        self.http.close()
        self.messenger.end()
        self.service.close()


@pytest.fixture
def still_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no window of a limit pass while a test, however slow, uses it up."""
    now_s = time.time()
    for module in (memory, strategies):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: now_s))


@pytest.fixture
def make(tmp_path: Path, database_url: str) -> Iterator[Callable[..., Gateway]]:
    """Return a function that makes a gateway on one of the two databases.

    It takes changes of its settings, of its timings as ``timings``, the factor of its limits, and whose forwarded addresses it believes.
    """
    made: list[Gateway] = []

    def start(
        *,
        timings: dict[str, Any] | None = None,
        limits_factor: float = 1000.0,
        trusted_proxies: str | None = None,
        **changes: Any,
    ) -> Gateway:
        fields: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": 0,
            "ws_port": 0,
            "admin_token": SecretStr(ADMIN),
            "database_url": SecretStr(database_url),
            # A test may stand still for longer than a machine may be silent.
            "offline_seconds": 3600,
        }
        quick: dict[str, Any] = {
            "flush_s": 0.05,
            "loads_s": 0.05,
            "first_job_s": 0.05,
            "test_job_s": 0,
            "ping_s": 120.0,
            "send_s": 120.0,
            "register_s": 600.0,
        }
        gateway = Gateway(
            tmp_path,
            HostsSettings(**fields | changes),
            GatewayTimings(**quick | (timings or {})),
            limits_factor,
            trusted_proxies,
        )
        made.append(gateway)
        return gateway

    yield start
    for gateway in made:
        gateway.end()


class Machine:
    """A machine with `pocqueue agent` as its owner starts it, which takes test jobs alone."""

    def __init__(self, folder: Path, gateway: Gateway, token: str) -> None:
        self.log = folder / "agent.log"
        self.state_dir = folder / "agent-state"
        agent = (sys.executable, "-m", "pocqueue", "agent")
        self._argv = with_us(*agent, "--endpoint", gateway.ws_url)
        self._env = without_settings() | {
            "POCQUEUE_STATE_DIR": str(self.state_dir),
            "HN_NODE_TOKEN": token,
            "HN_SANDBOX": "none",
        }
        self.start()

    def start(self, *options: str) -> None:
        """Start the agent, with the same token each time."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._argv, *options], env=self._env, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """Kill it; may be called again."""
        self.process.kill()
        self.process.wait()

    def said(self, words: str) -> bool:
        """Say whether the agent has written something."""
        return words in self.log.read_text()


@pytest.fixture
def machine(tmp_path: Path, gateway: Gateway) -> Iterator[Machine]:
    """A machine that joins the gateway."""
    machine = Machine(tmp_path, gateway, gateway.token())
    yield machine
    machine.kill()


@pytest.fixture
def gateway(make: Callable[..., Gateway]) -> Gateway:
    """A gateway at work."""
    return make()
