"""A disk as the server sees it: what it is, what is on it, and everything that uses it.

`scripts/disk_facts.sh` reads, `read_disk` understands; whether the disk may be formatted is
`facts/format_rule.py`, whether it is mounted as it should be `facts/volume.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pocqueue.deploy.facts.fstab import FstabLine, read_fstab
from pocqueue.deploy.facts.parts import Part, UnexpectedAnswer, pairs, read_parts, unescaped
from pocqueue.deploy.words import Command

#: Samples of a disk's content: the first MiB, the last, and 256 blocks of 4 KiB anywhere.
NUM_SAMPLES = 258
_NUMBER = re.compile(r"\d+:\d+")


@dataclass(frozen=True, slots=True)
class Block:
    """A block device in the kernel's eyes."""

    name: str  #: the kernel's, such as ``vdc`` or ``dm-0``
    number: str  #: ``MAJOR:MINOR``
    disk: str | None  #: of which it is a partition
    slaves: tuple[str, ...] = ()  #: what it stands on
    holders: tuple[str, ...] = ()  #: what stands on it


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted filesystem."""

    number: str  #: of its device; ``0:N`` for one that has none, or several
    source: str
    target: str
    kind: str


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the disk is to be mounted."""

    real_path: str  #: after all symbolic links
    exists: bool = False
    is_folder: bool = False
    is_empty: bool = True
    owner: int = 0  #: number of the user


@dataclass(frozen=True, slots=True)
class Device:
    """The disk or partition itself."""

    path: str  #: as the conf file names it
    name: str  #: the kernel's; empty if the kernel has none
    number: str
    disk: str  #: the kernel's name of the whole disk
    serial: str  #: of the disk; empty: it has none
    sequence: str  #: the kernel's count of disks since its start; empty: an old kernel
    kind: str  #: lsblk's TYPE: ``disk``, ``part``, ``lvm``, ``crypt``, ``raid1``, ``loop``, …
    size_bytes: int
    is_read_only: bool
    model: str
    #: What blkid and wipefs found on it, such as ``ext4`` or ``gpt``; None: they could not examine it.
    signatures: tuple[str, ...] | None
    filesystem: str  #: blkid's TYPE
    uuid: str
    part_uuid: str
    part_label: str
    samples: Samples

    @property
    def shown(self) -> str:
        """Return what tells it from another one, for people."""
        serial = f"serial {self.serial}" if self.serial else "no serial"
        return " ".join(filter(None, (self.path, size_shown(self.size_bytes), self.model, serial)))


@dataclass(frozen=True, slots=True)
class Samples:
    """What was seen of a disk's content."""

    num_zero: int = 0
    data_at: int | None = None  #: the first byte of a sample that is not zero
    unreadable_at: int | None = None


@dataclass(frozen=True)
class DiskFacts:
    """A device, and all that the server does with devices.

    Attributes:
        asked: the device that was asked for.
        device: None: there is none.
        is_other: there is something of that name, but no block device.
        mounts: of the namespace that we are in.
        mounts_elsewhere: of all other namespaces, as far as they are mounts of devices.
        nodes: numbers of the devices that are named by a path in mounts, swaps and fstab; ``?``: no such device.
        fstab_errors: what `findmnt --verify` finds wrong, by folder.
    """

    asked: str
    device: Device | None
    is_other: bool
    blocks: tuple[Block, ...]
    mounts: tuple[Mount, ...]
    mounts_elsewhere: tuple[Mount, ...]
    swaps: tuple[str, ...]
    fstab_text: str
    nodes: dict[str, str]
    folder: Folder
    fstab_errors: dict[str, tuple[str, ...]]

    @cached_property
    def fstab(self) -> tuple[FstabLine, ...]:
        """Return the lines of fstab."""
        return read_fstab(self.fstab_text)

    def block(self, number: str) -> Block | None:
        """Return the block device of a number."""
        return next((block for block in self.blocks if block.number == number), None)

    def below(self, name: str) -> set[str]:
        """Return the names of all that a block device stands on, itself among them."""
        known = {block.name: block for block in self.blocks}
        found, todo = set[str](), [name]
        while todo:
            if (name := todo.pop()) not in found:
                found.add(name)
                if block := known.get(name):
                    todo += [*block.slaves, *([block.disk] if block.disk else [])]
        return found

    def mounted_at(self, path: str) -> Mount | None:
        """Return what is mounted at exactly this folder; of several the one that is seen."""
        return next((mount for mount in reversed(self.mounts) if mount.target == path), None)

    def number_of(self, mount: Mount) -> str:
        """Return the number of a mount's device; of a filesystem over several devices, that of its source."""
        return (
            mount.number if not mount.number.startswith("0:") else self.nodes.get(mount.source, "?")
        )


