"""The connection: what is known after each way that it may break, and what a hostile server can do."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from pocqueue.deploy import result
from pocqueue.deploy.connection import Connection
from pocqueue.deploy.errors import (
    HostKeyChanged,
    HostKeyUnknown,
    OutcomeUnknown,
    StepFailed,
    Unreachable,
)
from pocqueue.deploy.host_key import HostKeys, fingerprint_of
from pocqueue.deploy.transport import Target
from pocqueue.deploy.words import Command, Secret
from tests.deploy.server import Fault, Server, connected, host_keys, serving

HOSTILE = "a'b\"c $(touch x) `touch x` \\ \\\\ \n ; é ! ~ *"


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server of the test's own."""
    async with serving(tmp_path) as server:
        yield server


@pytest_asyncio.fixture
async def connection(server: Server, tmp_path: Path) -> AsyncIterator[Connection]:
    """A connection with it."""
    async with connected(server, tmp_path) as connection:
        yield connection


def sh(text: str, *words: str, **options: float) -> Command:
    """Return a command."""
    return Command(("sh", "-c", text, "sh", *words), **options)  # type: ignore[arg-type]


async def test_words_input_and_outputs_arrive_as_they_are(
    server: Server, connection: Connection
) -> None:
    """Standard error apart; a secret by standard input alone; the line that is sent is the one that is planned."""
    secret = Secret("PASSWORD", HOSTILE)
    command = Command(
        ("sh", "-c", 'printf %s "$1"; cat; echo ouch >&2; exit 3', "sh", HOSTILE), (secret, "!")
    )
    done = await connection.run(command)
    assert (done.exit_code, done.stdout, done.stderr) == (3, f"{HOSTILE}{HOSTILE}!", "ouch\n")
    assert server.commands == [command.line(sudo=())]
    assert server.inputs == [f"{HOSTILE}!".encode()]
    assert not (server.root / "x").exists()
    # A command that reads nothing of what it is given has ended well.
    assert (await connection.run(Command(("true",), ("x" * 1_000_000,)))).exit_code == 0
    assert (await connection.run(sh("kill -9 $PPID"))).exit_code == -1


async def test_a_key_that_nobody_confirmed_is_not_taken(server: Server, tmp_path: Path) -> None:
    """Unknown, then confirmed, then changed: at the start, and on a reconnection within a run."""
    keys = HostKeys(tmp_path / "known_hosts", "127.0.0.1", server.port)
    with pytest.raises(HostKeyUnknown) as raised:
        await Connection(server.target, keys).connect()
    assert raised.value.fingerprint == fingerprint_of(server.host_key)
    assert not server.commands
    keys.keep(server.host_key)
    before = keys.path.read_bytes()
    async with Connection(server.target, keys, retry_delays_s=(0, 0, 0)) as connection:
        await connection.connect()
        await server.change_host_key()
        with pytest.raises(HostKeyChanged) as changed:
            await connection.run(sh("touch x"))
    assert fingerprint_of(server.host_key) == changed.value.found
    with pytest.raises(HostKeyChanged):
        await Connection(server.target, keys).connect()
    assert keys.path.read_bytes() == before
    assert not server.commands


async def test_a_pinned_key_needs_no_confirmation(server: Server, tmp_path: Path) -> None:
    """And no other one will do; it is written down."""
    pin = fingerprint_of(server.host_key)
    keys = HostKeys(tmp_path / "known_hosts", "127.0.0.1", server.port, pin)
    async with Connection(server.target, keys) as connection:
        await connection.connect()
    assert server.host_key in keys.path.read_text()
    wrong = HostKeys(tmp_path / "other", "127.0.0.1", server.port, "SHA256:" + "A" * 43)
    with pytest.raises(HostKeyChanged):
        await Connection(server.target, wrong).connect()


@pytest.mark.parametrize("drop", ["before", "during", "after"])
async def test_a_lost_exit_status_is_not_guessed(
    drop: str, server: Server, connection: Connection
) -> None:
    """What changes something is never run a second time; what only looks is; the connection is made again."""
    mark = server.root / "mark"
    fault = Fault("mark", drop=drop, when=mark.exists)  # type: ignore[arg-type]
    server.fault(fault)
    with pytest.raises(OutcomeUnknown):
        await connection.run(sh("echo x >> mark; sleep 0.05"))
    assert len(server.commands) == 1
    fault.times = 2
    done = await connection.look(sh("test -e mark; echo looked"))
    assert (done.stdout, len(server.commands), server.num_connections) == ("looked\n", 4, 4)
    fault.times = 3
    with pytest.raises(OutcomeUnknown):
        await connection.look(sh("test -e mark"))


