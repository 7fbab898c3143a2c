"""`pocqueue hosts serve` as it is, a process with its children, and what kills one of them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from pocqueue.hosts.store import HostStore
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.settings import HostsSettings, Settings
from tests.support.commands import without_settings
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S, wait_until


class Hosts:
    """One `pocqueue hosts serve` with everything of its own: Redis, SQLite, scheduler, gateway."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = Settings(state_dir=folder / "state", redis_url=None)
        port, ws_port = free_port(), free_port()
        self.url, self.ws_url = f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{ws_port}"
        env = without_settings() | {
            "POCQUEUE_STATE_DIR": str(self.settings.state_dir),
            "POCQUEUE_HOSTS_HOST": "127.0.0.1",
            # As servers of this kind have been told so far.
            "PORT": str(port),
            "WS_PORT": str(ws_port),
        }
        self.log = folder / "serve.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pocqueue", "hosts", "serve"],
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=120)
        self.wait_ready()
        self.store = HostStore.open(self.settings, HostsSettings())

    def wait_ready(self) -> None:
        """Wait until everything answers."""

        def is_ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(httpx.TransportError):
                is_good = self.http.get("/readyz").status_code == 200
                if not is_good:
                    time.sleep(1.5)  # not more often than an address may ask
                return is_good
            return False

        wait_until(is_ready, PATIENCE_S, "the gateway")

    def kill_gateway(self) -> None:
        """Kill the gateway's process, and wait for the next one."""
        [gateway] = [
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if any(word.startswith("relay.") for word in child.cmdline())
        ]
        gateway.kill()
        gateway.wait(PATIENCE_S)
        self.wait_ready()

    def kill_redis(self) -> None:
        """Kill the server of Redis, and wait for the next one."""
        self.redis().kill()
        self.wait_ready()

    def redis(self) -> psutil.Process:
        """Return the process of the server of Redis."""
        lock = RedisServer(self.settings.state_dir).lock_path
        return psutil.Process(int(lock.read_text().split()[0]))

    def mine(self, what: str, wallet: str) -> list[dict[str, Any]]:
        """Return a wallet's nodes or jobs, as the older page shows them."""
        found: list[dict[str, Any]] = self.http.get(
            f"/api/{what}/mine", params={"wallet": wallet}
        ).json()
        return found

    def end(self) -> str:
        """End it as an operator would; return what it said."""
        self.store.close()
        self.http.close()
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        assert self.process.returncode == 0, self.log.read_text()
        return self.log.read_text()
