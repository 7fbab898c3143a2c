"""A server in this process: asyncssh's, whose commands are run by `sh` with a PATH of fakes, in a temporary folder.

What goes wrong is said by pattern: `server.fault(Fault("keys add", drop="after"))` breaks the connection once, when a command
that has these words has ended but its exit status is not sent yet. A command goes on when its connection breaks, as it does
under sshd, and reads the end of its standard input.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import asyncssh
from typing_extensions import override

from pocqueue.deploy.connection import Connection
from pocqueue.deploy.host_key import HostKeys
from pocqueue.deploy.transport import Target
from tests.support.waiting import until

FAKES = Path(__file__).parent / "fakes"
Drop = Literal["", "before", "cut", "during", "after"]


def without_mark(line: str) -> str:
    """Return a command without what each start of a job has of its own."""
    return re.sub(r"\b[0-9a-f]{16}\b", "", line)


@dataclass
class Fault:
    """What goes wrong with commands.

    Attributes:
        pattern: of the commands' lines, by `re.search`; of a file's upload, of `sftp open`, `sftp write` and `sftp rename`.
        times: how often.
        after: so many that match are let pass first.
        drop: the connection breaks before the command begins, before any of its standard input arrives (``cut``), while it
            runs (as soon as `when` holds), or after its end and before its exit status is sent.
        when: for ``during``.
        prints: before whatever the command prints.
        instead: exit code, without running the command.
        wait: held back until this is set.
    """

    pattern: str
    times: int = 1
    after: int = 0
    drop: Drop = ""
    when: Callable[[], object] = lambda: True
    prints: bytes = b""
    instead: int | None = None
    wait: asyncio.Event | None = None


_NO_FAULT = Fault("", 0)


@dataclass
class Server:
    """A server that runs.

    Attributes:
        root: its folder: home, working directory and what SFTP sees.
        key: of the client; its file is for `Target.key`.
        commands: every line that it was given, in order.
        inputs: what commands read, in the order of their ends.
        sftp_full: SFTP writes nothing any more.
        before: words before every command.
        sftp_root: what SFTP takes for `/`; None: that of the machine.
        max_sessions: at once on one connection, as sshd's MaxSessions.
        num_refused: of the next sessions, that many are refused all the same: sshd counts one that is just over.
        is_slow_to_let_in: a command begins once all before it have ended, also those of connections that broke.
        connections: that are open, in their order.
        drop_each: says how the connection breaks at a command or an upload, the first time that it comes; None: it does not.
        dropped: of which that was asked.
    """

    root: Path
    key: Path
    commands: list[str] = field(default_factory=list)
    inputs: list[bytes] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    sftp_full: bool = False
    before: tuple[str, ...] = ()
    sftp_root: Path | None = None
    max_sessions: int = 10
    num_refused: int = 0
    is_slow_to_let_in: bool = False
    port: int = 0
    num_connections: int = 0
    env: dict[str, str] = field(default_factory=dict)
    _host_key: asyncssh.SSHKey | None = None
    _listener: asyncssh.SSHAcceptor | None = None
    connections: list[asyncssh.SSHServerConnection] = field(default_factory=list)
    drop_each: Callable[[str], Drop] | None = None
    _children: set[asyncio.subprocess.Process] = field(default_factory=set)
    dropped: set[str] = field(default_factory=set)

    @property
    def target(self) -> Target:
        """How to connect."""
        return Target("127.0.0.1", self.port, "tester", self.key)

    @property
    def host_key(self) -> str:
        """Its public key, ``TYPE BASE64``."""
        assert self._host_key is not None
        return self._host_key.export_public_key("openssh").decode().strip()

    def fault(self, fault: Fault) -> Fault:
        """Have something go wrong."""
        self.faults.append(fault)
        return fault

    async def start(self) -> None:
        """Listen, on the same port as before."""
        self._host_key = self._host_key or asyncssh.generate_private_key("ssh-ed25519")
        server = self

        class Door(asyncssh.SSHServer):
            @override
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                self._conn = conn
                server.num_connections += 1
                server.connections.append(conn)

            @override
            def session_requested(self) -> asyncssh.SSHServerProcess[bytes]:
                # As sshd says where MaxSessions is reached.
                server.num_refused -= (is_refused := server.num_refused > 0)
                if is_refused or self._num_open() >= server.max_sessions:
                    prohibited = asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
                    raise asyncssh.ChannelOpenError(prohibited, "open failed")
                return asyncssh.SSHServerProcess(server._run, Files, 3, False)  # type: ignore[arg-type]

            def _num_open(self) -> int:
                return len(self._conn._channels)

            @override
            def connection_lost(self, exc: Exception | None) -> None:
                server.connections.remove(self._conn)

        class Files(asyncssh.SFTPServer):
            def __init__(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
                super().__init__(chan)

            @override
            def map_path(self, path: bytes) -> bytes:
                # Not by `chroot`, which resolves the link of another process's root to ours.
                mapped = super().map_path(path)
                return mapped if server.sftp_root is None else bytes(server.sftp_root) + mapped

            def _breaks(self, what: str, drop: str) -> bool:
                if server._fault_of(f"sftp {what}").drop != drop:
                    return False
                self.channel.get_connection().abort()
                return True

            @override
            def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
                if self._breaks(f"open {path.decode()}", "before"):
                    raise ConnectionResetError
                return super().open(path, pflags, attrs)

            @override
            async def write(self, file_obj: object, offset: int, data: bytes) -> int:
                if server.sftp_full:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if self._breaks(f"write {getattr(file_obj, 'name', b'')!r}", "during"):
                    data = data[: len(data) // 2]
                written = super().write(file_obj, offset, data)
                return written if isinstance(written, int) else await written

            @override
            async def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
                done = super().posix_rename(oldpath, newpath)
                if done is not None:
                    await done
                self._breaks(f"rename {newpath.decode()}", "after")

        self._listener = await asyncssh.listen(
            "127.0.0.1",
            self.port,
            server_factory=Door,
            server_host_keys=[self._host_key],
            authorized_client_keys=str(self.key.with_suffix(".pub")),
            # Both ends are in this process: asyncssh's first choice takes three times as long for a packet.
            encryption_algs=["aes128-gcm@openssh.com"],
            encoding=None,
        )
        self.port = self._listener.get_port()

    async def stop(self) -> None:
        """Listen no more, and break all connections."""
        if self._listener is not None:
            self._listener.close()
            await self._listener.wait_closed()
        self.drop()

    def drop(self) -> None:
        """Break all connections; what runs goes on."""
        for connection in list(self.connections):
            connection.abort()

    def hush(self) -> None:
        """Neither hear nor answer on the connections that are open, which nobody ends: as where a laptop has slept."""
        for connection in self.connections:
            assert connection._transport is not None
            connection._transport.pause_reading()

    async def change_host_key(self) -> None:
        """Be another server, by the look of it."""
        await self.stop()
        self._host_key = None
        await self.start()

    async def close(self) -> None:
        """Stop, and end what still runs."""
        await self.stop()
        for child in list(self._children):
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            await child.wait()

    def _fault_of(self, line: str) -> Fault:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.pattern, line):
                if fault.after > 0:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault
        if self.drop_each and (what := without_mark(line)) not in self.dropped:
            self.dropped.add(what)
            return Fault(".", 0, drop=self.drop_each(what))
        return _NO_FAULT

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        line = process.command or ""
        if self.is_slow_to_let_in:
            await until(lambda: not self._children)
        self.commands.append(line)
        await self._serve(process, line, self._fault_of(line))

    async def _serve(
        self, process: asyncssh.SSHServerProcess[bytes], line: str, fault: Fault
    ) -> None:
        connection = process.channel.get_connection()
        if fault.wait is not None:
            await fault.wait.wait()
        if fault.drop == "before":
            connection.abort()
            return
        if fault.prints:
            process.stdout.write(fault.prints)
        if fault.instead is not None:
            process.exit(fault.instead)
            return
        child = await asyncio.create_subprocess_exec(
            *(*self.before, "sh", "-c", line),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.root,
            env={"PATH": f"{FAKES}:{os.environ['PATH']}", "HOME": str(self.root), **self.env},
            start_new_session=True,
        )
        self._children.add(child)
        if fault.drop == "cut":
            await child.communicate(b"")
            self._children.discard(child)
            connection.abort()
            return
        given = bytearray()
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        pumps = [
            asyncio.create_task(_feed(process.stdin, child.stdin, given)),
            asyncio.create_task(_pump(child.stdout, process.stdout)),
            asyncio.create_task(_pump(child.stderr, process.stderr)),
        ]
        if fault.drop == "during":
            await until(lambda: child.returncode is not None or fault.when())
            connection.abort()
        code = await child.wait()
        await asyncio.gather(*pumps[1:])
        pumps[0].cancel()
        await asyncio.gather(pumps[0], return_exceptions=True)
        self.inputs.append(bytes(given))
        self._children.discard(child)
        if fault.drop == "after":
            connection.abort()
        elif code < 0:
            process.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))
        else:
            process.exit(code)


async def _feed(
    source: asyncssh.SSHReader[bytes], sink: asyncio.StreamWriter, given: bytearray
) -> None:
    with suppress(OSError, asyncssh.Error):
        while data := await source.read(64 * 1024):
            given += data
            sink.write(data)
            await sink.drain()
    with suppress(OSError):
        sink.close()


async def _pump(source: asyncio.StreamReader, sink: asyncssh.SSHWriter[bytes]) -> None:
    while data := await source.read(64 * 1024):
        with suppress(OSError, asyncssh.Error):
            sink.write(data)
            await sink.drain()


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Server]:
    """Run a server within the block."""
    root = folder / "root"
    root.mkdir()
    key = folder / "client"
    private = asyncssh.generate_private_key("ssh-ed25519")
    private.write_private_key(key)
    private.write_public_key(key.with_suffix(".pub"))
    key.chmod(0o600)
    server = Server(root, key)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


def host_keys(server: Server, folder: Path) -> HostKeys:
    """Return the file of confirmed keys that has this server's."""
    keys = HostKeys(folder / "known_hosts", "127.0.0.1", server.port)
    keys.keep(server.host_key)
    return keys


@asynccontextmanager
async def connected(server: Server, folder: Path) -> AsyncIterator[Connection]:
    """Be connected with a server within the block; it is connected with again at once, three times."""
    delays = (0.0, 0.05, 0.2)
    async with Connection(
        server.target, host_keys(server, folder), retry_delays_s=delays
    ) as connection:
        connection.sudo = ()
        connection.is_csh = False
        await connection.connect()
        yield connection
