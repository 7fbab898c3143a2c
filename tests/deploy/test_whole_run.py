"""Phases 0 and 1 as the command does them: real checks on faked programs, a real disk, the seed's log."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from pocqueue.deploy.begin import Options
from pocqueue.deploy.conf import Conf
from pocqueue.deploy.facts.format_rule import FormatRule
from pocqueue.deploy.host_key import fingerprint_of
from pocqueue.deploy.runner import check, deploy, dry_run, rollback, run_all, status
from pocqueue.deploy.steps import volume
from tests.deploy import loop_devices, namespace as namespaces
from tests.deploy.confs import PASSWORD, conf
from tests.deploy.fake_programs import Fakes, fake_programs
from tests.deploy.loop_devices import LoopDevice
from tests.deploy.namespace import Namespace
from tests.deploy.server import Server, serving

pytestmark = pytest.mark.skipif(
    bool(reason := namespaces.missing() or loop_devices.missing()), reason=reason or "none"
)

MOUNT = "/mnt/pocqueue-test"
IGNORED = ("disk",)


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    """Programs of a server with one GPU that reaches the network; they fail if they see the password."""
    with fake_programs(tmp_path / "fakes") as fakes:
        for url in ("http://node2.gonka.ai:8000", "https://huggingface.co", "https://ghcr.io"):
            fakes.answer(url, "")
        fakes.secret(PASSWORD)
        yield fakes


@pytest_asyncio.fixture
async def server(tmp_path: Path, view: Namespace, fakes: Fakes) -> AsyncIterator[Server]:
    """A server whose commands run in that view."""
    async with serving(tmp_path) as server:
        server.env |= fakes.env
        server.before = view.words
        yield server


@pytest.fixture(autouse=True)
def loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have loop devices pass for disks."""
    monkeypatch.setattr(volume, "FormatRule", functools.partial(FormatRule, kinds=("loop",)))


def node(server: Server, folder: Path, disk: LoopDevice) -> Conf:
    """Return the conf of a server."""
    nodes = folder / "nodes"
    nodes.mkdir(exist_ok=True)
    return conf(
        nodes,
        SERVER_IP="127.0.0.1",
        SSH_USER="nobody",
        SSH_PORT=str(server.port),
        SSH_KEY=str(server.key),
        SSH_HOST_KEY=fingerprint_of(server.host_key),
        VOLUME_DEVICE=disk.path,
        VOLUME_MOUNT=MOUNT,
        VOLUME_MIN_GB="0",
    )


async def run(one: Conf, work: object, ignored: tuple[str, ...] = IGNORED) -> tuple[int, list[str]]:
    """Do something; return its exit code and its lines without times."""
    console = io.StringIO()
    options = Options(is_confirmed=True, console=console, ignored=ignored, last=1)
    code = await run_all([one], options, work)  # type: ignore[arg-type]
    assert PASSWORD not in console.getvalue()
    lines = console.getvalue().splitlines()
    form = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] \[(INFO|CHECK|EXEC|OUTPUT|OK|SKIP|WARN|ERROR)\] "
    assert all(re.match(form, line) for line in lines)
    return code, [line.partition("] ")[2] for line in lines]


def of_level(lines: list[str], *levels: str) -> list[str]:
    """Return the messages of some levels."""
    return [line for line in lines if line.split("]")[0][1:] in levels]


async def test_a_bare_server_is_prepared(
    server: Server, view: Namespace, disk: LoopDevice, fakes: Fakes, tmp_path: Path
) -> None:
    """Looked at, planned, done, looked at again, taken back: each says what is so."""
    one = node(server, tmp_path, disk)
    empty, fstab = disk.hash(), view.run("cat", "/etc/fstab")
    code, lines = await run(one, check, ())
    assert (code, of_level(lines, "ERROR")[0].split(":")[0]) == (1, "[ERROR] FAIL disk")
    code, _ = await run(one, deploy, ())
    assert code == 1
    code, planned = await run(one, dry_run)
    assert code == 0
    assert planned[-1].startswith("[INFO] 1 step to change, 3 done, ")
    assert planned[-1].endswith(" unknown. Nothing was changed.")
    assert (disk.hash(), view.run("cat", "/etc/fstab")) == (empty, fstab)
    assert not view.run("sh", "-c", "ls /var/lib/pocqueue-deploy 2> /dev/null || true")
    code, lines = await run(one, deploy)
    assert code == 0
    assert [line.split(": ")[0] for line in of_level(lines, "OK")[-5:]] == [
        *("[OK] format volume", "[OK] /etc/fstab", "[OK] mount volume"),
        *("[OK] owner of mount point", "[OK] volume.txt"),
    ]
    commands = [line.removeprefix("[EXEC] Remote: ") for line in of_level(lines, "EXEC")]
    assert any(commands[0] in line for line in planned)
    code, again = await run(one, deploy)
    assert (code, of_level(again, "EXEC", "OUTPUT", "ERROR")) == (0, [])
    assert len(of_level(again, "SKIP")) == 8
    code, lines = await run(one, status)
    assert code == 0
    assert any(line.startswith("[OK] volume.txt: ") for line in lines)
    uuid = (one.folder / "volume.txt").read_text().strip()
    code, lines = await run(one, rollback)
    assert code == 0
    assert view.run("cat", "/etc/fstab") == fstab
    assert MOUNT not in view.run("cat", "/proc/self/mounts")
    assert loop_devices.run("blkid", "-p", "-s", "UUID", "-o", "value", disk.path).strip() == uuid
    # It is our filesystem still: the next run mounts it, and formats nothing.
    code, lines = await run(one, deploy)
    assert code == 0
    assert not any("format_volume" in line for line in of_level(lines, "EXEC"))
    assert not fakes.leaks()
