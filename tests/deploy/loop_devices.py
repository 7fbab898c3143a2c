"""Loop devices that a test makes and releases, and content for them: what a disk of others looks like."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024


def attempt(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command, however it ends."""
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)


def run(*argv: str) -> str:
    """Return what a command prints, which has to end well."""
    done = attempt(*argv)
    assert done.returncode == 0, (argv, done.stderr)
    return done.stdout


def missing() -> str:
    """Return why there can be no loop device here; empty: there can."""
    if os.geteuid() != 0:
        return "loop devices need root"
    for tool in ("losetup", "mkfs.ext4", "blkid", "wipefs", "lsblk", "flock"):
        if shutil.which(tool) is None:
            return f"there is no {tool}"
    found = attempt("losetup", "--find")
    return "" if found.returncode == 0 else f"losetup: {found.stderr.strip()}"


@dataclass(frozen=True)
class LoopDevice:
    """A loop device on a file of ours."""

    path: str
    file: Path

    @property
    def name(self) -> str:
        """Return the kernel's name of it."""
        return self.path.rsplit("/", 1)[1]

    def hash(self) -> str:
        """Return a hash of all that is on it."""
        with Path(self.path).open("rb") as device, self.file.open("rb") as file:
            os.fsync(device.fileno())
            digests = [hashlib.file_digest(each, "sha256").hexdigest() for each in (device, file)]
        assert digests[0] == digests[1]
        return digests[0]

    def write(self, data: bytes, at: int = 0) -> None:
        """Write some content."""
        with Path(self.path).open("r+b") as device:
            device.seek(at)
            device.write(data)
            device.flush()
            os.fsync(device.fileno())


@functools.cache
def release_leftovers() -> None:
    """Release the devices of test processes that were killed: of none that lives, and of nobody else."""
    for line in run("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").splitlines():
        path, _, file = line.strip().partition(" ")
        found = re.search(r"/disk-(\d+)-\d+( \(deleted\))?$", file)
        if found and not Path(f"/proc/{found[1]}").exists():
            attempt("partx", "--delete", path)
            attempt("losetup", "--detach", path)


@contextlib.contextmanager
def loop_device(folder: Path, *options: str, mib: int = 16) -> Iterator[LoopDevice]:
    """Make one on a new sparse file, and release it whatever comes.

    Args:
        folder: of the file.
        options: of losetup, such as ``--read-only``.
        mib: its size.
    """
    release_leftovers()
    # By its name whoever finds the device later knows whose it was.
    file = folder / f"disk-{os.getpid()}-{len(list(folder.iterdir()))}"
    with file.open("wb") as disk:
        disk.truncate(mib * MIB)
    path = run("losetup", "--find", "--show", *options, str(file)).strip()
    # Partitions stay with the device's name, whatever comes below it next: those of a process that was killed, and ours.
    attempt("partx", "--delete", path)
    try:
        yield LoopDevice(path, file)
    finally:
        attempt("partx", "--delete", path)
        attempt("losetup", "-d", path)
        file.unlink(missing_ok=True)


def gpt(mib: int = 16, num_partitions: int = 1) -> dict[int, bytes]:
    """Return the table of a disk with partitions of equal size, by its places."""
    sectors = mib * MIB // 512
    size = (sectors - 4096) // num_partitions
    entries = b"".join(
        struct.pack(
            "<16s16sQQQ72s", b"\x11" * 16, bytes([number + 1] * 16), at, at + size - 1, 0, b""
        )
        for number, at in enumerate(range(2048, 2048 + size * num_partitions, size))
    ).ljust(128 * 128, b"\0")

    def header(here: int, there: int, table: int) -> bytes:
        fields = (
            b"EFI PART",
            0x10000,
            92,
            0,
            0,
            here,
            there,
            34,
            sectors - 34,
            b"\x33" * 16,
            table,
            128,
            128,
        )
        packed = struct.pack("<8sIIIIQQQQ16sQIII", *fields, zlib.crc32(entries))
        return packed[:16] + struct.pack("<I", zlib.crc32(packed)) + packed[20:]

    protective = struct.pack("<BBBBBBBBII", 0, 0, 2, 0, 0xEE, 255, 255, 255, 1, sectors - 1)
    return {
        0: bytes(446) + protective.ljust(64, b"\0") + b"\x55\xaa",
        512: header(1, sectors - 1, 2),
        1024: entries,
        (sectors - 33) * 512: entries,
        (sectors - 1) * 512: header(sectors - 1, 1, sectors - 33),
    }


def luks() -> dict[int, bytes]:
    """Return the header of an encrypted disk."""
    names = struct.pack(">6sH32s32s32s", b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256")
    numbers = struct.pack(">II20s32sI", 4096, 64, b"d" * 20, b"s" * 32, 1000)
    return {0: names + numbers + b"0f814836-0b1e-445f-8411-ded2eba18ce2".ljust(40, b"\0")}


def lvm() -> dict[int, bytes]:
    """Return the label of a physical volume of LVM."""
    rest = (struct.pack("<I8s", 32, b"LVM2 001") + b"a" * 32).ljust(512 - 20, b"\0")
    checksum = zlib.crc32(rest, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    return {512: struct.pack("<8sQI", b"LABELONE", 1, checksum) + rest}


def raid() -> dict[int, bytes]:
    """Return the superblock (1.2) of a member of a RAID."""
    block = bytearray(256)
    struct.pack_into(
        "<IIII16s32sQII", block, 0, 0xA92B4EFC, 1, 0, 0, b"u" * 16, b"server:0", 1, 1, 0
    )
    struct.pack_into("<QII", block, 80, 80000, 0, 2)
    struct.pack_into("<QQQ", block, 128, 2048, 80000, 8)
    total = sum(struct.unpack("<64I", block))
    struct.pack_into("<I", block, 216, ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF)
    return {4096: bytes(block)}
