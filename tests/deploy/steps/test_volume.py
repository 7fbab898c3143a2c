"""Phase 1 on a real disk: a loop device, real mkfs, fstab and mounts, in a namespace of their own."""

from __future__ import annotations

import functools
import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from pocqueue.deploy.engine import Host, Step, run_steps
from pocqueue.deploy.errors import DeployError, OutcomeUnknown, StepFailed, UnsafeDisk
from pocqueue.deploy.facts.format_rule import FormatRule
from pocqueue.deploy.journal import STILL_THERE, Journal
from pocqueue.deploy.log import Log
from pocqueue.deploy.planning import Planned, plan_steps
from pocqueue.deploy.remote_job import STATE_DIR
from pocqueue.deploy.steps import all_steps, volume
from pocqueue.deploy.steps.monitoring import Monitoring
from pocqueue.deploy.steps.packages import Packages
from pocqueue.deploy.words import Redactor
from tests.deploy import loop_devices, namespace as namespaces
from tests.deploy.confs import conf
from tests.deploy.loop_devices import LoopDevice, loop_device
from tests.deploy.namespace import Namespace
from tests.deploy.server import Fault, Server, connected, serving

pytestmark = pytest.mark.skipif(
    bool(reason := namespaces.missing() or loop_devices.missing()), reason=reason or "none"
)

MOUNT = "/mnt/pocqueue-test"


