"""One connection of an agent to a server on a real socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from pocqueue.hosts.agent.connection import Connection, Introduction
from pocqueue.hosts.agent.identity import Identity
from pocqueue.hosts.agent.jobs import Jobs
from pocqueue.hosts.agent.messages import HostInfo
from pocqueue.hosts.agent.sandbox.none import NoSandbox
from pocqueue.hosts.agent.spool import Spool
from pocqueue.hosts.agent.terms import Terms
from pocqueue.hosts.wire import Heartbeat
from tests.support.hosts_server import hosts_server
from tests.support.waiting import PATIENCE_S


async def test_a_server_that_answers_no_heartbeat_is_left(tmp_path: Path) -> None:
    """As long as it answers the connection lasts; no ping is needed for that."""
    async with hosts_server() as server:
        with Spool(tmp_path / "spool") as spool:
            jobs = Jobs(spool, NoSandbox("none"), Terms(frozenset(), 1024))
            identity = Identity.open(tmp_path, server.endpoint)
            said = Introduction(HostInfo(hostname="a", os="b", gpus=()), "none", ("test",), "1")
            async with connect(server.endpoint, ping_interval=None) as socket:
                connection = Connection(
                    socket, identity, "token-one", jobs, said, heartbeat_s=0.01, answer_s=PATIENCE_S
                )
                running = asyncio.create_task(connection.run())
                await server.next(Heartbeat, 3)
                assert not running.done()
                connection.answer_s = 0.2
                # What it waits for now has the longer time still; an answer that comes is the last of these.
                await server.next(Heartbeat, len(server.of(Heartbeat)) + 3)
                server.is_silent = True
                with pytest.raises(ExceptionGroup) as ended:
                    await running
    assert ended.group_contains(ConnectionError, match=r"said nothing for 0\.21 s")
