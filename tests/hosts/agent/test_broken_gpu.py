"""What changes while the agent runs: a GPU that breaks is told at once, and the others go on; the rest after a week."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from typing_extensions import override

from pocqueue.hosts.agent import agent as module
from pocqueue.hosts.agent.agent import Agent
from pocqueue.hosts.agent.gpu_facts import Driver, GpuFacts, Lost
from pocqueue.hosts.agent.identity import Identity
from pocqueue.hosts.agent.options import Options
from pocqueue.hosts.agent.sandbox.none import NoSandbox
from pocqueue.hosts.agent.spool import Spool
from pocqueue.hosts.protocol import HEARTBEAT_S
from pocqueue.hosts.wire import Register, Resume, SelfTest
from tests.hosts.agent.self_test.test_gpus import changed
from tests.hosts.agent.self_test.test_xids import line
from tests.support.hosts_server import HostsServer, hosts_server
from tests.support.waiting import until

GOOD = changed(bus="0000:b3:00")
BAD = changed(bus="0000:65:00", uuid="GPU-b", index=1)


class _Facts(GpuFacts):
    driver = Driver("580.95", (13, 0), (GOOD, BAD))

    @override
    def read(self) -> Driver:
        return self.driver


@asynccontextmanager
async def _running(
    folder: Path, facts: GpuFacts, heartbeat_s: float = HEARTBEAT_S
) -> AsyncIterator[HostsServer]:
    """Run an agent with these GPUs, whose kernel's log is the file `kmsg`; yield its server."""
    log = folder / "kmsg"
    log.write_text("")
    async with hosts_server() as server:
        options = Options(
            server.endpoint,
            folder,
            "token-one",
            heartbeat_s=heartbeat_s,
            matrix_s=0,
            sandbox="none",
        )
        with Spool(folder / "results") as spool:
            identity = Identity.open(folder, server.endpoint)
            agent = Agent(options, identity, spool, NoSandbox("no reason"), facts, log)
            running = asyncio.create_task(agent.run())
            yield server
            agent.stop()
            await running


async def test_a_machine_is_tested_again_after_a_week(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the server told what it has by then: a card that was put in, say."""
    monkeypatch.setattr(module, "SELF_TEST_S", 0.2)  # the week
    facts = _Facts()
    facts.driver = Driver("580.95", (13, 0), (GOOD,))
    async with _running(tmp_path, facts) as server:
        assert len((await server.next(Register)).host_info.gpus) == 1
        facts.driver = Driver("580.95", (13, 0), (GOOD, BAD))
        await until(lambda: any(len(one.host_info.gpus) == 2 for one in server.of(Resume)))


async def test_a_machine_that_comes_back_with_other_gpus_is_tested_again(tmp_path: Path) -> None:
    """And only then: a connection that breaks is no reason by itself."""
    facts = _Facts()
    facts.driver = Driver("580.95", (13, 0), (GOOD,))
    async with _running(tmp_path, facts) as server:
        before = (await server.next(SelfTest)).rows
        assert server.socket is not None
        await server.socket.close()
        assert (await server.next(SelfTest, 2)).rows == before
        facts.driver = Driver("580.95", (13, 0), (GOOD, BAD))
        await server.socket.close()
        said = await server.next(Resume, 2)
        assert [gpu.uuid for gpu in said.host_info.gpus] == [GOOD.uuid, BAD.uuid]
        rows = (await server.next(SelfTest, 3)).rows
        assert {row.gpu for row in rows} == {None, GOOD.uuid, BAD.uuid}


async def test_a_gpu_that_breaks_is_out_at_once(tmp_path: Path) -> None:
    """By the kernel's log; one that does not even answer any more has a row, and the other one stays."""
    log, facts = tmp_path / "kmsg", _Facts()
    async with _running(tmp_path, facts, heartbeat_s=0.02) as server:
        said = await server.next(Register)
        assert [gpu.healthy for gpu in said.host_info.gpus] == [True, True]
        with log.open("a") as file:
            file.write(line(31, at_s=time.monotonic()) + "\n")  # a program's own fault
            file.write(line(79, at_s=time.monotonic()) + "\n")
        resumed = await server.next(Resume)
        assert [(gpu.uuid, gpu.healthy) for gpu in resumed.host_info.gpus] == [
            (GOOD.uuid, True),
            (BAD.uuid, False),
        ]
        rows = (await server.next(SelfTest, 2)).rows
        [row] = [row for row in rows if row.name == "gpu_xid" and row.gpu == BAD.uuid]
        assert row.measured.startswith("Xid 79, 0 min ago: it fell off the bus")
        facts.driver = Driver("580.95", (13, 0), (GOOD,), (Lost(1, BAD.bus, "GPU is lost"),))
        with log.open("a") as file:
            file.write(line(79, at_s=time.monotonic()) + "\n")
        resumed = await server.next(Resume, 2)
        assert [gpu.uuid for gpu in resumed.host_info.gpus] == [GOOD.uuid]
        rows = (await server.next(SelfTest, 3)).rows
        [row] = [row for row in rows if row.name == "gpu_lost"]
        assert row.measured.startswith("GPU 1 does not answer: GPU is lost; Xid 79")
