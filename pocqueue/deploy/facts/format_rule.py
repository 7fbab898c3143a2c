"""When a disk may be formatted: the one rule for the one step that destroys.

It is asked twice. `reasons_against` speaks of facts that were read, for the plan and the question to the operator;
`scripts/format_volume.sh` asks the same of the device itself, under its lock, right before mkfs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from pocqueue.deploy.errors import UnsafeDisk
from pocqueue.deploy.facts.disk import NUM_SAMPLES, Device, DiskFacts, Mount, size_shown
from pocqueue.deploy.words import Command

#: Exit code of `scripts/format_volume.sh` where it refuses; nothing was written then.
REFUSED = 65
#: Filesystems of `/` that stand on no disk of their own: a live system, a container, a root in memory.
_DISKLESS = frozenset(
    {"overlay", "tmpfs", "ramfs", "rootfs", "squashfs", "nfs", "nfs4", "9p", "virtiofs"}
)
_SYSTEM_FOLDERS = ("/", "/usr", "/var", "/boot", "/boot/efi")


@dataclass(frozen=True, slots=True)
class FormatRule:
    """What the operator's settings say about it.

    Attributes:
        is_allowed: VOLUME_FORMAT is not `never`.
        min_bytes: smaller disks are not what a node's data is put on.
        kinds: lsblk's types; a loop device is for tests.
        garbage_serial: of the disk whose old data may go, typed by the operator; empty: none. It does not help a
            disk that has a signature, is in any use, or cannot be read.
        known_serial: that was recorded for this server; None: none was.
    """

    is_allowed: bool = True
    min_bytes: int = 200_000_000_000
    kinds: tuple[str, ...] = ("disk", "part")
    garbage_serial: str = ""
    known_serial: str | None = None

    def may_have_garbage(self, device: Device) -> bool:
        """Return whether the operator gave this very disk's data away."""
        return bool(device.serial) and device.serial == self.garbage_serial


def reasons_against(facts: DiskFacts, rule: FormatRule) -> tuple[str, ...]:
    """Return what speaks against formatting the device, a sentence each; none: it may be formatted.

    Args:
        facts: with samples of its content.
        rule: the settings.
    """
    device = facts.device
    if device is None:
        what = "is no block device" if facts.is_other else "is not there"
        return (f"{facts.asked} {what}: look at `lsblk` and set VOLUME_DEVICE.",)
    checks: tuple[_Check, ...] = (_identity, _use, _mounts, _root, _fstab, _content)
    return tuple(reason for check in checks for reason in check(facts, device, rule))


class _Check(Protocol):
    def __call__(self, facts: DiskFacts, device: Device, rule: FormatRule) -> Iterator[str]: ...


def _identity(facts: DiskFacts, device: Device, rule: FormatRule) -> Iterator[str]:
    if not rule.is_allowed:
        yield "VOLUME_FORMAT is never."
    if rule.known_serial is not None and device.serial != rule.known_serial:
        yield (
            f"{device.path} has the serial {device.serial!r}, but {rule.known_serial!r} was recorded for this server: "
            "device names change between starts. Set VOLUME_DEVICE to the disk of that serial."
        )
    block = facts.block(device.number)
    if block is None or block.name != device.name:
        yield f"The kernel knows nothing of {device.path} ({device.number})."
    if device.kind not in rule.kinds:
        yield f"{device.path} is of the kind {device.kind!r}; allowed: {', '.join(rule.kinds)}."
    if device.is_read_only:
        yield f"{device.path} is read-only."
    if device.size_bytes < rule.min_bytes:
        yield (
            f"{device.path} has {size_shown(device.size_bytes)}, less than {size_shown(rule.min_bytes)}: it does not "
            "look like the disk that is meant."
        )


def _use(facts: DiskFacts, device: Device, rule: FormatRule) -> Iterator[str]:
    if partitions := [block.name for block in facts.blocks if block.disk == device.name]:
        yield f"{device.path} has partitions: {', '.join(partitions)}."
    holders = {block.name for block in facts.blocks if device.name in block.slaves}
    if own := facts.block(device.number):
        holders |= {*own.holders, *own.slaves}
    if holders:
        yield f"{device.path} is in use by {', '.join(sorted(holders))} (LVM, RAID, encryption or a loop device)."
    for swap in facts.swaps:
        if facts.nodes.get(swap, "?") in ("?", device.number) or swap == device.path:
            yield f"{device.path} is used as swap, or {swap} is, which is not known."


