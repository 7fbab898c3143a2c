"""One run at a time: for a conf's folder on this machine, and for a server wherever runs come from.

The server's lock is held by a session of the run's own connection, so that it frees itself when the run ends in any way. After
the connection broke it is taken again before anything else is done; another run may have it by then.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from pathlib import Path

import asyncssh

from pocqueue.deploy.connection import Connection, OpenSession
from pocqueue.deploy.errors import DeployError, Locked, StepFailed, Unreachable
from pocqueue.deploy.remote_job import STATE_DIR
from pocqueue.deploy.result import Session
from pocqueue.deploy.words import Command, one_line
from pocqueue.files import FileLock, lock_holder

#: sshd may take a while to see that the connection which held the lock is gone.
_OWN_WAIT_S = 90.0
_EXIT_LOCKED = 75


@contextmanager
def local_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a node's folder within the block.

    Raises:
        Locked: another run on this machine has it.
        DeployError: the folder cannot be written.
    """
    path = folder / ".lock"
    try:
        lock = FileLock(path, wait=False)
    except BlockingIOError:
        raise Locked(str(folder), f"process {lock_holder(path) or 'unknown'} here") from None
    except OSError as exc:
        raise DeployError(f"{path} cannot be written ({exc.strerror}): mend it.") from None
    with lock:
        lock.note_holder(os.getpid())
        yield


def who_we_are(now: datetime) -> str:
    """Return a line that tells this run from others, for people and for ourselves."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    who = f"{user}@{socket.gethostname()}, process {os.getpid()}, since {now:%Y-%m-%d %H:%M:%S}"
    return one_line(f"{who}, run {secrets.token_hex(4)}")


@asynccontextmanager
async def server_lock(
    connection: Connection, who: str, *, state_dir: str = STATE_DIR
) -> AsyncIterator[None]:
    """Hold the server's lock within the block, taken again each time that the connection was made again.

    Args:
        connection: connected.
        who: one line that no other run has (`who_we_are`).
        state_dir: folder there.

    Raises:
        Locked: another run has it.
        StepFailed: it cannot be taken.
    """
    command = Command((state_dir, who), script="lock", sudo=True)
    held: list[Session] = []

    async def take(open_session: OpenSession) -> None:
        end = asyncio.get_running_loop().time() + _OWN_WAIT_S
        while True:
            session = await open_session(command)
            try:
                line = await session.stdout.readline()
            except (OSError, asyncssh.Error):
                raise Unreachable(f"The connection to {connection.target.host} broke.") from None
            said = one_line(line.decode("utf-8", "replace").strip())
            if said == "locked":
                held[:] = [session]
                return
            # Ours of the connection that broke: sshd takes a while to see that.
            if said != who or asyncio.get_running_loop().time() > end:
                raise await _refused(connection, session, said)
            await asyncio.sleep(0.5)

    await connection.attach(take)
    try:
        yield
    finally:
        connection.detach(take)
        for session in held:
            session.close()


async def _refused(connection: Connection, session: Session, said: str) -> DeployError:
    """Return why the lock could not be taken."""
    reason = ""
    with suppress(OSError, asyncssh.Error):
        reason = (await session.stderr.read(4096)).decode("utf-8", "replace")
        await session.wait_closed()
    if session.exit_status == _EXIT_LOCKED:
        return Locked(connection.target.host, said)
    if session.exit_status is None:
        return Unreachable(f"The connection to {connection.target.host} broke.")
    return StepFailed(
        "lock",
        "the server's lock cannot be taken.",
        exit_code_there=session.exit_status,
        tail=[said, *reason.splitlines()],
    )
