"""When a disk may be formatted, on what a server says: each reason against it has its sentence."""

from __future__ import annotations

import dataclasses
import json
import uuid

import pytest

from pocqueue.deploy.errors import UnsafeDisk
from pocqueue.deploy.facts.disk import read_disk
from pocqueue.deploy.facts.format_rule import FormatRule, format_volume, reasons_against
from pocqueue.deploy.facts.parts import UnexpectedAnswer
from pocqueue.deploy.facts.volume import is_volume_ready, reasons_against_mount
from pocqueue.deploy.steps.volume import MountVolume, Volume
from tests.deploy.facts.answers import BLOCKS, FSTAB, MOUNTS, NODES, empty_disk, identity, lsblk

RULE = FormatRule()
UUID = uuid.UUID("0f814836-0b1e-445f-8411-ded2eba18ce2")

#: A name, the parts of an answer in which it differs from an empty disk's, and words of the sentence.
AGAINST: dict[str, tuple[dict[str, str | tuple[str, int]], str]] = {
    "missing": ({"identity": "is=missing"}, "is not there"),
    "a file": ({"identity": "is=other"}, "is no block device"),
    "ext4": (
        {"blkid": "DEVNAME=/dev/vdc\nUUID=5f\nTYPE=ext4\nUSAGE=filesystem"},
        "has content: ext4",
    ),
    "gpt": ({"blkid": "DEVNAME=/dev/vdc\nPTUUID=5f\nPTTYPE=gpt"}, "has content: gpt"),
    "luks": ({"blkid": "TYPE=crypto_LUKS\nUSAGE=crypto"}, "has content: crypto_LUKS"),
    "swap area": ({"blkid": "TYPE=swap\nUSAGE=other"}, "has content: swap"),
    "lvm": ({"blkid": "TYPE=LVM2_member\nUSAGE=raid"}, "has content: LVM2_member"),
    "raid": ({"blkid": "TYPE=linux_raid_member\nUSAGE=raid"}, "has content: linux_raid_member"),
    "wipefs alone": (
        {
            "wipefs": json.dumps(
                {"signatures": [{"device": "vdc", "offset": "0x1fe", "type": "dos"}]}
            )
        },
        "has content: dos",
    ),
    "only a label": ({"blkid": "LABEL=x"}, "has content: LABEL=x"),
    "ambiguous": ({"blkid": ("", 8)}, "cannot examine"),
    "no blkid": ({"blkid": ("", 127)}, "cannot examine"),
    "no wipefs": ({"wipefs": ("", 127)}, "cannot examine"),
    "raw data": ({"samples": "data=20971520"}, "data without a signature, at byte 20971520"),
    "bad sectors": ({"samples": "unreadable=4096"}, "cannot be read at byte 4096"),
    "no samples": ({"samples": ""}, "Only 0 of 258 samples"),
    "few samples": ({"samples": "zero=2"}, "Only 2 of 258 samples"),
    "read-only": ({"lsblk": lsblk(ro=True)}, "is read-only"),
    "read-only, of an older lsblk": ({"lsblk": lsblk(ro="1")}, "is read-only"),
    "not known if read-only": ({"lsblk": lsblk(ro=None)}, "is read-only"),
    "small": ({"lsblk": lsblk(size=20_000_000_000)}, "less than"),
    "a volume of LVM": ({"lsblk": lsblk(type="lvm")}, "of the kind 'lvm'"),
    "a loop device": ({"lsblk": lsblk(type="loop")}, "of the kind 'loop'"),
    "no kind": ({"lsblk": lsblk(type=None)}, "of the kind ''"),
    "partitions": ({"blocks": f"{BLOCKS}\nvdc1 252:33 vdc , ,"}, "has partitions: vdc1"),
    "held": (
        {"blocks": BLOCKS.replace("vdc 252:32 - , ,", "vdc 252:32 - , ,dm-0")},
        "in use by dm-0",
    ),
    "held, said by the holder": ({"blocks": f"{BLOCKS}\nmd0 9:0 - ,vdc ,"}, "in use by md0"),
    "swap": ({"swaps": "/dev/vdc", "nodes": f"{NODES}\n252:32 /dev/vdc"}, "used as swap"),
    "swap by another name": (
        {"swaps": "/dev/disk/by-id/x", "nodes": f"{NODES}\n252:32 /dev/disk/by-id/x"},
        "used as swap",
    ),
    "swap that is not known": (
        {"swaps": "/dev/gone", "nodes": f"{NODES}\n? /dev/gone"},
        "used as swap",
    ),
    "mounted": (
        {"mounts": f"{MOUNTS}\n50 27 252:32 / /mnt/ssd rw - ext4 /dev/vdc rw"},
        "is mounted at /mnt/ssd",
    ),
    "mounted by another name": (
        {"mounts": f"{MOUNTS}\n50 27 252:32 / /a\\040b rw shared:1 - xfs /dev/disk/by-id/x rw"},
        "is mounted at /a b",
    ),
    "mounted, of several devices": (
        {
            "mounts": f"{MOUNTS}\n50 27 0:60 / /data rw - btrfs /dev/by-x rw",
            "nodes": f"{NODES}\n252:32 /dev/by-x",
        },
        "is mounted at /data",
    ),
    "mounted elsewhere": (
        {"mounts_elsewhere": f"{MOUNTS}\n50 27 252:32 / /x rw - ext4 /dev/vdc rw"},
        "another namespace",
    ),
    "fstab by path": ({"fstab": f"{FSTAB}/dev/vdc /x ext4 defaults 0 0\n"}, "Line 4 of /etc/fstab"),
    "fstab, a partition": (
        {"fstab": f"{FSTAB}/dev/vdc1 /x ext4 defaults 0 0"},
        "names /dev/vdc (/dev/vdc1",
    ),
    "fstab by id": (
        {
            "fstab": f"{FSTAB}/dev/disk/by-id/x /x ext4 defaults",
            "nodes": f"{NODES}\n252:32 /dev/disk/by-id/x",
        },
        "Line 4 of /etc/fstab",
    ),
    "fstab by the table's id": (
        {
            "fstab": f'{FSTAB}PARTUUID="AB-01" /x ext4 defaults 0 0',
            "blkid": "DEVNAME=/dev/vdc\nPART_ENTRY_UUID=ab-01",
        },
        "PARTUUID=AB-01 on /x",
    ),
    "root's disk": (
        {"identity": identity(name="vda", number="252:0", disk="vda"), "lsblk": lsblk(kname="vda")},
        "is on the disk of /.",
    ),
    "a partition of root's disk": (
        {
            "identity": identity(name="vda3", number="252:3", disk="vda"),
            "lsblk": lsblk(kname="vda3", type="part"),
            "blocks": f"{BLOCKS}\nvda3 252:3 vda , ,",
        },
        "is on the disk of /.",
    ),
    "below root, through LVM": (
        {
            "mounts": MOUNTS.replace("252:1 / / ", "253:0 / / "),
            "blocks": f"{BLOCKS}\ndm-0 253:0 - ,md0 ,\nmd0 9:0 - ,vdc ,",
        },
        "is on the disk of /.",
    ),
    "root of several devices": (
        {
            "mounts": MOUNTS.replace(
                "252:1 / / rw,relatime - ext4", "0:33 / / rw,relatime - btrfs"
            ),
            "nodes": "252:32 /dev/vda1",
        },
        "is on the disk of /.",
    ),
    "root that is not known": (
        {"mounts": MOUNTS.replace("252:1 / / ", "8:77 / / ")},
        "not known on which disk / is",
    ),
    "root on a kind that is not known": (
        {
            "mounts": MOUNTS.replace(
                "252:1 / / rw,relatime - ext4 /dev/vda1", "0:50 / / rw - zfs rpool/root"
            )
        },
        "not known on which disk / is",
    ),
    "no root": (
        {"mounts": MOUNTS.splitlines()[0], "mounts_elsewhere": MOUNTS.splitlines()[0]},
        "not known what / is on",
    ),
    "a node that the kernel does not know": (
        {"blocks": BLOCKS.replace("252:32", "252:48")},
        "knows nothing",
    ),
    "a node of another device": (
        {"blocks": BLOCKS.replace("vdc 252:32", "vdd 252:32")},
        "knows nothing",
    ),
}


