"""Disks that are not to be formatted, seen by a login with sudo over a real sshd: each its sentence, and not a byte is written."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from pocqueue.deploy.connection import Connection
from pocqueue.deploy.engine import Host, run_steps
from pocqueue.deploy.errors import UnsafeDisk
from pocqueue.deploy.journal import Journal
from pocqueue.deploy.log import Log
from pocqueue.deploy.session import log_in
from pocqueue.deploy.steps.volume import FormatVolume
from pocqueue.deploy.words import Redactor
from tests.deploy import loop_devices
from tests.deploy.clone.machine import Clone, Sshd
from tests.deploy.clone.runs import Runs
from tests.deploy.loop_devices import LoopDevice, gpt, loop_device, luks, lvm, raid

CONTENT: Mapping[str, tuple[Callable[[], dict[int, bytes]], str]] = {
    "GPT": (lambda: gpt(mib=12), "has content: .*gpt"),
    "LUKS": (luks, "has content: .*crypto_LUKS"),
    "LVM": (lvm, "has content: .*LVM2_member"),
    "RAID": (raid, "has content: .*linux_raid_member"),
    "raw data": (
        lambda: {5 * loop_devices.MIB: b"x" * 6 * loop_devices.MIB},
        "data without a signature",
    ),
    "ext4": (dict, "has content: .*ext4"),
    "swap": (dict, "has content: .*swap"),
    "mounted": (dict, "is mounted at /mnt/other"),
    "read-only": (dict, "is read-only"),
    "on the disk of /boot": (dict, "is on the disk of /boot"),
    "vanished": (dict, "is not there"),
    "another serial": (dict, "'7f3a' was recorded for this server"),
}


@contextlib.contextmanager
def disk_with(what: str, clone: Clone, folder: Path) -> Iterator[LoopDevice]:
    """Have a disk of that kind as /dev/vdc, and a node's folder beside it."""
    with loop_device(folder, *(("--read-only",) if what == "read-only" else ()), mib=12) as disk:
        try:
            for at, data in CONTENT[what][0]().items():
                disk.write(data, at)
            if what in {"ext4", "mounted"}:
                loop_devices.run("mkfs.ext4", "-q", disk.path)
            if what == "swap":
                loop_devices.run("mkswap", disk.path)
            if what == "on the disk of /boot":
                for at, data in gpt(mib=12, num_partitions=2).items():
                    disk.write(data, at)
                loop_devices.attempt("partx", "--add", disk.path)
                loop_devices.run("mkfs.ext4", "-q", f"{disk.path}p1")
                clone.run(
                    "mount", "-o", "ro,noload", clone.add_disk(f"{disk.path}p1", "vdb1"), "/boot"
                )
                clone.add_disk(f"{disk.path}p2", "vdc")
            elif what != "vanished":
                clone.add_disk(disk.path, "vdc")
            if what == "mounted":
                clone.run("mount", "-o", "ro,noload", "/dev/vdc", "/mnt/other")
            yield disk
        finally:
            clone.release()


async def test_no_disk_with_anything_on_it_is_formatted(
    clone: Clone, sshd: Sshd, tmp_path: Path
) -> None:
    """By a run that was told to."""
    conf = Runs(sshd, tmp_path).conf
    conf.folder.mkdir()
    (tmp_path / "disks").mkdir()
    step = FormatVolume()
    async with Connection(sshd.target, sshd.host_keys(tmp_path)) as there:
        await there.connect()
        await log_in(there, None)
        for what, (_, sentence) in CONTENT.items():
            with disk_with(what, clone, tmp_path / "disks") as disk:
                journal = Journal(conf.folder / "state.json", conf.server_ip)
                if what == "another serial":
                    noted = {"device": "/dev/vdc", "serial": "7f3a", "uuid": "0f814836"}
                    journal.record(volume=noted)
                before = disk.hash()
                host = Host(conf, there, Log(Redactor(), console=io.StringIO()), journal)
                with pytest.raises(UnsafeDisk, match=sentence):
                    await run_steps(host, [step], now=lambda: "2026-01-02 03:04:05")
                assert disk.hash() == before, what
                assert not clone.run("sh", "-c", "ls /var/lib/pocqueue-deploy 2> /dev/null || true")
