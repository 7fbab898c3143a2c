"""What a gateway of GPU hosts takes for its agents, and how quick it is with thousands of them connected."""

from __future__ import annotations

import asyncio
import gc
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import uvloop

from benchmarks.effort import FULL, Effort
from benchmarks.hosts.crowd import Crowd
from benchmarks.hosts.gateway import Gateway, hosts_stack
from benchmarks.hosts.nodes import Seat, write_nodes
from benchmarks.hosts.page import Page
from benchmarks.hosts.sandbox import sandbox_over_command
from benchmarks.services import wait_until
from benchmarks.stats import Figure, Sample, percentile
from pocqueue.hosts.gateway.app import max_sockets, raise_file_limit
from pocqueue.hosts.wire import HEARTBEAT_S
from pocqueue.settings import Settings
from tests.support.tls import make_certificate

#: Connected agents, as far as the system lets a process open files.
NUM_AGENTS = 5000
NUM_SMOKE_AGENTS = 8
#: For which heartbeats are counted: two of each agent.
MEASURE_S = 30.0
#: From the last agent's coming in until all is done that follows from that.
SETTLE_S = 10.0
NUM_JOBS = 30
NUM_CHANGES = 20
_PATIENCE_S = 600.0


def hosts_alone(effort: Effort = FULL, num_agents: int = NUM_AGENTS) -> list[Figure]:
    """Measure everything, with a gateway of its own; some minutes."""
    with tempfile.TemporaryDirectory(prefix="pocqueue-hosts-") as name:
        folder = Path(name)
        settings = Settings.load().model_copy(update={"state_dir": folder, "redis_url": None})
        with hosts_stack(settings, folder / "logs", gpus=0) as (_, gateway):
            return hosts(gateway, folder, effort, num_agents)


def hosts_over_tls(effort: Effort = FULL, num_agents: int = NUM_AGENTS) -> list[Figure]:
    """Measure the memory of agents whose connections are TLS, with a gateway of its own; a minute."""
    with tempfile.TemporaryDirectory(prefix="pocqueue-hosts-") as name:
        folder = Path(name)
        settings = Settings.load().model_copy(update={"state_dir": folder, "redis_url": None})
        certificate = make_certificate(folder)
        with hosts_stack(settings, folder / "logs", gpus=0, certificate=certificate) as (
            _,
            gateway,
        ):
            seats, crowd = _seats(gateway, folder, effort, num_agents)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return [runner.run(_measure_memory(gateway, seats, effort, f"{crowd}, TLS"))]


def hosts(
    gateway: Gateway, state_dir: Path, effort: Effort = FULL, num_agents: int = NUM_AGENTS
) -> list[Figure]:
    """Measure everything.

    Args:
        gateway: that runs, without nodes.
        state_dir: of its database.
        effort: how much of it.
        num_agents: that connect, as far as this process may open files.
    """
    seats, crowd = _seats(gateway, state_dir, effort, num_agents)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(_measure(gateway, seats, effort, crowd))
    return figures + sandbox_over_command(effort)


def _seats(
    gateway: Gateway, state_dir: Path, effort: Effort, num_agents: int
) -> tuple[list[Seat], str]:
    """Wait for the gateway, and return the nodes of its agents, and what these are called."""
    raise_file_limit()
    # This process has as many sockets as the gateway, and some files beside.
    wanted = num_agents if effort.is_full else NUM_SMOKE_AGENTS
    num = min(wanted, max_sockets() - 100)
    wait_until(lambda: _is_ready(gateway), _PATIENCE_S, "the gateway")
    return write_nodes(state_dir, num), crowd_name(num, wanted)


def _is_ready(gateway: Gateway) -> bool:
    url, verify = f"{gateway.url}/readyz", gateway.tls or True
    try:
        return httpx.get(url, timeout=5, trust_env=False, verify=verify).status_code == 200
    except httpx.TransportError:
        return False


def crowd_name(num: int, wanted: int) -> str:
    """Say how many agents there are, and why not as many as were wanted."""
    if num == wanted:
        return f"{num:,} agents"
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"{num:,} of {wanted:,} agents, as {files:,} files may be open"


async def _measure(
    gateway: Gateway, seats: Sequence[Seat], effort: Effort, name: str
) -> list[Figure]:
    empty = await _memory_without(gateway, seats[:1])
    heartbeat_s, pause = (HEARTBEAT_S, 1.0) if effort.is_full else (0.1, 0.05)
    async with Crowd(gateway.ws_url, seats, heartbeat_s, pause) as crowd:
        await _until(lambda: crowd.num_in == len(seats), "the agents")
        await asyncio.sleep(SETTLE_S * effort.share)
        figures = [_memory(gateway, empty, len(seats), name)]
        gc.collect()
        gc.freeze()  # a pause of this process is none of the gateway's
        figures += await _heartbeats(gateway, crowd, effort, name)
        async with httpx.AsyncClient(
            base_url=gateway.url,
            headers={"Authorization": f"Bearer {gateway.admin_token}"},
            trust_env=False,
            timeout=60,
        ) as client:
            figures.append(await _submits(client, crowd, effort, name))
            figures.append(await _changes(client, crowd, effort, name))
        figures.append(await _restart(gateway, crowd, name))
        gc.unfreeze()
    return figures


