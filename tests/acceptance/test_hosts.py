"""`pocqueue hosts serve` as it is, with agents over real sockets: the first hour of an owner, and hard times."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from pocqueue.hosts.records import Attempt, NewJob
from pocqueue.hosts.store import HostStore
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.relays import TTL_MS
from pocqueue.settings import HostsSettings, Settings
from tests.hosts.agents import Agent, NewAgent, OldAgent
from tests.hosts.parts import new_wallet, sleep
from tests.support.commands import without_settings
from tests.support.delegation_parts import free_port
from tests.support.stack import PATIENCE_S
from tests.support.waiting import wait_until

#: Longer than it takes until a gateway that says nothing is taken for gone.
OUTAGE_S = max(1.3 * TTL_MS / 1000, float(os.environ.get("TEST_OUTAGE_S", "0")))


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


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """A running service."""
    with tempfile.TemporaryDirectory(prefix="pq-") as folder:
        hosts = Hosts(Path(folder))
        try:
            yield hosts
        finally:
            hosts.end()


async def next_job(agent: Agent, node_id: str) -> dict[str, Any]:
    """Beat until a job comes; return it."""
    for _ in range(int(PATIENCE_S)):
        await agent.send(type="heartbeat", nodeId=node_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                return await agent.of_type("job")
    raise AssertionError("no job came")


async def test_the_first_minute_of_an_owner(hosts: Hosts) -> None:
    """Two ports, an agent as others have written them: a token, Online, a job after 5 s, 5 s of work, 0.05."""
    wallet = new_wallet()
    token = hosts.http.post("/api/nodes/issue-token", json={"wallet": wallet}).json()["token"]
    async with OldAgent(hosts.ws_url) as agent:
        node_id = await agent.register(token)
        [node] = hosts.mine("nodes", wallet)
        assert (node["id"], node["status"], node["earned"]) == (node_id, "online", 0)
        job = await agent.do_job()
        assert job["command"] == "sleep 5"
        [done] = hosts.mine("jobs", wallet)
        assert (done["id"], done["status"], done["type"]) == (job["id"], "completed", "test")
        assert done["duration"] >= 5
        [node] = hosts.mine("nodes", wallet)
        assert node["earned"] == pytest.approx(0.05)  # five seconds, however long it took
    assert hosts.store.ledger.differences() == []


async def test_redis_is_away_for_long(hosts: Hosts) -> None:
    """Longer than gateways are taken for gone: sockets stay, machines join, what ends is kept, the next job comes."""
    token = hosts.store.owners.issue_token(new_wallet(), proven=True).token
    redis = hosts.redis()
    async with NewAgent(hosts.ws_url) as agent, OldAgent(hosts.ws_url) as late:
        node_id = await agent.register(token)
        job = await next_job(agent, node_id)
        redis.suspend()
        try:
            assert (await agent.result(job, seconds=5.2))["type"] == "ack"
            other = hosts.store.owners.issue_token(new_wallet(), proven=True).token
            late_id = await late.register(other)
            new: NewJob = sleep(0, only_node=node_id)
            job_id = hosts.store.jobs.submit(new).id
            until_s = time.monotonic() + OUTAGE_S
            while time.monotonic() < until_s:
                for one, its_id in ((agent, node_id), (late, late_id)):
                    assert await one.ask(type="heartbeat", nodeId=its_id) == {"type": "ack"}
                await asyncio.sleep(1)
        finally:
            redis.resume()
        job = await next_job(agent, node_id)
        assert job["id"] == job_id
        assert (await agent.result(job))["type"] == "ack"
        await next_job(late, late_id)
    assert len(hosts.store.jobs.attempts(job_id)) == 1
    assert hosts.store.ledger.differences() == []


@pytest.mark.parametrize("kill", [Hosts.kill_gateway, Hosts.kill_redis])
async def test_killed_in_a_job(hosts: Hosts, kill: Callable[[Hosts], None]) -> None:
    """The gateway or Redis: the agent comes back or stays, the result counts once, the next job comes."""
    token = hosts.store.owners.issue_token(new_wallet(), proven=True).token
    async with NewAgent(hosts.ws_url) as agent:
        node_id = await agent.register(token)
        key = agent.key
        job = await next_job(agent, node_id)
        killing = asyncio.create_task(asyncio.to_thread(kill, hosts))
        has = [{"id": job["id"], "attempt": job["attempt"]}]
        while not killing.done():
            # However long it takes to be back: a machine that lives keeps its job.
            with contextlib.suppress(ConnectionClosed):
                await agent.send(type="heartbeat", nodeId=node_id, jobs=has)
            await asyncio.wait([killing], timeout=5)
        await killing
        if kill is Hosts.kill_redis:
            # The socket stays, and what it says is taken.
            assert (await agent.result(job, seconds=5.2))["type"] == "ack"
    async with NewAgent(hosts.ws_url, key) as agent:
        assert (await agent.resume(node_id, jobs=has))["type"] == "registered"
        # Again, as its ack may have been lost.
        assert (await agent.result(job, seconds=5.2))["type"] == "ack"
        [attempt] = hosts.store.jobs.attempts(job["id"])
        assert isinstance(attempt, Attempt)
        assert str(attempt.outcome) == "completed"
        assert attempt.micro <= 50_000
        new: NewJob = sleep(0, only_node=node_id)
        job_id = hosts.store.jobs.submit(new).id
        job = await next_job(agent, node_id)
        assert job["id"] == job_id
        assert (await agent.result(job))["type"] == "ack"
    assert len(hosts.store.jobs.attempts(job_id)) == 1
    assert hosts.store.ledger.differences() == []