@pytest_asyncio.fixture
async def server(tmp_path: Path, view: Namespace) -> AsyncIterator[Server]:
    """A server whose commands run in that view."""
    async with serving(tmp_path) as server:
        server.env["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
        server.before = view.words
        yield server


@pytest.fixture(autouse=True)
def loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have loop devices pass for disks."""
    monkeypatch.setattr(volume, "FormatRule", functools.partial(FormatRule, kinds=("loop",)))


class Runs:
    """Runs of phase 1 on one server, without the steps that are about docker: there is none in the view."""

    def __init__(self, server: Server, folder: Path, disk: LoopDevice, **changes: str) -> None:
        self.server = server
        self.folder = folder
        base = {"VOLUME_DEVICE": disk.path, "VOLUME_MOUNT": MOUNT, "VOLUME_MIN_GB": "0"}
        keys = folder / "admins.pub"
        if "ADMIN_KEYS" in changes:
            keys.write_text(changes["ADMIN_KEYS"])
            changes["ADMIN_KEYS"] = str(keys)
        self.conf = conf(folder, **{"SSH_USER": "nobody", **base, **changes})
        self.conf.folder.mkdir(exist_ok=True)
        self.steps: Sequence[Step] = [
            step
            for step in all_steps(self.conf)
            if step.phase == 1 and not isinstance(step, Packages | Monitoring)
        ]

    @asynccontextmanager
    async def host(self) -> AsyncIterator[tuple[Host, io.StringIO]]:
        """Be connected."""
        console = io.StringIO()
        journal = Journal.read(self.conf.folder / "state.json", self.conf.server_ip)
        async with connected(self.server, self.folder) as connection:
            out = Log(Redactor(), console=console)
            yield Host(self.conf, connection, out, journal, STATE_DIR), console

    async def run(self, *, is_asked: bool = True) -> str:
        """Run all steps, as after the operator was asked; return the log."""
        async with self.host() as (host, console):
            if is_asked:
                plans = [item.plan for item in await plan_steps(host, self.steps) if item.plan]
                host.confirmed.update(plan.destroys for plan in plans)
            await run_steps(host, self.steps, now=lambda: "2026-01-02 03:04:05")
            return console.getvalue()

    async def plan(self) -> dict[str, Planned]:
        """Return the plan by the steps' names."""
        async with self.host() as (host, _):
            return {item.step.name: item for item in await plan_steps(host, self.steps)}


def filesystem(disk: LoopDevice) -> str:
    """Return the UUID of what is on a disk."""
    return loop_devices.run("blkid", "-p", "-s", "UUID", "-o", "value", disk.path).strip()


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFxtkahP9A6ocXDJwFUM8eXOBaWJtSNUrLxjxCya/I+G a b"


async def test_an_empty_disk_becomes_the_volume(
    server: Server, view: Namespace, disk: LoopDevice, tmp_path: Path
) -> None:
    """Dry run first, which changes nothing and has the run's commands; a second run does nothing; this machine sees none of it."""
    runs = Runs(server, tmp_path, disk, ADMIN_KEYS=f"# us\n{KEY}\n")
    (server.root / ".ssh").mkdir()
    authorized = server.root / ".ssh" / "authorized_keys"
    theirs = "ssh-ed25519 " + KEY.split()[1][:-4] + "AAAA theirs"
    authorized.write_text(f"# by hand, without an end\n{theirs}")
    fstab, machine = view.run("cat", "/etc/fstab"), loop_devices.run("cat", "/etc/fstab")
    empty = disk.hash()
    plan = await runs.plan()
    assert [item.state for item in plan.values()] == [*("change", "change"), *["unknown"] * 4]
    assert plan["format volume"].plan is not None
    [mkfs] = plan["format volume"].plan.actions
    assert disk.hash() == empty
    assert not runs.server.root.joinpath("state").exists()
    text = await runs.run()
    assert f"[EXEC] Remote: {mkfs.shown()}" in text
    uuid = filesystem(disk)
    line = f"UUID={uuid} {MOUNT} ext4 defaults,nofail 0 2\n"
    assert view.run("cat", "/etc/fstab") == fstab + line
    assert view.run("cat", f"/etc/fstab.pocqueue-{uuid}") == fstab
    assert view.run("findmnt", "-n", "-o", "UUID", "--mountpoint", MOUNT).strip() == uuid
    assert view.run("stat", "-c", "%U", MOUNT).strip() == "nobody"
    assert (runs.conf.folder / "volume.txt").read_text() == f"{uuid}\n"
    assert authorized.read_text() == f"# by hand, without an end\n{theirs}\n{KEY}\n"
    assert loop_devices.run("cat", "/etc/fstab") == machine
    again = await runs.run()
    assert "[EXEC]" not in again
    assert "[OK]" not in again
    assert {item.state for item in (await runs.plan()).values()} == {"skip"}
    # What was added is taken away by the journal's words, and nothing else.
    journal = Journal.read(runs.conf.folder / "state.json", runs.conf.server_ip)
    async with runs.host() as (host, _):
        for undo in reversed(journal.undos):
            assert (await host.connection.run(undo.command())).exit_code == 0, undo
    assert view.run("cat", "/etc/fstab") == fstab
    assert authorized.read_text() == f"# by hand, without an end\n{theirs}\n"
    assert "pocqueue-test" not in view.run("cat", "/proc/self/mounts")
    assert filesystem(disk) == uuid
    # A line that somebody changed, and a mount that another one covers, still stand.
    view.run(
        "sh", "-c", f"echo 'UUID={uuid} {MOUNT} ext4 ro,nofail 0 2' >> /etc/fstab; mount {MOUNT}"
    )
    view.run("mount", "-t", "tmpfs", "none", MOUNT)
    fstab = view.run("cat", "/etc/fstab")
    async with runs.host() as (host, _):
        codes = {
            undo.script: (await host.connection.run(undo.command())).exit_code
            for undo in journal.undos
        }
    assert codes == {"admin_keys": 0, "fstab": STILL_THERE, "unmount_volume": STILL_THERE}
    assert view.run("cat", "/etc/fstab") == fstab
    view.run("umount", MOUNT)
    view.run("umount", MOUNT)


async def test_old_data_is_named_as_what_is_lost(
    server: Server, disk: LoopDevice, tmp_path: Path
) -> None:
    """Nobody is told that such a disk is empty."""
    disk.write(b"precious")
    runs = Runs(server, tmp_path, disk)
    async with runs.host() as (host, _):
        facts = await volume.FormatVolume().look(host)
    assert facts.disk.device is not None
    given = replace(
        facts,
        disk=replace(facts.disk, device=replace(facts.disk.device, serial="7f3a")),
        rule=replace(facts.rule, garbage_serial="7f3a"),
    )
    plan = volume.FormatVolume().plan(given)
    assert "has old data at byte 0, ALL OF IT IS LOST" in plan.what
    assert "empty" not in plan.what
    assert plan.destroys.startswith(f"{disk.path} ")


@pytest.mark.parametrize("drop", ["before", "cut", "during", "after"])
async def test_a_run_that_is_cut_formats_once(
    drop: str, server: Server, view: Namespace, disk: LoopDevice, tmp_path: Path
) -> None:
    """At each command that changes something: the next run ends as if nothing had been."""
    # Only a job whose script has arrived goes on without the connection.
    begun = Path(f"/proc/{view.pid}/root{STATE_DIR}/jobs/1-format/begun")
    server.fault(Fault("job_start", drop=drop, when=begun.exists))  # type: ignore[arg-type]
    for pattern in ("fstab add", "mount_volume", "chown"):
        server.fault(Fault(pattern, drop=drop))  # type: ignore[arg-type]
    runs = Runs(server, tmp_path, disk)
    for _ in range(5):
        try:
            await runs.run()
            break
        except OutcomeUnknown:
            continue
    uuid = filesystem(disk)
    assert view.run("cat", "/etc/fstab").count(uuid) == 1
    assert view.run("findmnt", "-n", "-o", "UUID", "--mountpoint", MOUNT).strip() == uuid
    starts = [line for line in server.commands if "job_start" in line and "exec 9" in line]
    assert len(starts) == (2 if drop in {"before", "cut"} else 1)
    assert "[EXEC]" not in await runs.run()


@pytest.mark.parametrize(
    ("options", "said"),
    [("ro", "Read-only"), ("size=4k", "No space left"), ("nr_inodes=2", "No space left")],
)
async def test_a_server_that_cannot_be_written_stops_the_run(
    options: str, said: str, server: Server, view: Namespace, disk: LoopDevice, tmp_path: Path
) -> None:
    """A read-only system, a full one, one without inodes: its own words; the next run goes on when that is mended."""
    view.run("mkdir", "-p", STATE_DIR)
    view.run("mount", "-t", "tmpfs", "-o", options, "none", STATE_DIR)
    runs = Runs(server, tmp_path, disk)
    empty = disk.hash()
    with pytest.raises(StepFailed) as failed:
        await runs.run()
    assert said in "\n".join(failed.value.tail)
    assert disk.hash() == empty
    view.run("umount", STATE_DIR)
    assert "[OK] volume.txt" in await runs.run()


async def test_a_run_from_another_machine_knows_the_disk(
    server: Server, disk: LoopDevice, tmp_path: Path
) -> None:
    """Without our notes, and after a restart of the server, when nothing is mounted."""
    runs = Runs(server, tmp_path, disk)
    await runs.run()
    uuid = filesystem(disk)
    (runs.conf.folder / "state.json").unlink()
    assert "[EXEC] Remote: sudo" not in (await runs.run()).replace("sudo -n chown", "")
    server_view = Namespace(int(server.before[1].split("/")[2]), tmp_path)
    server_view.run("umount", MOUNT)
    text = await runs.run()
    assert "mount_volume.sh" in text
    assert "format_volume.sh" not in text
    assert filesystem(disk) == uuid


@pytest.mark.parametrize(
    "content",
    ["ext4", "data", "never", "small", "mounted elsewhere", "gone", "other serial"],
)
async def test_a_disk_that_may_not_be_formatted_is_left_alone(
    content: str, server: Server, view: Namespace, disk: LoopDevice, tmp_path: Path
) -> None:
    """Its sentence in the plan and in the run; the disk and fstab are as they were."""
    changes = {}
    if content in {"ext4", "mounted elsewhere"}:
        loop_devices.run("mkfs.ext4", "-q", disk.path)
    if content == "mounted elsewhere":
        view.run("mkdir", "/mnt/other")
        view.run("mount", "-o", "ro", disk.path, "/mnt/other")
    if content == "data":
        disk.write(b"precious", at=12345)
    if content == "never":
        changes["VOLUME_FORMAT"] = "never"
    if content == "small":
        changes["VOLUME_MIN_GB"] = "1"
    if content == "gone":
        changes["VOLUME_DEVICE"] = "/dev/vdzz"
    runs = Runs(server, tmp_path, disk, **changes)
    if content == "other serial":
        noted = {"device": disk.path, "serial": "7f3a", "uuid": "0f814836"}
        Journal(runs.conf.folder / "state.json", runs.conf.server_ip).record(volume=noted)
    # A mount writes itself.
    seen = disk.hash if content != "mounted elsewhere" else lambda: filesystem(disk)
    before, fstab = seen(), view.run("cat", "/etc/fstab")
    plan = await runs.plan()
    assert plan["format volume"].state == "stop"
    with pytest.raises(UnsafeDisk):
        await runs.run(is_asked=False)
    assert seen() == before
    assert view.run("cat", "/etc/fstab") == fstab


async def test_a_disk_that_was_not_named_is_not_formatted(
    server: Server, disk: LoopDevice, tmp_path: Path
) -> None:
    """What the operator was asked about is what is formatted, or nothing is."""
    before = disk.hash()
    with pytest.raises(StepFailed, match=f"{disk.path} .* is not what was named"):
        await Runs(server, tmp_path, disk).run(is_asked=False)
    assert disk.hash() == before


async def test_a_disk_that_was_refused_is_not_remembered(
    server: Server, disk: LoopDevice, tmp_path: Path
) -> None:
    """Another one can be named after it."""
    disk.write(b"precious", at=12345)
    with pytest.raises(UnsafeDisk):
        await Runs(server, tmp_path, disk).run()
    with loop_device(tmp_path / "disks", mib=32) as other:
        await Runs(server, tmp_path, other).run()
        assert filesystem(other)
        Namespace(int(server.before[1].split("/")[2]), tmp_path).run("umount", MOUNT)


async def test_a_disk_that_the_operator_mounted_is_taken_as_it_is(
    server: Server, view: Namespace, disk: LoopDevice, tmp_path: Path
) -> None:
    """Its files stay as they are; only our line is added."""
    loop_devices.run("mkfs.ext4", "-q", disk.path)
    uuid = filesystem(disk)
    view.run("mkdir", MOUNT)
    view.run("mount", disk.path, MOUNT)
    view.run("sh", "-c", f"echo mine > {MOUNT}/file")
    runs = Runs(server, tmp_path, disk)
    text = await runs.run()
    assert "format_volume.sh" not in text
    assert filesystem(disk) == uuid
    assert view.run("cat", f"{MOUNT}/file") == "mine\n"
    assert view.run("stat", "-c", "%U", f"{MOUNT}/file") == "root\n"
    assert uuid in view.run("cat", "/etc/fstab")


async def test_what_is_in_the_way_of_mounting_stops(
    server: Server, view: Namespace, disk: LoopDevice, tmp_path: Path
) -> None:
    """Files in the folder, or another line for it; the table stays."""
    view.run("sh", "-c", f"mkdir {MOUNT}; echo mine > {MOUNT}/file")
    runs = Runs(server, tmp_path, disk)
    with pytest.raises(StepFailed, match="has files"):
        await runs.run()
    view.run(
        "sh", "-c", f"rm {MOUNT}/file; echo '/dev/sdz9 {MOUNT} ext4 defaults 0 0' >> /etc/fstab"
    )
    fstab = view.run("cat", "/etc/fstab")
    with pytest.raises(StepFailed, match="for the same folder"):
        await runs.run()
    assert view.run("cat", "/etc/fstab") == fstab


async def test_links_are_not_followed(server: Server, disk: LoopDevice, tmp_path: Path) -> None:
    """A linked authorized_keys is left as it is."""
    (server.root / ".ssh").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("kept\n")
    (server.root / ".ssh" / "authorized_keys").symlink_to(victim)
    runs = Runs(server, tmp_path, disk, ADMIN_KEYS=KEY)
    with pytest.raises(DeployError, match="is a link"):
        await runs.run()
    assert victim.read_text() == "kept\n"


async def test_admin_keys_are_keys_alone(server: Server, disk: LoopDevice, tmp_path: Path) -> None:
    """Options, other lines and control characters are refused by line."""
    for line in (
        'command="x" ' + KEY,
        "ssh-ed25519 AAAA x",
        "ssh-rsa " + KEY.split()[1],
        KEY + "\x07",
    ):
        with pytest.raises(DeployError, match="line 2: it is no public key"):
            Runs(server, tmp_path, disk, ADMIN_KEYS=f"{KEY}\n{line}\n")