def disk_facts(device: str, mount: str, *, samples: bool) -> Command:
    """Return the command that reads them.

    Args:
        device: such as ``/dev/vdc``.
        mount: the folder where it is to be mounted.
        samples: look at the disk's content, too; only for a disk that may be formatted.
    """
    return Command(
        (device, mount, "samples" if samples else "-"),
        script="disk_facts",
        sudo=True,
        timeout_s=120,
    )


def read_disk(device: str, mount: str, text: str) -> DiskFacts:
    """Return what the command said.

    Raises:
        UnexpectedAnswer: something of it is not understood.
    """
    parts = read_parts(
        text,
        "identity",
        "blocks",
        "mounts",
        "mounts_elsewhere",
        "swaps",
        "fstab",
        "nodes",
        "folder",
        "verify",
    )
    identity = pairs("the script disk_facts", parts["identity"].wanted().text)
    is_block = identity.get("is") == "block"
    return DiskFacts(
        asked=device,
        device=_device(device, identity, parts) if is_block else None,
        is_other=identity.get("is") == "other",
        blocks=tuple(map(_block, parts["blocks"].wanted().lines)),
        mounts=tuple(map(_mount, parts["mounts"].wanted().lines)),
        mounts_elsewhere=tuple(map(_mount, parts["mounts_elsewhere"].wanted().lines)),
        swaps=tuple(unescaped(line) for line in parts["swaps"].wanted().lines),
        fstab_text=parts["fstab"].wanted().text,
        nodes=dict(map(_node, parts["nodes"].wanted().lines)),
        folder=_folder(pairs("stat", parts["folder"].wanted().text)),
        fstab_errors=_fstab_errors(parts["verify"].lines),
    )


def _device(path: str, identity: dict[str, str], parts: dict[str, Part]) -> Device:
    if missing := {"name", "number", "disk", "serial", "sequence"} - identity.keys():
        raise UnexpectedAnswer(
            "The script disk_facts", str(identity), f"an answer with {min(missing)}"
        )
    for name in ("lsblk", "blkid", "wipefs", "samples"):
        if name not in parts:
            raise UnexpectedAnswer(
                "The script disk_facts", parts["identity"].text, f"an answer with {name}"
            )
    row, disk_row = _lsblk(parts["lsblk"].wanted(), identity["name"], identity["disk"])
    ids = pairs("blkid", parts["blkid"].text)
    samples = pairs("the samples", parts["samples"].wanted().text)
    return Device(
        path=path,
        name=identity["name"],
        number=identity["number"],
        disk=identity["disk"],
        serial=identity["serial"],
        sequence=identity["sequence"],
        kind=str(row.get("type") or ""),
        size_bytes=_int("lsblk", row.get("size")),
        # Older ones write the numbers as texts.
        is_read_only=row.get("ro") not in (False, "0", 0),
        model=str(row.get("model") or disk_row.get("model") or "").strip(),
        signatures=_signatures(parts["blkid"], ids, parts["wipefs"]),
        filesystem=ids.get("TYPE", ""),
        uuid=ids.get("UUID", ""),
        part_uuid=ids.get("PART_ENTRY_UUID", ""),
        part_label=ids.get("PART_ENTRY_NAME", ""),
        samples=Samples(
            num_zero=_int("the samples", samples.get("zero", "0")),
            data_at=_int("the samples", samples["data"]) if "data" in samples else None,
            unreadable_at=_int("the samples", samples["unreadable"])
            if "unreadable" in samples
            else None,
        ),
    )


