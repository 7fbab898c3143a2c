"""The data disk: an ext4 of ours on it, a line in fstab, mounted, its top folder the login's.

A disk is formatted by `facts/format_rule.py` alone. Its UUID is made of the node's name, the server and the disk before that, so
that a run which was cut, or one from another machine, knows its own filesystem. A disk that the operator has mounted at
VOLUME_MOUNT already is taken as it is.
"""

from __future__ import annotations

import posixpath
import uuid
from dataclasses import dataclass

from pocqueue.deploy.engine import Host, LocalFile, NotYet, Plan
from pocqueue.deploy.errors import StepFailed, UnsafeDisk
from pocqueue.deploy.facts.disk import Device, DiskFacts, disk_facts, read_disk
from pocqueue.deploy.facts.format_rule import FormatRule, format_volume
from pocqueue.deploy.facts.fstab import has_own_line, own_line
from pocqueue.deploy.facts.volume import (
    is_formatted,
    is_mounted,
    is_volume_ready,
    reasons_against_mount,
)
from pocqueue.deploy.journal import Undo
from pocqueue.deploy.remote_job import Job
from pocqueue.deploy.steps.mounted import looked
from pocqueue.deploy.words import Command

_NAMESPACE = uuid.UUID("6f2f9c5e-3a0e-4c55-9f0e-9d8b8e0a3c11")


@dataclass(frozen=True, slots=True)
class Volume:
    """The disk as it is, and the filesystem that is wanted on it.

    Attributes:
        disk: what is so.
        uuid: of the filesystem; empty where there is no disk.
        mount: the folder.
        rule: when the disk may be formatted.
    """

    disk: DiskFacts
    uuid: str
    mount: str
    rule: FormatRule

    @property
    def is_formatted(self) -> bool:
        """Say whether it is on the disk."""
        return is_formatted(self.disk, self.uuid)


def wanted_uuid(key_name: str, server: str, device: Device) -> str:
    """Return the UUID of the filesystem that we make on a disk."""
    disk = f"{device.serial or device.path} {device.size_bytes}"
    return str(uuid.uuid5(_NAMESPACE, f"{key_name} {server} {disk}"))


async def look_at_volume(host: Host, *, samples: bool = False, garbage_serial: str = "") -> Volume:
    """Return how the disk stands.

    Args:
        host: the server.
        samples: look at the content of a disk that has no filesystem of ours, too.
        garbage_serial: of the disk whose old data may go.

    Raises:
        StepFailed: it cannot be looked at.
    """
    conf = host.conf
    noted = host.journal.get("volume") or {}
    facts = await _look(host, samples=False)
    found = ""
    if device := facts.device:
        found = noted.get("uuid") or wanted_uuid(conf.key_name, conf.server_ip, device)
        has_line = has_own_line(facts.fstab, device.uuid, conf.volume_mount)
        is_there = is_mounted(facts, conf.volume_mount) or has_line
        if is_there and device.filesystem == "ext4":
            # The operator's own, or of the script that this follows: it is used as it is.
            found = device.uuid
        if samples and not is_formatted(facts, found):
            facts = await _look(host, samples=True)
    rule = FormatRule(
        is_allowed=conf.volume_format != "never",
        min_bytes=conf.volume_min_gb * 10**9,
        garbage_serial=garbage_serial,
        known_serial=noted.get("serial"),
    )
    return Volume(facts, found, conf.volume_mount, rule)


async def _look(host: Host, *, samples: bool) -> DiskFacts:
    conf = host.conf
    command = disk_facts(conf.volume_device, conf.volume_mount, samples=samples)
    found = await looked(host, "volume", command)
    return read_disk(conf.volume_device, conf.volume_mount, found)


async def formatted_volume(host: Host) -> Volume:
    """Return how the disk stands that has its filesystem.

    Raises:
        NotYet: it has none.
    """
    volume = await look_at_volume(host)
    if not volume.is_formatted:
        raise NotYet(f"until {host.conf.volume_device} has its filesystem")
    return volume