async def test_a_server_that_is_gone_is_tried_three_times(
    server: Server, connection: Connection, tmp_path: Path
) -> None:
    """Then it is said so; it is found again when it comes back."""
    await server.stop()
    with pytest.raises(Unreachable):
        await connection.run(sh("true"))
    await server.start()
    assert (await connection.run(sh("echo back"))).stdout == "back\n"
    await server.stop()
    with pytest.raises(Unreachable, match="SSH_PORT"):
        await Connection(server.target, host_keys(server, tmp_path)).connect()


async def test_who_is_not_let_in_is_told(server: Server, tmp_path: Path) -> None:
    """With another key than the server knows."""
    import asyncssh

    other = tmp_path / "other"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(other)
    target = Target("127.0.0.1", server.port, "tester", other)
    with pytest.raises(Unreachable, match="does not let tester in"):
        await Connection(target, host_keys(server, tmp_path)).connect()


async def test_a_time_out_is_an_error_of_its_own(connection: Connection) -> None:
    """What runs there may go on."""
    with pytest.raises(StepFailed, match="may go on"):
        await connection.run(sh("exec sleep 60", timeout_s=0.05))


async def test_endless_output_is_bounded(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The beginning and the end are kept, whatever the bytes are."""
    monkeypatch.setattr(result, "HEAD_BYTES", 1000)
    monkeypatch.setattr(result, "TAIL_BYTES", 1000)
    done = await connection.run(
        sh("echo begin; printf '\\377'; head -c 3000000 /dev/zero; echo; echo end")
    )
    assert done.is_cut
    assert done.stdout.startswith("begin\n\ufffd")
    assert done.stdout.endswith("\nend\n")
    assert "bytes left out" in done.stdout
    assert len(done.stdout) < 5000
    assert done.tail[-1] == "end"


@pytest.mark.parametrize("most", [1, 2, 5, 8])
async def test_more_commands_than_sessions_wait(
    most: int, server: Server, connection: Connection
) -> None:
    """Forty at once, as many sessions as the server allows."""
    server.max_sessions = most
    done = await asyncio.gather(*(connection.run(sh(f"echo {i}")) for i in range(40)))
    assert [int(one.stdout) for one in done] == list(range(40))


async def test_a_password_for_sudo_reaches_sudo_alone(
    server: Server, connection: Connection
) -> None:
    """Whether it asks or not, the command reads what is its own."""
    bin_dir = server.root / "bin"
    bin_dir.mkdir()
    server.env["PATH"] = f"{bin_dir}:/usr/bin:/bin"
    sudo = bin_dir / "sudo"
    connection.sudo = ("sudo", "-n")
    connection.sudo_password = Secret("sudo", HOSTILE.replace("\n", ""))
    command = Command(("cat",), ("its own\n",), sudo=True)
    for asks in ("IFS= read -r p; printf '%s' \"$p\" > asked;", ""):
        sudo.write_text(f'#!/bin/sh\n{asks} shift 3; exec "$@"\n')
        sudo.chmod(0o755)
        assert (await connection.run(command)).stdout == "its own\n"
    assert (server.root / "asked").read_text() == connection.sudo_password.reveal()
    assert not any("touch x" in line for line in server.commands)


async def test_files_are_whole_and_private(
    server: Server, connection: Connection, tmp_path: Path
) -> None:
    """A mode from the first byte on; what was there stays where the disk is full; no link is followed."""
    path = server.root / "config.env"
    await connection.write_file(str(path), b"one", 0o600)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"one", 0o600)
    (server.root / "config.env.pocqueue-tmp").symlink_to(tmp_path / "victim")
    await connection.write_file(str(path), b"two" * 100_000, 0o640)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"two" * 100_000, 0o640)
    assert not (tmp_path / "victim").exists()
    server.sftp_full = True
    with pytest.raises(StepFailed, match="No space left"):
        await connection.write_file(str(path), b"three", 0o600)
    assert path.read_bytes() == b"two" * 100_000
    server.sftp_full = False
    await connection.write_file(str(path), b"three", 0o600)
    assert path.read_bytes() == b"three"
    with pytest.raises(StepFailed):
        await connection.write_file(str(server.root / "no" / "folder"), b"", 0o600)