def _lsblk(part: Part, name: str, disk: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what lsblk says of the device, and of the disk that it is a part of."""
    answer = part.json()
    todo = list(answer.get("blockdevices") or ()) if isinstance(answer, dict) else []
    rows = dict[str, dict[str, Any]]()
    while todo:
        row = todo.pop()
        if isinstance(row, dict):
            rows[str(row.get("kname"))] = row
            todo += row.get("children") or ()
    if name not in rows:
        raise UnexpectedAnswer("lsblk", part.text, f"the block device {name}")
    return rows[name], rows.get(disk, {})


def _signatures(blkid: Part, ids: dict[str, str], wipefs: Part) -> tuple[str, ...] | None:
    """Return what is on the device; None where that is not known for certain.

    blkid's 2 is "nothing found". A partition without content has its entry in the disk's table, with 0.
    """
    # What udev knows, which lsblk prints, is no proof: it was empty for a formatted disk.
    if blkid.exit_code not in (0, 2) or wipefs.exit_code != 0:
        return None
    found = [ids[name] for name in ("TYPE", "PTTYPE") if name in ids]
    content = [name for name in ids if name != "DEVNAME" and not name.startswith("PART_ENTRY_")]
    if blkid.exit_code == 2 and content:
        raise UnexpectedAnswer("blkid (exit code 2)", blkid.text, "nothing")
    if content and not found:
        found = [f"{name}={ids[name]}" for name in content]
    return tuple(dict.fromkeys([*found, *_wipefs(wipefs)]))


def _wipefs(part: Part) -> Iterator[str]:
    if not part.lines:
        return
    answer = part.json()
    rows = answer.get("signatures") if isinstance(answer, dict) else None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and row.get("type") for row in rows
    ):
        raise UnexpectedAnswer("wipefs", part.text, "a list of signatures")
    for row in rows:
        yield str(row["type"])


def _block(line: str) -> Block:
    words = line.split(" ")
    if len(words) != 5 or not _NUMBER.fullmatch(words[1]):
        raise UnexpectedAnswer("/sys/class/block", line, "a block device with its number")
    name, number, disk, slaves, holders = words
    return Block(name, number, None if disk == "-" else disk, _names(slaves), _names(holders))


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, text.split(","))))


def _mount(line: str) -> Mount:
    """Return a line of `/proc/PID/mountinfo` (proc(5))."""
    before, dash, after = line.partition(" - ")
    words, behind = before.split(" "), after.split(" ")
    if not dash or len(words) < 6 or len(behind) < 2 or not _NUMBER.fullmatch(words[2]):
        raise UnexpectedAnswer("/proc/PID/mountinfo", line, "a mount")
    return Mount(words[2], unescaped(behind[1]), unescaped(words[4]), behind[0])


def _node(line: str) -> tuple[str, str]:
    number, blank, path = line.partition(" ")
    if not blank or not (number == "?" or _NUMBER.fullmatch(number)):
        raise UnexpectedAnswer("stat", line, "the number of a device")
    return unescaped(path), number


def _folder(said: dict[str, str]) -> Folder:
    if "real" not in said:
        raise UnexpectedAnswer("readlink", str(said), "a path")
    if "kind" not in said:
        return Folder(said["real"])
    try:
        owner = int(said["uid"])
    except (KeyError, ValueError):
        raise UnexpectedAnswer("stat", str(said), "an owner") from None
    return Folder(said["real"], True, said["kind"] == "directory", "entries" not in said, owner)


def _fstab_errors(lines: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the errors that `findmnt --verify` prints below the folder that they are about."""
    found, target = dict[str, tuple[str, ...]](), ""
    for line in lines:
        if not line.startswith(" "):
            target = line.strip()
        elif line.strip().startswith("[E]"):
            found[target] = (*found.get(target, ()), line.strip()[3:].strip())
    return found


def size_shown(size_bytes: float) -> str:
    """Return a size as lsblk shows it, such as ``1.8T``."""
    for unit in "BKMGT":
        if size_bytes < 1024 or unit == "T":
            return f"{size_bytes:.1f}{unit}" if size_bytes % 1 else f"{size_bytes:.0f}{unit}"
        size_bytes /= 1024
    raise AssertionError


def _int(what: str, value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise UnexpectedAnswer(what, str(value), "a number") from None