def _mounts(facts: DiskFacts, device: Device, rule: FormatRule) -> Iterator[str]:
    def is_ours(mount: Mount) -> bool:
        return facts.number_of(mount) == device.number or mount.source in (
            device.path,
            f"/dev/{device.name}",
        )

    for where in dict.fromkeys(mount.target for mount in facts.mounts if is_ours(mount)):
        yield f"{device.path} is mounted at {where}."
    if not any(map(is_ours, facts.mounts)) and any(map(is_ours, facts.mounts_elsewhere)):
        yield f"{device.path} is mounted in another namespace, such as that of a container."


def _root(facts: DiskFacts, device: Device, rule: FormatRule) -> Iterator[str]:
    mounts = {mount.target: mount for mount in (*facts.mounts_elsewhere, *facts.mounts)}
    for target in _SYSTEM_FOLDERS:
        mount = mounts.get(target)
        if mount is None:
            if target == "/":
                yield "It is not known what / is on."
            continue
        block = facts.block(facts.number_of(mount))
        if block is None:
            if mount.source.startswith("/dev/") or (target == "/" and mount.kind not in _DISKLESS):
                yield f"It is not known on which disk {target} is ({mount.kind}, {mount.source})."
        elif {device.name, device.disk} & facts.below(block.name):
            yield f"{device.path} is on the disk of {target}."


def _fstab(facts: DiskFacts, device: Device, rule: FormatRule) -> Iterator[str]:
    tags = {
        f"{tag}={value}".lower()
        for tag, value in (
            ("UUID", device.uuid),
            ("PARTUUID", device.part_uuid),
            ("PARTLABEL", device.part_label),
        )
        if value
    }
    for line in facts.fstab:
        # A partition of it that is gone now was there when the line was written.
        rest = (
            line.source.removeprefix(device.path) if line.source.startswith(device.path) else None
        )
        is_part = rest is not None and (rest == "" or rest.lstrip("p").isdecimal())
        if is_part or line.source.lower() in tags or facts.nodes.get(line.source) == device.number:
            yield f"Line {line.number} of /etc/fstab names {device.path} ({line.source} on {line.target})."


def _content(facts: DiskFacts, device: Device, rule: FormatRule) -> Iterator[str]:
    if device.signatures is None:
        yield f"blkid or wipefs cannot examine {device.path}: the server may lack them, or the disk is ambiguous."
    elif device.signatures:
        yield (
            f"{device.path} has content: {', '.join(device.signatures)}. If it may go, remove it there yourself; "
            "nothing here does."
        )
    samples = device.samples
    if samples.unreadable_at is not None:
        yield f"{device.path} cannot be read at byte {samples.unreadable_at}."
        return
    if rule.may_have_garbage(device):
        return
    if samples.data_at is not None:
        yield (
            f"{device.path} has data without a signature, at byte {samples.data_at}. If that may go, run again with "
            f"--format-device {device.serial or 'SERIAL'}"
            + ("." if device.serial else "; but this disk has no serial to name it by.")
        )
    elif samples.num_zero != NUM_SAMPLES:
        yield f"Only {samples.num_zero} of {NUM_SAMPLES} samples of {device.path} were seen."


def format_volume(facts: DiskFacts, rule: FormatRule, uuid: UUID) -> Command:
    """Return the command that formats the device, after it has asked all of this again.

    Args:
        facts: of the device, with samples.
        rule: the settings.
        uuid: of the new filesystem, recorded before: an interrupted run knows its own filesystem by it.

    Raises:
        UnsafeDisk: something speaks against it.
    """
    if found := reasons_against(facts, rule):
        raise UnsafeDisk(facts.asked, found)
    device = facts.device
    assert device is not None
    content = "garbage" if rule.may_have_garbage(device) else "zero"
    words = (
        *(
            device.path,
            device.serial,
            str(device.size_bytes),
            device.sequence or "-",
            str(rule.min_bytes),
        ),
        *(" ".join(rule.kinds), str(uuid), "pocqueue", content),
    )
    return Command(words, script="format_volume", sudo=True, timeout_s=300)
