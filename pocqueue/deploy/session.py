"""From a conf file to a server that can be worked on: connected, logged in, and who we are there known."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.connection import RETRY_DELAYS_S, Connection
from pocqueue.deploy.engine import Host
from pocqueue.deploy.errors import HostKeyUnknown, StepFailed
from pocqueue.deploy.folder import make_folders, tracked_secrets
from pocqueue.deploy.host_key import HostKeys
from pocqueue.deploy.journal import Journal
from pocqueue.deploy.log import Log
from pocqueue.deploy.remote_job import STATE_DIR
from pocqueue.deploy.transport import Target
from pocqueue.deploy.words import Command, Secret


@dataclass(frozen=True, slots=True)
class Login:
    """Who we are on a server, and what it says of itself."""

    uid: int
    user: str
    host: str
    system: str
    kernel: str
    arch: str
    shell: str
    has_sudo: bool

    @classmethod
    def read(cls, text: str) -> Login:
        """Return what `scripts/login.sh` printed.

        Raises:
            StepFailed: it is something else, such as a banner of a shell that is none.
        """
        said = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)
        try:
            return cls(
                uid=int(said["uid"]),
                user=said["user"],
                host=said["host"],
                system=said.get("system", "unknown system"),
                kernel=said["kernel"],
                arch=said["arch"],
                shell=said["shell"],
                has_sudo=said["sudo"] == "yes",
            )
        except (KeyError, ValueError):
            raise StepFailed(
                "login", "the server does not run a script by `sh`.", tail=text.splitlines()[-20:]
            ) from None


@asynccontextmanager
async def opened(
    conf: Conf,
    out: Log,
    *,
    confirm_key: Callable[[HostKeyUnknown], Awaitable[bool]] | None = None,
    sudo_password: Secret | None = None,
    retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
    state_dir: str = STATE_DIR,
) -> AsyncIterator[Host]:
    """Be connected with a conf's server within the block.

    Args:
        conf: of the node; its folder is made.
        out: log of the run.
        confirm_key: asks a person whether a host key is the server's; None: nobody can be asked.
        sudo_password: for a login whose sudo asks.
        retry_delays_s: as of `Connection`.
        state_dir: folder of ours there.

    Raises:
        DeployError: the server cannot be reached, is not the one that it should be, or gives us no root.
    """
    make_folders(conf)
    for path in tracked_secrets(conf):
        out.warn(f"git keeps {path}, which has secrets: git rm --cached it, and change them.")
    keys = HostKeys(conf.folder / "known_hosts", conf.server_ip, conf.ssh_port, conf.ssh_host_key)
    target = Target(conf.server_ip, conf.ssh_port, conf.ssh_user, conf.ssh_key, conf.ssh_jump)
    journal = Journal.read(conf.folder / "state.json", conf.server_ip)
    async with Connection(target, keys, retry_delays_s=retry_delays_s) as connection:
        out.check("Checking SSH connectivity...")
        try:
            await connection.connect()
        except HostKeyUnknown as exc:
            if confirm_key is None or not await confirm_key(exc):
                raise
            keys.keep(exc.key)
            await connection.connect()
        out.ok("SSH connection successful")
        login = await log_in(connection, sudo_password)
        out.info(f"{login.user}@{login.host}: {login.system}, {login.kernel}, {login.arch}")
        yield Host(conf, connection, out, journal, state_dir)


async def log_in(connection: Connection, sudo_password: Secret | None) -> Login:
    """Find out who we are, and have the connection become root in the way that works.

    Raises:
        StepFailed: we cannot become root.
    """
    mark = secrets.token_hex(16)
    found = await connection.look(Command((mark,), script="login"))
    own, _, said = found.stdout.partition(f"{mark}\n")
    login = Login.read(said or own)
    connection.is_csh = login.shell.endswith("csh")
    if own:
        # What the login's shell prints by itself is not what a command says.
        connection.mark = mark
    if login.uid == 0:
        connection.sudo = ()
    elif not login.has_sudo:
        if sudo_password is None:
            raise StepFailed(
                "sudo",
                f"{login.user} has no sudo without a password. Run again with --ask-sudo, or let it on the server: "
                f"echo '{login.user} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/pocqueue",
            )
        connection.sudo_password = sudo_password
        tried = await connection.look(Command(("true",), sudo=True))
        if tried.exit_code != 0:
            raise StepFailed("sudo", "the password is not taken.", tail=tried.tail)
    return login
