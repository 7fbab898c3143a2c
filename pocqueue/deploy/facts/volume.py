"""Whether our filesystem is mounted as it should be, and what is in the way of mounting it."""

from __future__ import annotations

from pocqueue.deploy.facts.disk import DiskFacts
from pocqueue.deploy.facts.fstab import conflicts, has_own_line


def is_formatted(facts: DiskFacts, uuid: str) -> bool:
    """Return whether the device has the recorded filesystem.

    Args:
        facts: of the device.
        uuid: that was recorded; empty: none was.
    """
    device = facts.device
    return bool(uuid) and device is not None and (device.uuid, device.filesystem) == (uuid, "ext4")


def is_mounted(facts: DiskFacts, mount: str) -> bool:
    """Return whether it is the device that is seen at this folder."""
    at = facts.mounted_at(mount)
    return (
        at is not None and facts.device is not None and facts.number_of(at) == facts.device.number
    )


def is_volume_ready(facts: DiskFacts, uuid: str, mount: str) -> bool:
    """Return whether the recorded filesystem is on the device, mounted at the folder and in fstab."""
    return (
        is_formatted(facts, uuid)
        and is_mounted(facts, mount)
        and has_own_line(facts.fstab, uuid, mount)
        and mount not in facts.fstab_errors
    )


def reasons_against_mount(facts: DiskFacts, uuid: str, mount: str) -> tuple[str, ...]:
    """Return what is in the way of mounting our filesystem at the folder, a sentence each; none: nothing is.

    Args:
        facts: of the device and the folder.
        uuid: of our filesystem.
        mount: the folder.
    """
    folder, at = facts.folder, facts.mounted_at(mount)
    found = list(conflicts(facts.fstab, uuid, mount))
    if folder.real_path != mount:
        found.append(
            f"{mount} leads to {folder.real_path}: set VOLUME_MOUNT to a folder without symbolic links."
        )
    if folder.exists and not folder.is_folder:
        found.append(f"{mount} is no folder.")
    if at is not None and not is_mounted(facts, mount):
        found.append(f"{at.source} ({at.kind}) is mounted at {mount} already.")
    if at is None and folder.exists:
        if folder.owner != 0:
            found.append(f"{mount} belongs to the user number {folder.owner}, not to root.")
        if not folder.is_empty:
            found.append(f"{mount} has files, which the disk would hide: move them away.")
    if facts.device is not None:
        others = {
            other.target for other in facts.mounts if facts.number_of(other) == facts.device.number
        } - {mount}
        # Folders of a mounted disk are mounted elsewhere by containers; that is not ours to judge.
        if others and not is_mounted(facts, mount):
            found.append(f"{facts.asked} is mounted at {', '.join(sorted(others))}.")
    return tuple(found)