async def _measure_memory(
    gateway: Gateway, seats: Sequence[Seat], effort: Effort, name: str
) -> Figure:
    empty = await _memory_without(gateway, seats[:1])
    async with Crowd(gateway.ws_url, seats, tls=gateway.tls) as crowd:
        await _until(lambda: crowd.num_in == len(seats), "the agents")
        await asyncio.sleep(SETTLE_S * effort.share)
        return _memory(gateway, empty, len(seats), name, most_kib=70)


async def _memory_without(gateway: Gateway, seats: Sequence[Seat]) -> int:
    """Return the bytes of a gateway behind its first agent: what that makes it load is no agent's."""
    async with Crowd(gateway.ws_url, seats, tls=gateway.tls) as first:
        await _until(lambda: first.num_in == 1, "the first agent")
    return gateway.process().memory_info().rss


def _memory(gateway: Gateway, empty: int, num: int, name: str, most_kib: int = 45) -> Figure:
    kib = (gateway.process().memory_info().rss - empty) / num / 1024
    return _at_most(
        f"hosts: memory of an agent, {name}",
        Sample([kib], f"KiB, of a gateway with {empty / 2**20:.0f} MiB"),
        kib,
        f"at most {most_kib} KiB",
        most_kib,
    )


async def _heartbeats(gateway: Gateway, crowd: Crowd, effort: Effort, name: str) -> list[Figure]:
    process = gateway.process()
    crowd.acks.clear()
    began, before = time.perf_counter(), process.cpu_times()
    await asyncio.sleep(effort.seconds(MEASURE_S))
    now, wall_s = process.cpu_times(), time.perf_counter() - began
    share = (now.user + now.system - before.user - before.system) / wall_s
    acks = Sample([1000 * seconds for seconds in crowd.acks], "ms")
    late = percentile(acks.values, 99)
    every = f"a heartbeat every {crowd.heartbeat_s:g} s"
    return [
        _at_most(
            f"hosts: CPU of the gateway, {name}, {every}",
            Sample([share], "of a core"),
            share,
            "at most 0.1 of a core",
            0.1,
        ),
        _at_most(f"hosts: heartbeat to ack, {name}, {every}", acks, late, "99 % within 50 ms", 50),
    ]


async def _submits(client: httpx.AsyncClient, crowd: Crowd, effort: Effort, name: str) -> Figure:
    times = []
    body = {"name": "sleep", "parameters": {"seconds": 0}}
    for _ in range(effort.runs(NUM_JOBS)):
        began = time.perf_counter()
        answer = await client.post("/api/jobs", json=body)
        job_id = answer.raise_for_status().json()["id"]
        await _until(lambda: job_id in crowd.jobs, "a job")  # noqa: B023 - awaited here
        times.append(1000 * (crowd.jobs[job_id] - began))
        await asyncio.sleep(0.1)  # its result is on its way
    measured = Sample(times, "ms")
    return _at_most(
        f"hosts: job submitted to its agent, {name}",
        measured,
        measured.median,
        "median at most 100 ms",
        100,
    )


async def _changes(client: httpx.AsyncClient, crowd: Crowd, effort: Effort, name: str) -> Figure:
    agent, times = crowd.agents[0], []
    async with Page(client, agent.seat.wallet) as page:
        node_id = agent.seat.node_id
        await page.shown(node_id, "online")
        for turn in range(effort.runs(NUM_CHANGES)):
            # A page that has just changed changes once more a little later.
            await asyncio.sleep(0.3)
            if turn % 2 == 0:
                began, status = time.perf_counter(), "offline"
                await agent.stop()
                at = await page.shown(node_id, status)
            else:
                agent.start()
                at = await page.shown(node_id, "online")
                began = agent.resumed_at
            times.append(1000 * (at - began))
        if not agent.is_in:
            agent.start()
            await _until(lambda: agent.is_in, "the page's agent")
    measured = Sample(times, "ms")
    return _at_most(
        f"hosts: a node goes or comes, to the line at its owner's page, {name}",
        measured,
        percentile(times, 95),
        "95 % within 500 ms",
        500,
    )


async def _restart(gateway: Gateway, crowd: Crowd, name: str) -> Figure:
    began = time.perf_counter()
    gateway.process().kill()
    await _until(lambda: crowd.num_in == 0, "the end of all sockets")
    await _until(lambda: crowd.num_in == len(crowd.agents), "the agents' return")
    seconds = [agent.joined_at - began for agent in crowd.agents]
    return _at_most(
        f"hosts: gateway killed until all are back, {name}",
        Sample(seconds, "s"),
        max(seconds),
        "all within 60 s",
        60,
    )


async def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_PATIENCE_S:.0f} s for {what}")
        await asyncio.sleep(0.005)


def _at_most(name: str, measured: Sample, value: float, target: str, most: float) -> Figure:
    return Figure(name, measured, None, "", value, target, value <= most)