@pytest.mark.parametrize("case", AGAINST)
def test_a_disk_that_is_not_for_us_is_not_formatted(case: str) -> None:
    """There is a sentence for it, and no command."""
    parts, sentence = AGAINST[case]
    device = "/dev/vda" if "root's disk" in case and "partition" not in case else "/dev/vdc"
    facts = read_disk(device, "/mnt/ssd", empty_disk(**parts))
    reasons = reasons_against(facts, RULE)
    assert any(sentence in reason for reason in reasons), reasons
    with pytest.raises(UnsafeDisk) as caught:
        format_volume(facts, RULE, UUID)
    assert caught.value.device == device
    assert sentence in str(caught.value)


def test_an_empty_disk_may_be_formatted() -> None:
    """The command has all that was shown to the operator, for the last look."""
    facts = read_disk("/dev/vdc", "/mnt/ssd", empty_disk())
    assert reasons_against(facts, RULE) == ()
    command = format_volume(facts, RULE, UUID)
    assert command.script == "format_volume"
    assert command.words == (
        *(
            "/dev/vdc",
            "7f3a",
            "1979120929996",
            "3",
            "200000000000",
            "disk part",
            str(UUID),
            "pocqueue",
            "zero",
        ),
    )
    assert facts.device is not None
    assert facts.device.shown == "/dev/vdc 1.8T serial 7f3a"


