"""`pocqueue hosts serve` as it is, with agents over real sockets: the first hour of an owner, and hard times."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from pocqueue.hosts.records import Attempt, NewJob
from pocqueue.rounds.relays import TTL_MS
from tests.hosts.agents import Agent, NewAgent, OldAgent
from tests.hosts.parts import new_wallet, sleep
from tests.support.hosts_service import Hosts
from tests.support.waiting import PATIENCE_S

#: Longer than it takes until a gateway that says nothing is taken for gone.
OUTAGE_S = max(1.3 * TTL_MS / 1000, float(os.environ.get("TEST_OUTAGE_S", "0")))


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


@pytest.mark.long
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
