"""The data disk by the command itself, over a real sshd with a real sudo: mkfs, fstab, a mount by UUID."""

from __future__ import annotations

from pathlib import Path

from tests.deploy import loop_devices
from tests.deploy.clone.machine import Clone, Sshd
from tests.deploy.clone.runs import IGNORED, Runs
from tests.deploy.fake_programs import Fakes
from tests.deploy.loop_devices import LoopDevice

MOUNT = "/mnt/ssd"
RUN = ("run", "--yes", "--phase", "1", *(word for name in IGNORED for word in ("--ignore", name)))


def uuid_of(device: str) -> str:
    """Return the UUID of what is on a disk."""
    return loop_devices.run("blkid", "-p", "-s", "UUID", "-o", "value", device).strip()


def test_an_empty_partition_becomes_the_volume(
    clone: Clone, sshd: Sshd, fakes: Fakes, part: LoopDevice, tmp_path: Path
) -> None:
    """Once: a second run changes nothing, and one after a restart mounts it by its UUID, whatever its name is then.

    Nothing of it is run from /tmp.
    """
    clone.run("mount", "-o", "remount,noexec", "/tmp")  # noqa: S108 - the clone's own
    runs = Runs(sshd, tmp_path / "nodes", VOLUME_DEVICE="/dev/vdc1")
    first = runs.typed(*RUN)
    assert first.code == 0, first.lines
    uuid = uuid_of(part.path)
    assert clone.run("cat", "/etc/fstab") == f"UUID={uuid} {MOUNT} ext4 defaults,nofail 0 2\n"
    assert (runs.conf.folder / "volume.txt").read_text() == f"{uuid}\n"
    assert clone.run("findmnt", "-n", "-o", "UUID", "--mountpoint", MOUNT).strip() == uuid
    assert clone.run("findmnt", "--verify").startswith("Success")
    assert clone.run("stat", "-c", "%U", MOUNT).strip() == "deployer"
    again = runs.typed(*RUN)
    assert (again.code, again.of("EXEC", "OUTPUT", "ERROR")) == (0, [])
    assert "[SKIP] volume.txt" in again
    # A server that was started anew, whose disk has another name, before its fstab is read and after.
    clone.run("umount", MOUNT)
    clone.run("rm", "/dev/vdc1")
    runs = Runs(sshd, tmp_path / "nodes", VOLUME_DEVICE=clone.add_disk(part.path, "vdd1"))
    restarted = runs.typed(*RUN)
    assert restarted.code == 0, restarted.lines
    assert ["mount_volume.sh" in line for line in restarted.of("EXEC")] == [True, False]
    assert "[EXEC] Local: " in restarted
    assert uuid_of(part.path) == uuid
    # Nothing of this reached the machine that the clone is of.
    assert MOUNT not in Path("/proc/self/mounts").read_text()
    assert uuid not in Path("/etc/fstab").read_text()
