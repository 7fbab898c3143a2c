"""A server whose disk is mounted, for the steps that stand on it: in process, with fakes."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pocqueue.deploy.engine import Host, Plan, Step, run_steps
from pocqueue.deploy.errors import OutcomeUnknown, Unreachable
from pocqueue.deploy.journal import Journal
from pocqueue.deploy.log import Log
from pocqueue.deploy.words import Redactor
from tests.deploy.confs import conf
from tests.deploy.fake_programs import Fakes, fake_programs
from tests.deploy.server import Server, connected, serving

#: Of every key that the fakes make.
MNEMONIC = (
    "amber basic cabin dance eager fabric galaxy habit ice jacket kangaroo ladder magic naive oak palace quick rabbit sad table "
    "ugly vague wage yard"
)


@dataclass
class OnDisk:
    """A run's host on such a server."""

    host: Host
    server: Server
    fakes: Fakes
    console: io.StringIO
    disk: Path

    async def run(self, *steps: Step) -> list[str]:
        """Run steps, which know nothing of an earlier look; return the lines that this wrote, without times."""
        self.host.memory.clear()
        before = len(self.console.getvalue().splitlines())
        await run_steps(self.host, steps, now=lambda: "2026-01-02 03:04:05")
        return self._lines(before)

    async def plan(self, step: Step) -> Plan:
        """Return what a step would do now."""
        self.host.memory.clear()
        return step.plan(await step.look(self.host))

    @property
    def join(self) -> Path:
        """Return the folder of the compose files."""
        return self.disk / "gonka" / "deploy" / "join"

    def has_project(self) -> None:
        """Have the network's repository there."""
        self.fakes.has_clone(self.disk / "gonka")

    async def run_on(self, *steps: Step) -> None:
        """Run steps as people do: again, with what a new run knows, where the connection has broken."""
        for _ in range(12):
            with suppress(OutcomeUnknown, Unreachable):
                await self.later().run(*steps)
                return
        raise AssertionError("it breaks for ever")

    def _lines(self, first: int) -> list[str]:
        return [line.partition("] ")[2] for line in self.console.getvalue().splitlines()[first:]]

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

    At the end nothing that is shown, sent as a command, or written down has it, or the words of a key.

    Args:
        folder: of the test.
        changes: of the conf.
    """
    async with serving(folder) as server:
        disk = folder / "disk"
        disk.mkdir()
        with fake_programs(folder / "fakes") as fakes:
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
                password = node.keyring_password
                assert password is not None
                fakes.secret(password.reveal())
                out = Log(Redactor([password]), console=console)
                host = Host(node, connection, out, journal, str(server.root / "state"))
                yield OnDisk(host, server, fakes, console, disk)
            seen = [console.getvalue(), *server.commands]
            seen += [path.read_text() for path in [node.folder / "state.json"] if path.exists()]
            for secret in (password.reveal(), MNEMONIC):
                assert not [text for text in seen if secret in text]
