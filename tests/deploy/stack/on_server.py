"""A server for pocqueue itself: in process, with units that really run, below a folder of the test's."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocqueue.deploy.begin import Options
from pocqueue.deploy.conf import Conf
from pocqueue.deploy.host_key import fingerprint_of
from pocqueue.deploy.runner import run_all
from pocqueue.deploy.stack.run import StackRun
from pocqueue.deploy.stack.steps import Places
from pocqueue.deploy.stack.wheel import CONSTRAINTS
from tests.deploy.confs import conf
from tests.deploy.fake_programs import Fakes, fake_programs
from tests.deploy.server import Server, serving

HERE = Path(__file__).parent
URL = "redis://:squeamish%20ossifrage@127.0.0.1:6379/0"


def wheel(folder: Path, content: str = "one") -> Path:
    """Make a wheel; other contents are other versions."""
    path = folder / content / "pocqueue-0.1.0-py3-none-any.whl"
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(CONSTRAINTS), f"# {content}\n")
    return path


@dataclass
class OnServer:
    """Such a server, and the folder of the person who works on it."""

    server: Server
    fakes: Fakes
    root: Path
    nodes: Path

    def conf(self, **changes: str | None) -> Conf:
        """Return the server's conf."""
        return conf(
            self.nodes,
            **{
                "SERVER_IP": "127.0.0.1",
                "SSH_PORT": str(self.server.port),
                "SSH_KEY": str(self.server.key),
                "SSH_HOST_KEY": fingerprint_of(self.server.host_key),
                "POCQUEUE_ROLE": "io,worker",
                "POCQUEUE_GPUS": "0,1",
                "POCQUEUE_REDIS_URL_FILE": "redis-url",
            }
            | changes,
        )

    async def run(
        self, conf: Conf, wheel: Path | None = None, **options: Any
    ) -> tuple[int, list[str]]:
        """Do it; return the exit code, and the lines without times."""
        console = io.StringIO()
        times = {"live_s": 60, "settle_s": 0} | options
        work = StackRun(wheel, places=Places(str(self.root)), **times)
        how = Options(
            is_confirmed=True,
            console=console,
            retry_delays_s=(0, 0.05, 0.2),
            state_dir=str(self.server.root / "state"),
        )
        code = await run_all([conf], how, work)
        return code, [re.sub(r"^\[.*?\] ", "", line) for line in console.getvalue().splitlines()]

    def pid(self, unit: str) -> int:
        """Return the process of a unit; 0: none."""
        return int(self.fakes.state(f"run/{unit}") or 0)

    @property
    def opt(self) -> Path:
        """Folder of versions."""
        return self.root / "opt" / "pocqueue"

    def restarts(self) -> list[str]:
        """Return the units that were started anew so far."""
        return self.fakes.state("restarts").split()


@asynccontextmanager
async def on_server(folder: Path, programs: Path = HERE / "programs") -> AsyncIterator[OnServer]:
    """Have such a server within the block; its units end with it.

    Args:
        folder: of the test.
        programs: folder of what a wheel installs.
    """
    root, nodes = folder / "machine", folder / "nodes"
    for path in (root / "etc" / "systemd" / "system", nodes):
        path.mkdir(parents=True)
    (nodes / "redis-url").write_text(URL)
    (nodes / "redis-url").chmod(0o600)
    async with serving(folder) as server:
        with fake_programs(folder / "fakes") as fakes:
            fakes.set("root", str(root))
            fakes.set("programs", str(programs))
            fakes.set("gpu", "2")
            fakes.set("interpreter", sys.executable)
            server.env["FAKES"] = str(fakes.folder)
            server.env["PATH"] = f"{HERE / 'fakes'}:{fakes.env['PATH']}"
            try:
                yield OnServer(server, fakes, root, nodes)
            finally:
                for path in (fakes.folder / "state" / "run").glob("*.service"):
                    with suppress(ProcessLookupError, ValueError):
                        if pid := int(path.read_text()):
                            os.killpg(pid, signal.SIGKILL)
