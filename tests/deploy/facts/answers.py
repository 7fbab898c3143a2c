"""Answers of the scripts that read facts, put together from what the commands of a real server say."""

from __future__ import annotations

import json
from typing import Any


def answer(**parts: str | tuple[str, int]) -> str:
    """Return what a script prints: each part with its text, and its exit code where that is not 0."""
    printed = ""
    for name, part in parts.items():
        text, code = part if isinstance(part, tuple) else (part, 0)
        lines = "".join(f" {line}\n" for line in text.rstrip("\n").split("\n")) if text else ""
        printed += f"@{name}\n{lines}={code}\n"
    return printed


MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 252:1 / / rw,relatime - ext4 /dev/vda1 rw,errors=remount-ro
31 27 252:15 / /boot/efi rw,relatime - vfat /dev/vda15 rw
40 27 0:45 / /var/lib/docker/overlay2/ab/merged rw - overlay overlay rw,lowerdir=/a"""

BLOCKS = """\
vda 252:0 - , ,
vda1 252:1 vda , ,
vda15 252:15 vda , ,
vdc 252:32 - , ,"""

FSTAB = """\
# /etc/fstab
UUID=9d1f2f3e-8a2c-4f5b-8f3e-111111111111 / ext4 errors=remount-ro 0 1
UUID=ABCD-1234 /boot/efi vfat umask=0077 0 1
"""

NODES = "252:1 /dev/vda1\n252:15 /dev/vda15"


def lsblk(**changes: Any) -> str:
    """Return what lsblk says of an empty disk of a virtual machine."""
    row = {"kname": "vdc", "type": "disk", "size": 1_979_120_929_996, "ro": False, "model": None}
    return json.dumps({"blockdevices": [row | changes]}, indent=3)


def identity(**changes: str) -> str:
    """Return what the script says of that disk."""
    fields = {
        "is": "block",
        "name": "vdc",
        "number": "252:32",
        "disk": "vdc",
        "serial": "7f3a",
        "sequence": "3",
    }
    return "\n".join(f"{name}={value}" for name, value in (fields | changes).items())


def empty_disk(**parts: str | tuple[str, int]) -> str:
    """Return the answer for an empty disk that nobody uses.

    Args:
        parts: in which it differs.
    """
    usual: dict[str, str | tuple[str, int]] = {
        "identity": identity(),
        "blocks": BLOCKS,
        "mounts": MOUNTS,
        "mounts_elsewhere": MOUNTS,
        "swaps": "",
        "fstab": FSTAB,
        "nodes": NODES,
        "folder": "real=/mnt/ssd",
        "verify": "Success, no errors or warnings detected",
        "lsblk": lsblk(),
        "blkid": ("", 2),
        "wipefs": "",
        "samples": "zero=258",
    }
    return answer(**usual | parts)
