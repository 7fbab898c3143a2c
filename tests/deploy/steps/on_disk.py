"""A server whose disk is mounted, for the steps that stand on it: in process, with fakes."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pocqueue.deploy.engine import Host, Plan, Step, run_steps
from pocqueue.deploy.journal import Journal
from pocqueue.deploy.log import Log
from pocqueue.deploy.words import Redactor, Secret
from tests.deploy.confs import PASSWORD, conf
from tests.deploy.fake_programs import Fakes, fake_programs
from tests.deploy.server import Server, connected, serving


@dataclass
class OnDisk:
    """A run's host on such a server."""

    host: Host
    server: Server
    fakes: Fakes
    console: io.StringIO
    disk: Path

    async def run(self, *steps: Step) -> list[str]:
        """Run steps; return the lines that this wrote, without times."""
        before = len(self.console.getvalue().splitlines())
        await run_steps(self.host, steps, now=lambda: "2026-01-02 03:04:05")
        return [line.partition("] ")[2] for line in self.console.getvalue().splitlines()[before:]]

    async def plan(self, step: Step) -> Plan:
        """Return what a step would do."""
        return step.plan(await step.look(self.host))

    def later(self, **changes: Any) -> OnDisk:
        """Return what another run on this server has: its memory of before, nothing else.

        Args:
            changes: of the conf.
        """
        node = replace(self.host.conf, **changes)
        journal = Journal.read(node.folder / "state.json", node.server_ip)
        host = Host(node, self.host.connection, self.host.out, journal, self.host.state_dir)
        return OnDisk(host, self.server, self.fakes, self.console, self.disk)


def kinds(lines: Sequence[str]) -> set[str]:
    """Return the levels of a log's lines."""
    return {line.split()[0] for line in lines}


@asynccontextmanager
async def on_disk(folder: Path, **changes: str | None) -> AsyncIterator[OnDisk]:
    """Be connected with a server whose disk is mounted; the fakes know the password.

    Args:
        folder: of the test.
        changes: of the conf.
    """
    async with serving(folder) as server:
        disk = folder / "disk"
        disk.mkdir()
        with fake_programs(folder / "fakes") as fakes:
            fakes.secret(PASSWORD)
            fakes.set("mounted", str(disk))
            server.env |= {"FAKES": str(fakes.folder)}
            # A folder of the test's, which no conf file may name.
            places: dict[str, Any] = {
                "volume_mount": str(disk),
                "hf_home": str(disk / "hf"),
                "gonka_path": str(disk / "gonka"),
            }
            node = replace(conf(folder, **changes), **places)
            node.folder.mkdir(exist_ok=True)
            journal = Journal.read(node.folder / "state.json", node.server_ip)
            console = io.StringIO()
            async with connected(server, folder) as connection:
                out = Log(Redactor([Secret("KEYRING_PASSWORD", PASSWORD)]), console=console)
                host = Host(node, connection, out, journal, str(server.root / "state"))
                yield OnDisk(host, server, fakes, console, disk)
            assert PASSWORD not in console.getvalue()
            assert PASSWORD not in "".join(server.commands)
            state = node.folder / "state.json"
            assert not state.exists() or PASSWORD not in state.read_text()