def test_an_empty_partition_of_another_disk_may_be_formatted() -> None:
    """Its disk's table says something of it, which is no content."""
    facts = read_disk(
        "/dev/vdc1",
        "/mnt/ssd",
        empty_disk(
            identity=identity(name="vdc1", number="252:33"),
            lsblk=lsblk(
                kname="vdc1", type="part", children=[{"kname": "vdc", "type": "disk", "model": "X"}]
            ),
            blocks=f"{BLOCKS}\nvdc1 252:33 vdc , ,",
            blkid="DEVNAME=/dev/vdc1\nPART_ENTRY_SCHEME=gpt\nPART_ENTRY_UUID=ab-01",
        ),
    )
    assert reasons_against(facts, RULE) == ()
    assert facts.device is not None
    assert facts.device.model == "X"


def test_a_disk_beside_a_root_without_disk_may_be_formatted() -> None:
    """A live system, or a clone of a machine for tests."""
    mounts = MOUNTS.replace(
        "252:1 / / rw,relatime - ext4 /dev/vda1", "0:50 / / rw - overlay overlay"
    )
    facts = read_disk("/dev/vdc", "/mnt/ssd", empty_disk(mounts=mounts, mounts_elsewhere=mounts))
    assert reasons_against(facts, RULE) == ()


def test_old_data_goes_for_the_typed_serial_alone() -> None:
    """It helps no other disk, and none that has a signature or is in use."""
    old = read_disk("/dev/vdc", "/mnt/ssd", empty_disk(samples="data=0"))
    typed = FormatRule(garbage_serial="7f3a")
    assert reasons_against(old, typed) == ()
    assert format_volume(old, typed, UUID).words[-1] == "garbage"
    assert reasons_against(old, FormatRule(garbage_serial="7f3b"))
    nameless = read_disk(
        "/dev/vdc", "/mnt/ssd", empty_disk(samples="data=0", identity=identity(serial=""))
    )
    assert reasons_against(nameless, FormatRule(garbage_serial=""))
    content = ("raw data", "no samples", "few samples")
    for case, (parts, sentence) in AGAINST.items():
        if case not in content and "missing" not in case and case != "a file":
            facts = read_disk("/dev/vdc", "/mnt/ssd", empty_disk(**{"samples": "data=0"} | parts))
            assert any(
                sentence in reason.replace("/dev/vda", "/dev/vdc")
                for reason in reasons_against(facts, typed)
            ), case


def test_what_the_settings_forbid_is_not_done() -> None:
    """VOLUME_FORMAT=never, and another disk than the recorded one."""
    facts = read_disk("/dev/vdc", "/mnt/ssd", empty_disk())
    assert reasons_against(facts, FormatRule(is_allowed=False)) == ("VOLUME_FORMAT is never.",)
    [reason] = reasons_against(facts, FormatRule(known_serial="1234"))
    assert "'7f3a'" in reason
    assert "'1234'" in reason
    assert reasons_against(facts, FormatRule(known_serial="7f3a")) == ()


@pytest.mark.parametrize(
    "name",
    [
        "identity",
        "blocks",
        "mounts",
        "mounts_elsewhere",
        "swaps",
        "fstab",
        "nodes",
        "lsblk",
        "blkid",
        "wipefs",
        "samples",
    ],
)
def test_a_part_that_is_missing_or_senseless_is_an_error(name: str) -> None:
    """And never an empty disk."""
    text = empty_disk()
    start = text.index(f"@{name}\n")
    cut = text.index("\n=", start) + 1
    end = text.index("\n", cut) + 1
    with pytest.raises(UnexpectedAnswer):
        read_disk("/dev/vdc", "/mnt/ssd", text[:start] + text[end:])
    with pytest.raises(UnexpectedAnswer):
        read_disk("/dev/vdc", "/mnt/ssd", text[:cut])
    if name not in ("fstab", "swaps"):
        with pytest.raises(UnexpectedAnswer):
            read_disk("/dev/vdc", "/mnt/ssd", empty_disk(**{name: "Segmentation fault\n{"}))
    if name not in ("blkid", "wipefs"):
        with pytest.raises(UnexpectedAnswer):
            read_disk("/dev/vdc", "/mnt/ssd", empty_disk(**{name: ("", 1)}))


