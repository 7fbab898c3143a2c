"""Phase 7 as the commands do it: a node that runs, and one with each of its parts broken."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pocqueue.deploy import begin, runner
from pocqueue.deploy.begin import Options
from pocqueue.deploy.conf import Conf
from pocqueue.deploy.facts.http import Answer
from pocqueue.deploy.facts.node import HEALTH_URL, MODELS_URL, NODES_URL, SETUP_URL
from pocqueue.deploy.host_key import fingerprint_of
from pocqueue.deploy.runner import deploy, dry_run, run_all, status, verified
from pocqueue.deploy.steps.all_services import AllServices, ClosedPorts
from pocqueue.deploy.steps.registration import participant_url
from pocqueue.deploy.steps.repository import Repository
from tests.deploy import running_node
from tests.deploy.confs import PASSWORD
from tests.deploy.running_node import STATUS_URL, World, models, nodes, runs_well, setup
from tests.deploy.server import FAKES
from tests.deploy.steps.on_disk import OnDisk, on_disk
from tests.deploy.steps_of_tests import tree

SUCCESS = "Deployment completed successfully"
ADDRESS = "gonka17tvsmufmewvwfy3dfxz7l20jmlhhn6eqsrsss9"


@dataclass
class Node:
    """A node that runs.

    Attributes:
        disk: its server.
        conf: of it.
        world: what is seen from outside.
        text: what the last command wrote.
    """

    disk: OnDisk
    conf: Conf
    world: World
    text: str = ""

    async def __call__(self, work: Any = deploy, **options: Any) -> int:
        console = io.StringIO()
        chosen = Options(
            is_confirmed=True,
            console=console,
            outside=self.world,
            growth_s=0.01,
            first=7,
            state_dir=self.disk.host.state_dir,
            **options,
        )
        try:
            return await run_all([self.conf], chosen, work)
        finally:
            self.text = console.getvalue()
            assert PASSWORD not in self.text

    @property
    def lines(self) -> list[str]:
        """The messages of the last command."""
        return [line.partition("] ")[2] for line in self.text.splitlines()]

    @property
    def verification(self) -> list[str]:
        """The lines of verification.txt."""
        return (self.conf.folder / "verification.txt").read_text().splitlines()


@pytest_asyncio.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    """A node whose phases but the last are done."""

    async def no_checks(*_args: Any) -> tuple[()]:
        return ()

    async with on_disk(tmp_path) as disk:
        await disk.run(Repository(), ClosedPorts(), AllServices())
        monkeypatch.setattr(begin, "all_steps", lambda _conf, **_options: ())
        monkeypatch.setattr(runner, "look_at_server", no_checks)
        runs_well(disk.fakes, disk.host.conf)
        server = disk.server
        bin_dir = tmp_path / "bin"
        bin_dir.mkdir()
        (bin_dir / "sudo").write_text('#!/bin/sh\nshift\nexec "$@"\n')
        (bin_dir / "sudo").chmod(0o755)
        server.env["PATH"] = f"{FAKES}:{bin_dir}:/usr/sbin:/usr/bin:/sbin:/bin"
        where = {
            "server_ip": "127.0.0.1",
            "ssh_port": server.port,
            "ssh_key": server.key,
            "ssh_host_key": fingerprint_of(server.host_key),
            "public_url": "http://203.0.113.7:8000",
        }
        one: Conf = replace(disk.host.conf, **where)  # type: ignore[arg-type]
        (one.folder / "state.json").unlink(missing_ok=True)
        (one.folder / "warm_address.txt").write_text(f"{ADDRESS}\n")
        yield Node(disk, one, World())


async def test_a_verified_node_earns_the_report(node: Node) -> None:
    """The first workflow's end: its five lines, the files, the log, the links, and the grant with both names."""
    before = tree(node.disk.disk)
    assert await node() == 0
    end = node.lines[node.lines.index(f"[OK] ✅ {SUCCESS}") :]
    folder, seed = node.conf.folder, "http://node2.gonka.ai:8000"
    assert end == [
        f"[OK] ✅ {SUCCESS}",
        f"[INFO] 📝 Все важные файлы сохранены в {folder}/",  # noqa: RUF001 - words of the first workflow
        f"[INFO]     {folder}/warm_address.txt",
        f"[INFO]     {folder}/verification.txt",
        f"[INFO] 📊 Полный лог в {(node.conf.logs / 'quick-newton_latest.log').resolve()}",
        "[INFO] 🔗 Полезные ссылки для проверки",
        f"[INFO]     Participant API: {participant_url(seed, node.conf.account_pubkey)}",
        "[INFO]     Dashboard:       http://203.0.113.7:8000/",
        f"[INFO]     Network:         {seed}/v1/epochs/current/participants",
        "[WARN] ⚠️  ВАЖНО: Выполните команду grant локально!",
        "[INFO] ./inferenced tx inference grant-ml-ops-permissions \\",
        "[INFO]     gonka-account-key \\",
        f"[INFO]     {ADDRESS} \\",
        "[INFO]     --from gonka-account-key \\",
        "[INFO]     --keyring-backend file \\",
        "[INFO]     --gas 2000000 \\",
        f"[INFO]     --node {seed}/chain-rpc/",
    ]
    names = [line.split(":")[0] for line in node.verification]
    assert names[:11] == [
        *("PASS services", "PASS participant", "PASS node-status", "PASS chain-synced"),
        *("PASS public-url", "PASS gpus", "PASS torch-cuda", "PASS mlnode-health", "PASS mlnodes"),
        *("PASS model", "PASS setup-report"),
    ]
    assert not any(name.startswith("FAIL") for name in names)
    assert (folder / "verification.txt").stat().st_mode & 0o777 == 0o600
    assert tree(node.disk.disk) == before
    assert await node(verified) == 0
    assert "[OK] Every required check passed" in node.text
    assert SUCCESS not in node.text
    assert not any(line.startswith(("[EXEC]", "[OUTPUT]")) for line in node.lines)
    assert await node(status) == 0
    assert node.lines[-1].startswith("[INFO] verification of ")
    assert node.lines[-1].endswith(" 0 FAIL")


