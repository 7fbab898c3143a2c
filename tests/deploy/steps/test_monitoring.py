"""Prometheus and the node exporter beside a node: off, on, broken, taken back."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from pocqueue.deploy.journal import STILL_THERE
from pocqueue.deploy.ports import PORTS, Reach
from pocqueue.deploy.steps.monitoring import FILES, Monitoring, file_text
from tests.deploy.steps.on_disk import kinds, on_disk

STEP = Monitoring()


async def test_off_is_done(tmp_path: Path) -> None:
    """The default: nothing is looked at."""
    async with on_disk(tmp_path) as here:
        lines = await here.run(STEP)
        assert lines[-1] == "[SKIP] monitoring: MONITORING=off"
        assert not here.fakes.calls()


async def test_on_is_made_once_and_taken_back(tmp_path: Path) -> None:
    """Files, services; the second run changes nothing; a file that somebody changed keeps all of it."""
    async with on_disk(tmp_path, MONITORING="on") as here:
        folder = here.disk / "prometheus"
        lines = await here.run(STEP)
        assert lines[-1].startswith("[OK] monitoring:")
        assert {path.name for path in folder.iterdir()} == set(FILES)
        assert here.fakes.state("started").split() == ["prometheus", "node-exporter"]
        later = here.later()
        assert kinds(await later.run(STEP)) == {"[INFO]", "[CHECK]", "[SKIP]"}
        [undo] = later.host.journal.undos
        (folder / "prometheus.yml").write_text("mine")
        said = await here.host.connection.run(undo.command())
        assert (said.exit_code, folder.exists()) == (STILL_THERE, True)
        (folder / "prometheus.yml").write_text(file_text("prometheus.yml"))
        assert (await here.host.connection.run(undo.command())).exit_code == 0
        assert not folder.exists()
        assert not here.fakes.state("volumes-removed")
        assert (await here.host.connection.run(undo.command())).exit_code == 0


async def test_a_failure_is_a_warning(tmp_path: Path) -> None:
    """A node earns without it: the run goes on, and says so."""
    async with on_disk(tmp_path, MONITORING="on") as here:
        here.fakes.set("pull", "fails")
        lines = await here.run(STEP)
        assert not [line for line in lines if line.startswith(("[OK]", "[ERROR]"))]
        warned = [line for line in lines if line.startswith("[WARN]")]
        assert "The run goes on without it." in warned[0]
        assert "no such host" in warned[-1]


def test_images_are_pinned_and_nothing_is_published() -> None:
    """Digests; loopback addresses that the table of ports has; nothing of strangers is mounted for writing."""
    project = yaml.safe_load(file_text("docker-compose.yml"))
    assert project["name"] == "pocqueue-monitoring"
    ports = {use.port: use for use in PORTS if use.role == "monitoring"}
    for service in project["services"].values():
        assert re.fullmatch(r"[\w./-]+:v[\d.]+@sha256:[0-9a-f]{64}", service["image"])
        assert "ports" not in service
        [listens] = [w for w in service["command"] if w.startswith("--web.listen-address=")]
        address, _, port = listens.partition("=")[2].partition(":")
        assert (address, ports[int(port)].reach) == ("127.0.0.1", Reach.LOOPBACK)
        assert service["read_only"]
        writable = [v for v in service["volumes"] if v.startswith(("/", ".")) and ":ro" not in v]
        assert not writable
