"""One SSH connection to a server for the whole of a run, made again where it breaks.

What is not known is never guessed: a command whose exit status did not arrive is `OutcomeUnknown`, whoever asked looks at
the server again. Only what changes nothing (`look`) is asked anew by itself.
"""

from __future__ import annotations

import asyncio
import posixpath
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
from typing_extensions import override

from pocqueue.closing import AsyncClosing
from pocqueue.deploy.errors import OutcomeUnknown, StepFailed, Unreachable
from pocqueue.deploy.host_key import HostKeys, Verdict
from pocqueue.deploy.rules import Jump
from pocqueue.deploy.words import Command, Secret, quoted
from pocqueue.errors import first_line

Session = asyncssh.SSHClientProcess[bytes]
#: Starts a command on a connection that has just been made.
OpenSession = Callable[[Command], Awaitable[Session]]

#: sshd takes 10 sessions of a connection (MaxSessions); one is the lock's, one SFTP's.
MAX_SESSIONS = 8
CONNECT_TIMEOUT_S = 10.0
LOGIN_TIMEOUT_S = 20.0
KEEPALIVE_S = 15.0
KEEPALIVE_TRIES = 4
#: asyncssh's code where a session is open, but the command was not taken.
_REQUEST_FAILED = 0xFFFFFFFF
#: Before each try to connect again.
RETRY_DELAYS_S = (2.0, 5.0, 15.0)
#: Of what a command prints: so much of its beginning and of its end is kept, each of two streams.
HEAD_BYTES = 1024 * 1024
TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a command.

    Attributes:
        exit_code: 128 and the signal's number is not known by SSH, so a signal is -1.
        stdout: text; what is no UTF-8 has U+FFFD instead.
        stderr: the same, with a line for the signal.
        is_cut: it printed more than is kept.
    """

    exit_code: int
    stdout: str
    stderr: str
    is_cut: bool = False

    @property
    def tail(self) -> tuple[str, ...]:
        """Return its last lines, for people: 20 at most."""
        lines = [*self.stdout.splitlines(), *self.stderr.splitlines()]
        return tuple(line for line in lines if line.strip())[-20:]


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect to, and as whom."""

    host: str
    port: int
    user: str
    #: Private key; None: those of ~/.ssh/config, of ~/.ssh and the agent's.
    key: Path | None = None
    jump: Jump | None = None


class _Client(asyncssh.SSHClient):
    """Judges the server's key."""

    def __init__(self, keys: HostKeys) -> None:
        self._keys = keys
        #: The key that was refused.
        self.refused: str | None = None

    @override
    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        text = key.export_public_key("openssh").decode().strip()
        if self._keys.judge(text) is not Verdict.KNOWN:
            self.refused = text
            return False
        # A pinned one is written down, so that it stays the only one without the pin.
        self._keys.keep(text)
        return True


class _Kept:
    """The beginning and the end of a stream that may be endless."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._left_out = 0

    def add(self, data: bytes) -> None:
        """Take more of it."""
        room = HEAD_BYTES - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if (over := len(self._tail) - TAIL_BYTES) > TAIL_BYTES:
            self._left_out += over
            del self._tail[:over]

    @property
    def is_cut(self) -> bool:
        """Say whether something is missing."""
        return self._left_out > 0

    def text(self) -> str:
        """Return what there is, with a line for what is missing."""
        between = f"\n… {self._left_out:,} bytes left out …\n".encode() if self._left_out else b""
        return (self._head + between + self._tail).decode("utf-8", "replace")


class _Sessions:
    """How many sessions may be open at once: fewer, where the server says so."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._num_open = 0
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._num_open < self._most)
            self._num_open += 1

    async def __aexit__(self, *_raised: object) -> None:
        async with self._changed:
            self._num_open -= 1
            self._changed.notify_all()

    def lower(self) -> bool:
        """Have fewer from now on, as one was refused; say whether it was the only one."""
        self._most = max(1, min(self._most, self._num_open - 1))
        return self._num_open == 1


