"""A real Redis server that answers but refuses, in each of the ways that pass by themselves."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import redis

from tests.support.processes import REDIS_SERVER, connect
from tests.support.waiting import wait_until

Refusal = Literal["MISCONF", "READONLY", "MASTERDOWN", "NOREPLICAS", "OOM"]
REFUSALS: tuple[Refusal, ...] = get_args(Refusal)


@dataclass
class RefusingRedis:
    """A server, and a client with all rights on it."""

    client: redis.Redis
    url: str
    _folder: Path

    def refuse(self, how: Refusal) -> None:
        """Refuse from now on, until `heal`."""
        client = self.client
        match how:
            case "MISCONF":
                # It cannot save to a folder that is gone.
                self._folder.rmdir()
                client.config_set("save", "3600 1000000")
                client.bgsave()
                wait_until(self._failed_to_save, message="the failure to save")
            case "READONLY":
                client.replicaof("127.0.0.1", 1)
            case "MASTERDOWN":
                client.config_set("replica-serve-stale-data", "no")
                client.replicaof("127.0.0.1", 1)
            case "NOREPLICAS":
                client.config_set("min-replicas-to-write", 1)
            case "OOM":
                client.config_set("maxmemory", 1)

    def heal(self) -> None:
        """Take everything again."""
        client = self.client
        client.config_set("save", "")
        self._folder.mkdir(exist_ok=True)
        client.replicaof("no", "one")
        client.config_set("replica-serve-stale-data", "yes")
        client.config_set("min-replicas-to-write", 0)
        client.config_set("maxmemory", 0)

    @contextlib.contextmanager
    def refusing(self, how: Refusal) -> Iterator[None]:
        """Refuse within this block."""
        self.refuse(how)
        try:
            yield
        finally:
            self.heal()

    def _failed_to_save(self) -> bool:
        return str(self.client.info("persistence")["rdb_last_bgsave_status"]) == "err"

    def refused(self) -> int:
        """Return how many commands were refused or failed so far."""
        stats: Any = self.client.info("stats")
        return int(stats["total_error_replies"])

    def wait_refused(self, times: int, check: Callable[[], object] = lambda: None) -> None:
        """Wait until so many more commands were refused, calling `check` meanwhile."""
        before = self.refused()

        def enough() -> bool:
            check()
            return self.refused() - before >= times

        wait_until(enough, message=f"{times} refusals")


@contextlib.contextmanager
def refusing_redis() -> Iterator[RefusingRedis]:
    """Run such a server, with nothing in it and nothing on disk."""
    # Not below pytest's folder: that path is too long for a socket.
    with tempfile.TemporaryDirectory(prefix="pq-") as name:
        folder, socket = Path(name, "data"), Path(name, "redis.sock")
        folder.mkdir()
        options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", ""]
        process = subprocess.Popen(
            [REDIS_SERVER, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_until(socket.exists, message="the server's socket")
            with connect(socket) as client:
                yield RefusingRedis(client, f"unix://{socket}", folder)
        finally:
            process.terminate()
            process.wait(timeout=120)