BREAKS: dict[str, Any] = {
    "services": lambda node: node.disk.fakes.set("service-api", "exits"),
    "participant": lambda node: node.disk.fakes.answer(
        participant_url(node.conf.seed_api_url, node.conf.account_pubkey), "{}", 404
    ),
    "node-status, chain-synced": lambda node: node.disk.fakes.answer(STATUS_URL, "ERROR", 500),
    "chain-synced": lambda node: node.disk.fakes.answer(
        STATUS_URL, running_node.status(catching_up=True)
    ),
    "public-url": lambda node: setattr(node.world, "page", Answer(0)),
    "gpus": lambda node: node.disk.fakes.set("gpu", "lost"),
    "torch-cuda": lambda node: node.disk.fakes.set("exec-mlnode-308", "False 0"),
    "mlnode-health": lambda node: node.disk.fakes.answer(HEALTH_URL, "ERROR: no CUDA"),
    "mlnodes": lambda node: node.disk.fakes.answer(NODES_URL, nodes("FAILED")),
    "model": lambda node: node.disk.fakes.answer(MODELS_URL, models("other")),
    "setup-report": lambda node: node.disk.fakes.answer(SETUP_URL, setup(block_sync="FAIL")),
}


async def test_no_success_is_said_that_is_not_earned(node: Node) -> None:
    """With each required check broken: exit code 1, its line in verification.txt, and no success line; ignoring it helps nothing."""
    programs = ("service-api", "gpu")
    for names, break_it in BREAKS.items():
        break_it(node)
        assert await node(ignored=(names,)) == 1, names
        failed = [line for line in node.verification if line.startswith("FAIL")]
        assert ", ".join(line.split()[1].rstrip(":") for line in failed) == names
        assert any(line.endswith(f"failed: {names}.") and "[ERROR]" in line for line in node.lines)
        assert SUCCESS not in node.text
        assert "grant-ml-ops-permissions" not in node.text
        for program in programs:
            node.disk.fakes.unset(program)
        node.world.page = World().page
        runs_well(node.disk.fakes, node.conf)
    node.world.page = Answer(0)
    assert await node(verified) == 1
    assert "Every required check passed" not in node.text
    assert f"go on with: pocqueue deploy verify {node.conf.path}" in node.text
    node.world.page = World().page
    assert await node(verified) == 0


async def test_what_was_verified_before_counts_for_nothing(node: Node) -> None:
    """A look that cannot be finished leaves no older result behind."""
    assert await node(verified) == 0
    node.disk.server.fault(running_node.broken("docker_facts"))
    assert await node(verified) == 1
    assert not (node.conf.folder / "verification.txt").exists()


async def test_warnings_fail_nothing(node: Node) -> None:
    """An open port, and errors in the logs: they are said, with how many."""
    node.world.open = {8080}
    node.disk.fakes.set("logs-api", "a level=error x\nlevel=fatal y")
    assert await node() == 0
    assert any("[WARN] WARN closed-8080: open" in line for line in node.lines)
    assert any("[WARN] WARN log-errors: 2, the last:" in line for line in node.lines)
    assert f"[OK] ✅ {SUCCESS}" in node.lines


async def test_a_dry_run_says_that_it_will_be_looked_at(node: Node) -> None:
    """And does not look."""
    assert await node(dry_run) == 0
    assert "[INFO] PHASE 7  VERIFICATION" in node.lines
    assert not (node.conf.folder / "verification.txt").exists()