class Connection(AsyncClosing):
    """A server's shell and files.

    Args:
        target: where.
        keys: its host keys.
        retry_delays_s: seconds before each try to connect again; their number is that of the tries.
    """

    def __init__(
        self,
        target: Target,
        keys: HostKeys,
        *,
        retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
    ) -> None:
        self.target = target
        self.keys = keys
        #: Words before a command that runs as root; none where we are root.
        self.sudo: tuple[str, ...] = ("sudo", "-n")
        #: What sudo asks for, if it does.
        self.sudo_password: Secret | None = None
        #: What has to stand on every connection before anything else is done with it: the lock.
        self._attached: list[Callable[[OpenSession], Awaitable[None]]] = []
        self._retry_delays_s = tuple(retry_delays_s)
        self._connection: asyncssh.SSHClientConnection | None = None
        self._connecting = asyncio.Lock()
        self._sessions = _Sessions(MAX_SESSIONS)

    async def connect(self) -> None:
        """Connect for the first time.

        Raises:
            HostKeyUnknown: nobody has confirmed the server's key.
            HostKeyChanged: it has another one.
            Unreachable: it does not answer, or does not let us in.
        """
        self._connection = await self._open()

    async def _open(self) -> asyncssh.SSHClientConnection:
        target, client = self.target, _Client(self.keys)
        options: dict[str, Any] = {}
        if target.key is not None:
            options["client_keys"] = [str(target.key)]
        if target.jump is not None:
            # Its key is checked by ~/.ssh/known_hosts, as ssh -J does.
            place = f"{target.jump.host}:{target.jump.port}"
            options["tunnel"] = f"{target.jump.user or target.user}@{place}"
        options["server_host_key_algs"] = self._host_key_types()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S + LOGIN_TIMEOUT_S):
                return await asyncssh.connect(
                    target.host,
                    target.port,
                    username=target.user,
                    client_factory=lambda: client,
                    # None would check nothing: an empty list leaves the judgement to the client above.
                    known_hosts=([], [], []),
                    preferred_auth="publickey",
                    connect_timeout=CONNECT_TIMEOUT_S,
                    login_timeout=LOGIN_TIMEOUT_S,
                    keepalive_interval=KEEPALIVE_S,
                    keepalive_count_max=KEEPALIVE_TRIES,
                    agent_forwarding=False,
                    **options,
                )
        except asyncssh.HostKeyNotVerifiable as exc:
            if client.refused is not None:
                raise self.keys.error(client.refused) from None
            raise Unreachable(f"The host to go through was refused: {first_line(exc)}.") from None
        except asyncssh.PermissionDenied:
            raise Unreachable(
                f"{target.host} does not let {target.user} in with the keys of this machine: name one with SSH_KEY, "
                "or add it to the agent (ssh-add)."
            ) from None
        except (OSError, asyncssh.Error, asyncssh.KeyImportError, asyncssh.ConfigParseError) as exc:
            raise Unreachable(
                f"No SSH connection to {target.host} port {target.port} ({first_line(exc)}): is it up, and is "
                "SSH_PORT open for this machine?"
            ) from None

    def _host_key_types(self) -> list[str]:
        """Return the algorithms to ask for, those of confirmed keys first; no certificates, which nobody has confirmed."""
        first = [name for kind in self.keys.types for name in _ALGORITHMS.get(kind, [kind])]
        return list(dict.fromkeys([*first, *_ALL_ALGORITHMS]))

    async def attach(self, begin: Callable[[OpenSession], Awaitable[None]]) -> None:
        """Do something on this connection now, and on each that is made after it before anything else is done there.

        Args:
            begin: gets what starts a command there.
        """
        await begin(self._opener(await self._connected()))
        self._attached.append(begin)

    def detach(self, begin: Callable[[OpenSession], Awaitable[None]]) -> None:
        """Do that no more."""
        self._attached.remove(begin)

    def _opener(self, connection: asyncssh.SSHClientConnection) -> OpenSession:
        async def start(command: Command) -> Session:
            line, given = self._prepared(command)
            try:
                process = await connection.create_process(line, encoding=None)
                process.stdin.write(given)
            except (OSError, asyncssh.Error) as exc:
                raise Unreachable(
                    f"The connection to {self.target.host} broke ({first_line(exc)})."
                ) from None
            return process

        return start

    async def _connected(self) -> asyncssh.SSHClientConnection:
        """Return the connection, made again if it broke.

        Raises:
            HostKeyChanged: the server has another key now.
            Locked: another run has the server now.
            Unreachable: three tries failed.
        """
        async with self._connecting:
            if self._connection is not None and not self._connection.is_closed():
                return self._connection
            self._connection = None
            for left, delay_s in reversed(list(enumerate(reversed(self._retry_delays_s)))):
                await asyncio.sleep(delay_s)
                try:
                    connection = await self._open()
                    await self._begin(connection)
                except Unreachable:
                    if left == 0:
                        raise
                else:
                    self._connection = connection
                    return connection
            raise Unreachable(f"The connection to {self.target.host} is gone.")

    async def _begin(self, connection: asyncssh.SSHClientConnection) -> None:
        try:
            for begin in self._attached:
                await begin(self._opener(connection))
        except BaseException:
            # Nothing is to run on a connection that has no lock.
            connection.abort()
            raise

    @asynccontextmanager
    async def _session(self, line: str, shown: str) -> AsyncIterator[Session]:
        """Start a line of shell; it is given up at the end of the block."""
        delays_s = iter((0.1, 0.3, 1.0, 2.0))
        while True:
            async with self._sessions:
                if (process := await self._start(line, shown)) is not None:
                    try:
                        yield process
                    finally:
                        process.close()
                    return
                is_alone = self._sessions.lower()
            if is_alone:
                # Of others that we had, sshd may not have seen the end yet.
                if (delay_s := next(delays_s, None)) is None:
                    raise Unreachable(
                        f"{self.target.host} opens no session beside the lock's: MaxSessions of its sshd has to be 2 or more."
                    )
                await asyncio.sleep(delay_s)

    async def _start(self, line: str, shown: str) -> Session | None:
        """Return None where the server opens no further session; nothing has run then."""
        for _ in range(1 + len(self._retry_delays_s)):
            connection = await self._connected()
            try:
                return await connection.create_process(line, encoding=None)
            except asyncssh.ChannelOpenError as exc:
                if exc.code == _REQUEST_FAILED:
                    # It was open: whether the command was begun is not known.
                    raise OutcomeUnknown(shown) from None
                if not connection.is_closed():
                    return None
            except (OSError, asyncssh.Error):
                raise OutcomeUnknown(shown) from None
        raise Unreachable(f"The connection to {self.target.host} breaks again and again.")

    async def run(self, command: Command) -> Result:
        """Run a command and wait for its end.

        Raises:
            OutcomeUnknown: the connection broke before its exit status arrived.
            StepFailed: it took longer than its time-out; it may go on there.
            Unreachable: there is no connection; the command did not run.
        """
        line, given = self._prepared(command)
        async with self._session(line, command.shown()) as process:
            try:
                async with asyncio.timeout(command.timeout_s):
                    return await _finish(process, given, command)
            except TimeoutError:
                raise StepFailed(
                    command.shown(),
                    f"took more than {command.timeout_s:.0f} s and was given up; it may go on there.",
                ) from None

    async def look(self, command: Command) -> Result:
        """Run a command that changes nothing: asked again where the connection broke.

        Raises:
            StepFailed, OutcomeUnknown, Unreachable: as `run`, after three tries.
        """
        for _ in range(2):
            with suppress(OutcomeUnknown):
                return await self.run(command)
        return await self.run(command)

    def _prepared(self, command: Command) -> tuple[str, bytes]:
        """Return the line for the shell there, and what it reads."""
        given = command.input()
        if not command.sudo or self.sudo_password is None or not self.sudo:
            return command.line(sudo=self.sudo), given
        # Where sudo does not ask, its password would be read by the command: all up to a mark is thrown away.
        mark = secrets.token_hex(16)
        skip = f'while IFS= read -r line && [ "$line" != {mark} ]; do :; done; exec "$@"'
        words = ("sudo", "-S", "-p", "", "sh", "-c", skip, "sh", *command.argv())
        return " ".join(
            map(quoted, words)
        ), f"{self.sudo_password.reveal()}\n{mark}\n".encode() + given

    async def write_file(self, path: str, data: bytes, mode: int) -> None:
        """Put a file there as a whole, with a mode from its first byte on.

        It is the login's own: files of root's are put in place by a script of ours.

        Raises:
            StepFailed: it cannot be written; what was there is as it was.
            OutcomeUnknown: the connection broke; what was there is as it was, or is the new one.
        """
        new = f"{path}.pocqueue-tmp"
        try:
            connection = await self._connected()
            async with self._sessions, connection.start_sftp_client() as sftp:
                # What an earlier try left behind may have another mode, or be a link.
                with suppress(asyncssh.SFTPNoSuchFile):
                    await sftp.remove(new)
                flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_EXCL
                attributes = asyncssh.SFTPAttrs(permissions=mode)
                async with sftp.open(new, flags, attributes, encoding=None) as file:
                    await file.chmod(mode)
                    await file.write(data)
                    await file.fsync()
                await sftp.posix_rename(new, path)
        except asyncssh.SFTPConnectionLost:
            raise OutcomeUnknown(f"Upload: {path}") from None
        except asyncssh.SFTPError as exc:
            raise StepFailed(
                f"Upload: {path}", f"{exc.reason}; {posixpath.dirname(path)} is as it was."
            ) from None
        except (OSError, asyncssh.Error) as exc:
            raise OutcomeUnknown(f"Upload: {path} ({first_line(exc)})") from None

    @override
    async def close(self) -> None:
        """End the connection; what runs there as a job goes on."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            with suppress(OSError, asyncssh.Error, TimeoutError):
                async with asyncio.timeout(5):
                    await connection.wait_closed()


async def _finish(process: Session, given: bytes, command: Command) -> Result:
    out, err = _Kept(), _Kept()

    async def pump(stream: asyncssh.SSHReader[bytes], kept: _Kept) -> None:
        while data := await stream.read(64 * 1024):
            kept.add(data)

    try:
        # It may end before it has read all, or any.
        with suppress(BrokenPipeError):
            process.stdin.write(given)
            process.stdin.write_eof()
        await asyncio.gather(pump(process.stdout, out), pump(process.stderr, err))
        await process.wait_closed()
    except (OSError, asyncssh.Error):
        raise OutcomeUnknown(command.shown()) from None
    said = err.text()
    code = process.exit_status
    if process.exit_signal is not None:
        code, said = -1, f"{said}\nended by signal {process.exit_signal[0]}"
    if code is None:
        raise OutcomeUnknown(command.shown())
    return Result(code, out.text(), said, out.is_cut or err.is_cut)


_ALGORITHMS = {"ssh-rsa": ["rsa-sha2-256", "rsa-sha2-512"]}
_ALL_ALGORITHMS = (
    *("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    *("rsa-sha2-512", "rsa-sha2-256"),
)