@dataclass(frozen=True, slots=True)
class FormatVolume:
    """The disk has our filesystem.

    Args:
        garbage_serial: of the disk whose old data may go; empty: none.
    """

    garbage_serial: str = ""
    phase: int = 1
    name: str = "format volume"

    async def look(self, host: Host) -> Volume:
        """Look at the disk, and at its content where that matters."""
        volume = await look_at_volume(host, samples=True, garbage_serial=self.garbage_serial)
        known, device = volume.rule.known_serial, volume.disk.device
        if device is not None and known not in {None, device.serial}:
            reason = (
                f"It has the serial {device.serial!r}, but {known!r} was recorded for this server: names of devices change "
                "between starts. Set VOLUME_DEVICE to the disk of that serial."
            )
            raise UnsafeDisk(device.path, [reason])
        return volume

    def told(self, facts: Volume) -> str:
        """Say what is on it."""
        device = facts.disk.device
        if device is None:
            return f"{facts.disk.asked} is not there"
        content = ", ".join(device.signatures or ()) or "nothing"
        return f"{device.shown}: {content}" + (f", UUID {device.uuid}" if device.uuid else "")

    def is_done(self, facts: Volume) -> bool:
        """Say whether our filesystem is on it."""
        return facts.is_formatted

    def plan(self, facts: Volume) -> Plan:
        """Format it, if nothing speaks against that."""
        command = format_volume(facts.disk, facts.rule, uuid.UUID(facts.uuid or str(_NAMESPACE)))
        device = facts.disk.device
        assert device is not None
        found = (
            "is empty"
            if device.samples.data_at is None
            else f"has old data at byte {device.samples.data_at}, ALL OF IT IS LOST"
        )
        return Plan(
            f"{device.shown} {found} → mkfs.ext4 -L pocqueue -U {facts.uuid}",
            (Job("1-format", command),),
            is_final=True,
            destroys=f"{device.shown}, {device.size_bytes:,} bytes",
        )


@dataclass(frozen=True, slots=True)
class FstabLine:
    """The filesystem is in /etc/fstab, by its UUID."""

    phase: int = 1
    name: str = "/etc/fstab"

    async def look(self, host: Host) -> Volume:
        """Look at the table."""
        return await formatted_volume(host)

    def told(self, facts: Volume) -> str:
        """Say what is there."""
        return f"{'has' if self.is_done(facts) else 'lacks'} {own_line(facts.uuid, facts.mount)}"

    def is_done(self, facts: Volume) -> bool:
        """Say whether our line is there, and no other for the folder."""
        return has_own_line(facts.disk.fstab, facts.uuid, facts.mount)

    def plan(self, facts: Volume) -> Plan:
        """Add it."""
        if found := reasons_against_mount(facts.disk, facts.uuid, facts.mount):
            raise StepFailed(self.name, " ".join(found))
        words = (facts.uuid, facts.mount)
        return Plan(
            f"backup /etc/fstab.pocqueue-{facts.uuid}",
            (Command(("add", *words), script="fstab", sudo=True),),
            (Undo(self.name, "remove our line from /etc/fstab", "fstab", ("remove", *words)),),
            diff=f"+{own_line(facts.uuid, facts.mount)}",
        )


