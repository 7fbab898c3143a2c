"""Locks: one run for a conf, one run for a server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest
import pytest_asyncio

from pocqueue.deploy import connection
from pocqueue.deploy.connection import Connection
from pocqueue.deploy.errors import Locked, OutcomeUnknown, Unreachable
from pocqueue.deploy.lock import local_lock, server_lock, who_we_are
from pocqueue.deploy.words import Command
from tests.deploy.server import Fault, Server, connected, serving
from tests.support.waiting import until


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server of the test's own."""
    async with serving(tmp_path) as server:
        yield server


def test_a_folder_has_one_run(tmp_path: Path) -> None:
    """The second is told the first one's process, and leaves with 3."""
    again = local_lock(tmp_path)
    with local_lock(tmp_path), pytest.raises(Locked, match=str(os.getpid())) as raised, again:
        pass
    assert raised.value.exit_code == 3
    with local_lock(tmp_path):
        pass


def test_runs_tell_themselves_apart() -> None:
    """Also two of the same process, in the same second."""
    now = datetime(2026, 1, 2).astimezone()
    assert who_we_are(now) != who_we_are(now)
    assert "2026-01-02" in who_we_are(now)


async def test_a_server_has_one_run(server: Server, tmp_path: Path) -> None:
    """The second is told who has it; the lock is free when the first ends, and when its connection breaks."""
    state = str(server.root / "state")

    async def is_free() -> bool:
        async with connected(server, tmp_path) as other:
            try:
                async with server_lock(other, "probe", state_dir=state):
                    return True
            except Locked:
                return False

    async with connected(server, tmp_path) as first:
        async with (
            server_lock(first, "alice, run 1", state_dir=state),
            connected(server, tmp_path) as second,
        ):
            with pytest.raises(Locked, match="alice, run 1"):
                async with server_lock(second, "bob, run 2", state_dir=state):
                    pass
        await until(is_free)
        async with server_lock(first, "alice, run 1", state_dir=state):
            assert not await is_free()
            server.drop()
            await until(is_free)


async def test_a_server_that_allows_few_sessions(server: Server, tmp_path: Path) -> None:
    """Also one that opens a single session a connection, and commands go over another one then; none is told."""
    state = str(server.root / "state")
    server.max_sessions = 2
    async with connected(server, tmp_path) as first, server_lock(first, "alice", state_dir=state):
        echo = Command(("echo", "x"))
        done = await asyncio.gather(*(first.run(echo) for _ in range(10)))
        assert [result.stdout for result in done] == ["x\n"] * 10
        server.max_sessions = 1
        done = await asyncio.gather(*(first.run(echo) for _ in range(10)))
        assert [result.stdout for result in done] == ["x\n"] * 10
        await first.write_file(str(server.root / "file"), b"x", 0o600)
        assert (server.num_connections, (server.root / "file").read_bytes()) == (2, b"x")
        server.max_sessions = 0
        with pytest.raises(Unreachable, match="MaxSessions"):
            await first.run(echo)


async def test_commands_at_once_find_out_together_that_there_is_one_session(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them has the others' connection made, where each of them has its own patience."""
    monkeypatch.setattr(connection, "_REFUSED_DELAYS_S", (0.01, 0.01))
    stand_apart = Connection._stand_apart

    async def with_refusals_to_come(self: Connection) -> None:
        server.num_refused = 2
        await stand_apart(self)

    monkeypatch.setattr(Connection, "_stand_apart", with_refusals_to_come)
    server.max_sessions = 1
    echo = Command(("echo", "x"))
    async with (
        connected(server, tmp_path) as first,
        server_lock(first, "alice", state_dir=str(server.root / "state")),
    ):
        done = await asyncio.gather(*(first.run(echo) for _ in range(3)))
    assert [result.stdout for result in done] == ["x\n"] * 3


async def test_one_session_a_connection_is_locked_all_the_same(
    server: Server, tmp_path: Path
) -> None:
    """The connection of commands ends with the lock's, which is taken again first; another run has it, or none."""
    state = str(server.root / "state")
    server.max_sessions = 1
    echo = Command(("echo", "x"))
    async with connected(server, tmp_path) as first, server_lock(first, "alice", state_dir=state):
        await first.run(echo)
        lock, of_commands = server.connections
        of_commands.abort()
        await first.look(echo)
        assert lock in server.connections
        assert server.num_connections == 3
        lock.abort()
        await until(lambda: not server.connections)
        server.commands.clear()
        assert (await first.look(echo)).stdout == "x\n"
        assert "lock" in server.commands[0]
        async with connected(server, tmp_path) as second:
            with pytest.raises(Locked, match="alice"):
                async with server_lock(second, "bob", state_dir=state):
                    pass


async def test_the_lock_is_taken_again_with_the_connection(server: Server, tmp_path: Path) -> None:
    """Before any other command; not if another run has it by then, and nothing is run in that case."""
    state = str(server.root / "state")
    async with (
        connected(server, tmp_path) as first,
        server_lock(first, "alice, run 1", state_dir=state),
    ):
        server.fault(Fault("echo one", drop="after"))
        with pytest.raises(OutcomeUnknown):
            await first.run(Command(("sh", "-c", "echo one")))
        server.commands.clear()
        await first.run(Command(("sh", "-c", "echo two")))
        assert "lock" in server.commands[0]
        assert "echo two" in server.commands[-1]
        server.drop()
        async with connected(server, tmp_path) as second:

            async def take() -> bool:
                try:
                    async with server_lock(second, "bob, run 2", state_dir=state):
                        for _ in range(2):
                            with pytest.raises(Locked, match="bob"):
                                await first.run(Command(("sh", "-c", "echo three")))
                        return True
                except Locked:
                    return False

            await until(take)
    assert not any("echo three" in line for line in server.commands)


@pytest.mark.parametrize("drop", ["before", "during", "after"])
async def test_a_connection_that_breaks_at_the_lock_is_made_again(
    drop: str, server: Server, tmp_path: Path
) -> None:
    """With the lock, before anything else; nobody sees an error of a library."""
    state = str(server.root / "state")
    server.fault(Fault("lock", drop=drop))  # type: ignore[arg-type]
    async with connected(server, tmp_path) as first, server_lock(first, "alice", state_dir=state):
        assert (await first.run(Command(("echo", "x")))).stdout == "x\n"
        async with connected(server, tmp_path) as second:
            with pytest.raises(Locked, match="alice"):
                async with server_lock(second, "bob", state_dir=state):
                    pass
