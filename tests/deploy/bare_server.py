"""A bare server for whole runs: an empty disk, fakes of what it lacks, and a network that answers."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.host_key import fingerprint_of
from tests.deploy.confs import PASSWORD, conf
from tests.deploy.fake_programs import Fakes, fake_programs
from tests.deploy.loop_devices import LoopDevice
from tests.deploy.namespace import Namespace
from tests.deploy.server import Server, serving

MOUNT = "/mnt/pocqueue-test"


@dataclass(frozen=True)
class BareServer:
    """A server.

    Attributes:
        server: its SSH.
        view: where its commands run.
        disk: its data disk.
        fakes: its programs.
        conf: of the node.
    """

    server: Server
    view: Namespace
    disk: LoopDevice
    fakes: Fakes
    conf: Conf

    def tree(self) -> str:
        """Return a hash of all that may be changed there, but for who held the lock last."""
        listed = self.view.run(
            *("sh", "-c", 'find "$@" -xdev -printf "%p %y %m %l %s %T@\\n" | sort', "sh"),
            *("/etc/fstab", "/mnt", "/var/lib/pocqueue-deploy", MOUNT),
        )
        kept = [line for line in listed.splitlines() if "lock" not in line]
        return hashlib.sha256("\n".join(kept).encode()).hexdigest()


@asynccontextmanager
async def bare_server(folder: Path, view: Namespace, disk: LoopDevice) -> AsyncIterator[BareServer]:
    """Have one within the block; at its end no program has seen the password."""
    with fake_programs(folder / "fakes") as fakes:
        fakes.secret(PASSWORD)
        for url in ("http://node2.gonka.ai:8000", "https://huggingface.co", "https://ghcr.io"):
            fakes.answer(url, "")
        async with serving(folder) as server:
            server.env |= fakes.env
            server.before = view.words
            server.sftp_root = Path(f"/proc/{view.pid}/root")
            nodes = folder / "nodes"
            nodes.mkdir()
            node = conf(
                nodes,
                SERVER_IP="127.0.0.1",
                SSH_USER="root",
                SSH_PORT=str(server.port),
                SSH_KEY=str(server.key),
                SSH_HOST_KEY=fingerprint_of(server.host_key),
                VOLUME_DEVICE=disk.path,
                VOLUME_MOUNT=MOUNT,
                VOLUME_MIN_GB="0",
            )
            yield BareServer(server, view, disk, fakes, node)