@dataclass(frozen=True, slots=True)
class MountVolume:
    """The filesystem is mounted."""

    phase: int = 1
    name: str = "mount volume"

    async def look(self, host: Host) -> Volume:
        """Look at mounts."""
        volume = await formatted_volume(host)
        if not has_own_line(volume.disk.fstab, volume.uuid, volume.mount):
            raise NotYet("until it is in /etc/fstab")
        return volume

    def told(self, facts: Volume) -> str:
        """Say where it is."""
        at = f"{facts.disk.asked} at {facts.mount}"
        errors = facts.disk.fstab_errors.get(facts.mount, ())
        return " ".join(
            [at if is_mounted(facts.disk, facts.mount) else f"nothing of {at}", *errors]
        )

    def is_done(self, facts: Volume) -> bool:
        """Say whether all of it is as it should be."""
        return is_volume_ready(facts.disk, facts.uuid, facts.mount)

    def plan(self, facts: Volume) -> Plan:
        """Mount it by fstab."""
        if found := reasons_against_mount(facts.disk, facts.uuid, facts.mount):
            raise StepFailed(self.name, " ".join(found))
        words = (facts.uuid, facts.mount)
        return Plan(
            f"{facts.disk.asked} at {facts.mount}",
            (Command(words, script="mount_volume", sudo=True, timeout_s=60),),
            # Whoever had it mounted before keeps it so.
            ()
            if is_mounted(facts.disk, facts.mount)
            else (Undo(self.name, f"unmount {facts.mount}", "unmount_volume", words),),
        )


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a folder is, and whose it should be."""

    folder: str
    found: str
    wanted: str


@dataclass(frozen=True, slots=True)
class OwnMountPoint:
    """The top folder of the disk is the login's; what is in it stays as it is."""

    phase: int = 1
    name: str = "owner of mount point"

    async def look(self, host: Host) -> Owner:
        """Look at the folder."""
        volume = await formatted_volume(host)
        if not is_mounted(volume.disk, volume.mount):
            raise NotYet(f"until {volume.mount} is mounted")
        said = await host.look(Command(("stat", "-c", "%U", "--", volume.mount)))
        if said.exit_code != 0:
            raise StepFailed(self.name, f"{volume.mount} cannot be looked at.", tail=said.tail)
        return Owner(volume.mount, said.stdout.strip(), host.conf.ssh_user)

    def told(self, facts: Owner) -> str:
        """Say whose it is."""
        return f"{facts.folder} is {facts.found}'s"

    def is_done(self, facts: Owner) -> bool:
        """Say whether it is the login's."""
        return facts.found == facts.wanted

    def plan(self, facts: Owner) -> Plan:
        """Give it to the login."""
        return Plan(
            f"{facts.folder}: {facts.found} → {facts.wanted}",
            (
                Command(
                    ("chown", "--no-dereference", f"{facts.wanted}:", "--", facts.folder), sudo=True
                ),
            ),
        )


@dataclass(frozen=True, slots=True)
class Note:
    """What a file here has, and what it should have."""

    path: str
    found: str
    wanted: str
    noted: dict[str, str]
    to_note: dict[str, str]


@dataclass(frozen=True, slots=True)
class VolumeNote:
    """`volume.txt` here has the UUID, and the journal the disk that it is on."""

    phase: int = 1
    name: str = "volume.txt"

    async def look(self, host: Host) -> Note:
        """Read both."""
        volume = await formatted_volume(host)
        path = host.conf.folder / "volume.txt"
        found = path.read_text("utf-8", "replace") if path.is_file() else ""
        device = volume.disk.device
        assert device is not None
        # Only now that it is so: a disk that was refused does not keep another one from being named.
        to_note = {"device": device.path, "serial": device.serial, "uuid": volume.uuid}
        noted = host.journal.get("volume") or {}
        return Note(str(path), found, f"{volume.uuid}\n", noted, to_note)

    def told(self, facts: Note) -> str:
        """Say what it has."""
        return f"{posixpath.basename(facts.path)} has {facts.found.strip()[:80] or 'nothing'}"

    def is_done(self, facts: Note) -> bool:
        """Say whether both are there."""
        return facts.found == facts.wanted and facts.noted == facts.to_note

    def plan(self, facts: Note) -> Plan:
        """Write it."""
        return Plan(
            f"{facts.path}: {facts.wanted.strip()}",
            (LocalFile(facts.path, facts.wanted, 0o600),),
            notes={"volume": facts.to_note},
        )