READY = {
    "blkid": f"DEVNAME=/dev/vdc\nUUID={UUID}\nTYPE=ext4",
    "mounts": f"{MOUNTS}\n50 27 252:32 / /mnt/ssd rw - ext4 /dev/vdc rw",
    "fstab": f"{FSTAB}UUID={UUID} /mnt/ssd ext4 defaults,nofail 0 2\n",
    "folder": "real=/mnt/ssd\nkind=directory\nuid=0\nentries=1",
}


def test_our_mounted_volume_is_ready() -> None:
    """Nothing is in the way of it either."""
    facts = read_disk("/dev/vdc", "/mnt/ssd", empty_disk(**READY))
    assert is_volume_ready(facts, str(UUID), "/mnt/ssd")
    assert reasons_against_mount(facts, str(UUID), "/mnt/ssd") == ()
    assert not is_volume_ready(facts, "", "/mnt/ssd")
    assert not is_volume_ready(facts, str(UUID), "/mnt")


def test_what_was_mounted_before_is_not_unmounted_by_rollback() -> None:
    """It was not ours."""
    rule = FormatRule()
    for mounts, num in ((READY["mounts"], 0), (MOUNTS, 1)):
        folder = "real=/mnt/ssd\nkind=directory\nuid=0"
        parts = READY | {"mounts": mounts, "folder": folder}
        disk = read_disk("/dev/vdc", "/mnt/ssd", empty_disk(**parts))
        plan = MountVolume().plan(Volume(disk, str(UUID), "/mnt/ssd", rule))
        assert len(plan.undo) == num


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("blkid", "DEVNAME=/dev/vdc\nUUID=00\nTYPE=ext4"),
        ("blkid", f"DEVNAME=/dev/vdc\nUUID={UUID}\nTYPE=xfs"),
        ("mounts", MOUNTS),
        ("mounts", f"{READY['mounts']}\n51 27 8:1 / /mnt/ssd rw - ext4 /dev/sda1 rw"),
        ("fstab", FSTAB),
        ("verify", "/mnt/ssd\n   [E] unreachable on boot required source: UUID=x"),
    ],
)
def test_a_volume_that_differs_is_not_ready(part: str, text: str) -> None:
    """Another filesystem, no mount, one over it, no line, a line that does not hold."""
    facts = read_disk("/dev/vdc", "/mnt/ssd", empty_disk(**READY | {part: text}))
    assert not is_volume_ready(facts, str(UUID), "/mnt/ssd")


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"folder": "real=/home/x"}, "leads to /home/x"),
        ({"folder": "real=/mnt/ssd\nkind=regular file\nuid=0"}, "is no folder"),
        ({"folder": "real=/mnt/ssd\nkind=directory\nuid=1000"}, "the user number 1000"),
        ({"folder": "real=/mnt/ssd\nkind=directory\nuid=0\nentries=1"}, "would hide"),
        (
            {"mounts": f"{MOUNTS}\n51 27 8:1 / /mnt/ssd rw - ext4 /dev/sda1 rw"},
            "/dev/sda1 (ext4) is mounted",
        ),
        ({"mounts": f"{MOUNTS}\n51 27 252:32 / /data rw - ext4 /dev/vdc rw"}, "mounted at /data"),
        ({"fstab": f"{FSTAB}LABEL=a /mnt/ssd ext4 defaults 0 0"}, "line 4"),
    ],
)
def test_what_is_in_the_way_of_mounting(parts: dict[str, str], sentence: str) -> None:
    """A sentence each, before anything is formatted."""
    facts = read_disk("/dev/vdc", "/mnt/ssd", empty_disk(**parts))
    assert any(sentence in reason for reason in reasons_against_mount(facts, str(UUID), "/mnt/ssd"))


def test_facts_are_values() -> None:
    """Frozen, so that a plan cannot change what it stands on."""
    facts = read_disk("/dev/vdc", "/mnt/ssd", empty_disk())
    with pytest.raises(dataclasses.FrozenInstanceError):
        facts.asked = "/dev/vda"  # type: ignore[misc]
