"""One SSH connection to a server for the whole of a run, made again where it breaks.

What is not known is never guessed: a command whose exit status did not arrive is `OutcomeUnknown`, whoever asked looks at
the server again. Only what changes nothing (`look`) is asked anew by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import asyncssh
from typing_extensions import override

from pocqueue.closing import AsyncClosing
from pocqueue.deploy.errors import OutcomeUnknown, StepFailed, Unreachable
from pocqueue.deploy.host_key import HostKeys
from pocqueue.deploy.result import Result, Session, result_of
from pocqueue.deploy.transport import Target, open_transport
from pocqueue.deploy.upload import upload
from pocqueue.deploy.words import Command, Secret, quoted, without_breaks
from pocqueue.errors import first_line

T = TypeVar("T")
#: Starts a command on a connection that has just been made.
OpenSession = Callable[[Command], Awaitable[Session]]

#: sshd takes 10 sessions of a connection (MaxSessions); one is the lock's.
MAX_SESSIONS = 8
#: asyncssh's code where a session is open, but the command was not taken.
_REQUEST_FAILED = 0xFFFFFFFF
#: Before each try to connect again.
RETRY_DELAYS_S = (2.0, 5.0, 15.0)
#: Before each try to open a session that was refused though we have no other: of the last one sshd may not have seen the end yet.
_REFUSED_DELAYS_S = (0.1, 0.3, 1.0)


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

    A server that opens one session a connection (MaxSessions 1) gets a second connection: the lock keeps the first, commands
    go one by one over the other, and neither outlives the lock's.

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
        #: A line that the output of commands begins behind, for a login whose shell prints by itself; empty: it does not.
        self.mark = ""
        #: The login's shell is csh, or not known yet.
        self.is_csh = True
        #: What has to stand on every connection before anything else is done with it: the lock.
        self._attached: list[Callable[[OpenSession], Awaitable[None]]] = []
        self._retry_delays_s = tuple(retry_delays_s)
        #: Of commands.
        self._connection: asyncssh.SSHClientConnection | None = None
        #: What is attached stands there; None: on that of commands.
        self._holder: asyncssh.SSHClientConnection | None = None
        self._tie: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._sessions = _Sessions(MAX_SESSIONS)

    async def connect(self) -> None:
        """Connect for the first time.

        Raises:
            HostKeyUnknown: nobody has confirmed the server's key.
            HostKeyChanged: it has another one.
            Unreachable: it does not answer, or does not let us in.
        """
        self._connection = await open_transport(self.target, self.keys)

    async def attach(self, begin: Callable[[OpenSession], Awaitable[None]]) -> None:
        """Do something on this connection now, and on each that is made after it before anything else is done there.

        Args:
            begin: gets what starts a command there.
        """
        connection = await self._connected()
        first = self._holder or connection
        self._attached.append(begin)
        try:
            try:
                await begin(self._opener(first))
            except Unreachable:
                # It broke: the next one begins with this.
                first.abort()
                await first.wait_closed()
                await self._connected()
        except BaseException:
            self._attached.remove(begin)
            raise

    def detach(self, begin: Callable[[OpenSession], Awaitable[None]]) -> None:
        """Do that no more."""
        self._attached.remove(begin)

    def _opener(self, connection: asyncssh.SSHClientConnection) -> OpenSession:
        async def start(command: Command) -> Session:
            line, given = self._prepared(command)
            try:
                process = await _patiently(connection, line)
                process.stdin.write(given)
                if self.mark:
                    await process.stdout.readuntil(f"{self.mark}\n".encode())
            except (OSError, asyncssh.Error, asyncio.IncompleteReadError) as exc:
                raise Unreachable(
                    f"The connection to {self.target.host} broke ({first_line(exc)})."
                ) from None
            return process

        return start

    async def _connected(self) -> asyncssh.SSHClientConnection:
        """Return the connection of commands, made again if it broke.

        Raises:
            HostKeyChanged: the server has another key now.
            Locked: another run has the server now.
            Unreachable: three tries failed.
        """
        async with self._connecting:
            if _is_open(self._connection) and (self._holder is None or _is_open(self._holder)):
                assert self._connection is not None
                return self._connection
            for left, delay_s in reversed(list(enumerate(reversed(self._retry_delays_s)))):
                await asyncio.sleep(delay_s)
                try:
                    return await self._connected_again()
                except Unreachable:
                    if left == 0:
                        raise
            raise Unreachable(f"The connection to {self.target.host} is gone.")

    async def _connected_again(self) -> asyncssh.SSHClientConnection:
        if not _is_open(self._holder):
            # Nothing is to run beside a lock that is gone.
            if self._connection is not None:
                self._connection.abort()
            self._connection = None
            connection = await open_transport(self.target, self.keys)
            await self._begin(connection)
            if self._holder is None:
                self._connection = connection
                return connection
            self._holder = connection
        return await self._beside_the_lock()

    async def _beside_the_lock(self) -> asyncssh.SSHClientConnection:
        """Connect for commands alone; it ends with the connection that has the lock."""
        holder = self._holder
        assert holder is not None
        connection = await open_transport(self.target, self.keys)

        async def end_with_it() -> None:
            await holder.wait_closed()
            connection.abort()

        self._untie()
        self._tie = asyncio.create_task(end_with_it())
        self._connection = connection
        return connection

    def _untie(self) -> None:
        if self._tie is not None:
            self._tie.cancel()
            self._tie = None

    async def _stand_apart(self) -> None:
        """Leave the only session that this server opens on a connection to the lock, and connect once more."""
        async with self._connecting:
            if self._holder is None and _is_open(self._connection):
                self._holder, self._connection = self._connection, None
                with suppress(Unreachable):
                    await self._beside_the_lock()

    async def _begin(self, connection: asyncssh.SSHClientConnection) -> None:
        try:
            for begin in self._attached:
                await begin(self._opener(connection))
        except BaseException:
            # Nothing is to run on a connection that has no lock.
            connection.abort()
            raise

    @asynccontextmanager
    async def _session(
        self, begin: Callable[[asyncssh.SSHClientConnection], Awaitable[T]], shown: str
    ) -> AsyncIterator[T]:
        """Have a session within the block, as soon as the server opens one.

        Args:
            begin: opens it on a connection.
            shown: what is done there, for people.
        """
        delays_s, was_apart = iter(_REFUSED_DELAYS_S), False
        while True:
            async with self._sessions:
                # Another one that was refused may have us stand apart meanwhile.
                is_apart = self._holder is not None
                if is_apart != was_apart:
                    delays_s, was_apart = iter(_REFUSED_DELAYS_S), is_apart
                if (session := await self._opened(begin, shown)) is not None:
                    yield session
                    return
                is_alone = self._sessions.lower()
            if not is_alone:
                continue
            if (delay_s := next(delays_s, None)) is not None:
                await asyncio.sleep(delay_s)
            elif self._attached and not is_apart:
                await self._stand_apart()
            else:
                raise Unreachable(
                    f"{self.target.host} opens no session: MaxSessions of its sshd has to be 1 or more."
                )

    async def _opened(
        self, begin: Callable[[asyncssh.SSHClientConnection], Awaitable[T]], shown: str
    ) -> T | None:
        """Return None where the server opens no further session; nothing has run then."""
        for _ in range(1 + len(self._retry_delays_s)):
            connection = await self._connected()
            try:
                return await begin(connection)
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
        return await self._run(command)

    async def _run(self, command: Command, data: bytes = b"") -> Result:
        line, given = self._prepared(command)

        async def begin(connection: asyncssh.SSHClientConnection) -> Session:
            return await connection.create_process(line, encoding=None)

        async with self._session(begin, command.shown()) as process:
            try:
                async with asyncio.timeout(command.timeout_s):
                    result = await result_of(process, given + data, command)
                    return result.behind(self.mark) if self.mark else result
            except TimeoutError:
                raise StepFailed(
                    command.shown(),
                    f"took more than {command.timeout_s:.0f} s and was given up; it may go on there.",
                ) from None
            finally:
                process.close()

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
        line, given = command.line(sudo=self.sudo), command.input()
        if command.sudo and self.sudo_password is not None and self.sudo:
            # Where sudo does not ask, its password would be read by the command: all up to a mark is thrown away.
            mark = secrets.token_hex(16)
            skip = f'while IFS= read -r line && [ "$line" != {mark} ]; do :; done; exec "$@"'
            words = ("sudo", "-S", "-p", "", "sh", "-c", skip, "sh", *command.argv())
            line = " ".join(map(quoted, words))
            given = f"{self.sudo_password.reveal()}\n{mark}\n".encode() + given
        if self.mark:
            line = f"""sh -c 'echo {self.mark}; echo {self.mark} >&2; exec "$@"' sh {line}"""
        return (without_breaks(line) if self.is_csh else line), given

    async def write_file(self, path: str, data: bytes, mode: int) -> None:
        """Put a file there as a whole, with a mode from its first byte on.

        It is the login's own: files of root's are put in place by a script of ours.

        Raises:
            StepFailed: it cannot be written; what was there is as it was.
            OutcomeUnknown: the connection broke; what was there is as it was, or is the new one.
            Unreachable: there is no connection; nothing was written.
        """
        if self.mark:
            # What the shell prints by itself stands before the answers of sftp-server, too.
            hash_line = f"{hashlib.sha256(data).hexdigest()}\n"
            command = Command((path, f"{mode:o}"), (hash_line,), script="put_file")
            done = await self._run(command, data)
            if done.exit_code != 0:
                raise StepFailed(
                    f"Upload: {path}", " ".join(done.stderr.split())[-200:], tail=done.tail
                )
            return

        async def begin(connection: asyncssh.SSHClientConnection) -> asyncssh.SFTPClient:
            return await connection.start_sftp_client()

        async with self._session(begin, f"Upload: {path}") as sftp:
            try:
                await upload(sftp, path, data, mode)
            finally:
                sftp.exit()

    @override
    async def close(self) -> None:
        """End the connection; what runs there as a job goes on."""
        self._untie()
        connections = [self._connection, self._holder]
        self._connection = self._holder = None
        for connection in filter(None, connections):
            connection.close()
            with suppress(OSError, asyncssh.Error, TimeoutError):
                async with asyncio.timeout(5):
                    await connection.wait_closed()


def _is_open(connection: asyncssh.SSHClientConnection | None) -> bool:
    return connection is not None and not connection.is_closed()


async def _patiently(connection: asyncssh.SSHClientConnection, line: str) -> Session:
    """Start a line of shell, also where sshd has not seen the end yet of the last session that we had."""
    for delay_s in _REFUSED_DELAYS_S:
        try:
            return await connection.create_process(line, encoding=None)
        except asyncssh.ChannelOpenError as exc:
            if exc.code == _REQUEST_FAILED or connection.is_closed():
                raise
            await asyncio.sleep(delay_s)
    return await connection.create_process(line, encoding=None)
