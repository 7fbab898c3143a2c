"""A Redis that fails over: a primary, a replica, and three sentinels that watch them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from redis.backoff import ConstantBackoff, NoBackoff
from redis.retry import Retry

from pocqueue.rounds.store import Keys
from tests.support.ports import free_port
from tests.support.processes import REDIS_SERVER, answers_ping, wait_ready
from tests.support.waiting import wait_until

MASTER = "the-primary"
#: With characters that have a meaning in URLs.
PASSWORD = "p@ss/w%rd"
QUOTED = "p%40ss%2Fw%25rd"
#: Options of both servers. A replica is followed at once, not after five seconds.
SERVER = (
    *("--requirepass", PASSWORD, "--masterauth", PASSWORD, "--save", ""),
    *("--maxmemory-policy", "noeviction", "--repl-diskless-sync-delay", "0"),
)


class FailingOver:
    """Processes of one primary, one replica and three sentinels, all on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("primary", "replica", "one", "two", "three")}
        self.processes: dict[str, subprocess.Popen[str]] = {}

    @property
    def url(self) -> str:
        """Its URL, as operators write it."""
        places = ",".join(f"127.0.0.1:{self.ports[name]}" for name in ("one", "two", "three"))
        return f"redis+sentinel://:{QUOTED}@{places}/0?master={MASTER}"

    def client(self, name: str) -> redis.Redis:
        """Return a client of one of the processes, which fails at once."""
        password = PASSWORD if name in {"primary", "replica"} else None
        return redis.Redis(
            port=self.ports[name],
            password=password,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
        )

    def start(self) -> None:
        """Start all of it; returns once every sentinel knows both servers and the other sentinels."""
        self._run("primary", *SERVER)
        self.follow("replica", "primary")
        for name in ("one", "two", "three"):
            config = self.folder / f"{name}.conf"
            config.write_text(
                f"sentinel monitor {MASTER} 127.0.0.1 {self.ports['primary']} 2\n"
                f"sentinel auth-pass {MASTER} {PASSWORD}\n"
                # Long enough that a busy machine is no reason to take another primary.
                f"sentinel down-after-milliseconds {MASTER} 5000\n"
                f"sentinel failover-timeout {MASTER} 10000\n"
            )
            self._run(name, config=config)
        for name in ("one", "two", "three"):
            with self.client(name) as client:

                def knows_all(client: redis.Redis = client) -> bool:
                    state: Any = client.sentinel_master(MASTER)
                    return (state["num-slaves"], state["num-other-sentinels"]) == (1, 2)

                wait_until(knows_all, message=f"sentinel {name} to know the others")
        self.wait_following("replica")

    def follow(self, name: str, leader: str) -> None:
        """Start a server as the replica of another one."""
        self._run(name, *SERVER, "--replicaof", "127.0.0.1", str(self.ports[leader]))

    def wait_following(self, name: str) -> None:
        """Wait until a server is a replica that has everything."""
        with self.client(name) as client:

            def follows() -> bool:
                with contextlib.suppress(redis.ConnectionError):
                    found: Any = client.info("replication")
                    return bool(found.get("master_link_status") == "up")
                return False

            wait_until(follows, message=f"{name} to follow")

    def fail_over(self) -> None:
        """Ask the sentinels for another primary, as for an upgrade: nobody dies."""
        with self.client("two") as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", MASTER)

    def cut_replication(self, leader: str, follower: str) -> None:
        """Let a replica get nothing more: what is written from now on is lost with its primary."""
        with self.client(follower) as replica, self.client(leader) as primary:
            replica.config_set("masterauth", "wrong")
            primary.execute_command("CLIENT", "KILL", "TYPE", "replica")

            def is_alone() -> bool:
                found: Any = primary.info("replication")
                return bool(found["connected_slaves"] == 0)

            wait_until(is_alone, message=f"{leader} to be alone")

    def checked(self, round_id: str, name: str) -> int:
        """Return how many nonces of a round a server has counted."""
        with self.client(name) as client:
            client.set_retry(Retry(ConstantBackoff(0.1), 20))
            return int(client.hget(Keys.of_round(round_id, "round"), "checked") or 0)

    def kill(self, name: str) -> None:
        """Kill a process as if its machine had lost power."""
        process = self.processes.pop(name)
        process.kill()
        process.wait(timeout=120)

    def wait_leading(self, name: str) -> None:
        """Wait until a server is the primary."""
        with self.client(name) as client:

            def leads() -> bool:
                # A server that becomes the primary closes what is connected to it.
                with contextlib.suppress(redis.ConnectionError):
                    return bool(client.role()[0] == "master")
                return False

            wait_until(leads, message=f"{name} to lead")

    def close(self) -> None:
        """End all of it."""
        for process in self.processes.values():
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=120)

    def _run(self, name: str, *options: str, config: Path | None = None) -> None:
        place = ["--port", str(self.ports[name]), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        before = [] if config is None else [str(config), "--sentinel"]
        with (self.folder / f"{name}.log").open("w") as log:
            self.processes[name] = subprocess.Popen(
                [str(REDIS_SERVER), *before, *place, *options], stdout=log, stderr=log, text=True
            )
        with self.client(name) as client:
            wait_ready(lambda: answers_ping(client), self.processes[name])


@contextlib.contextmanager
def failing_over(folder: Path) -> Iterator[FailingOver]:
    """Run a Redis that fails over within the block."""
    found = FailingOver(folder)
    try:
        found.start()
        yield found
    finally:
        found.close()
