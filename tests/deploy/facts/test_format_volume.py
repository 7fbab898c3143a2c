"""The last look before mkfs, by itself, on real devices: whatever is not an empty disk that nobody uses stays as it is.

Each test runs the script as a server's shell does, and compares a hash of the whole device.
"""

from __future__ import annotations

import os
import re
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pocqueue.deploy.facts.disk import DiskFacts, disk_facts, read_disk
from pocqueue.deploy.facts.format_rule import REFUSED, FormatRule, format_volume, reasons_against
from pocqueue.deploy.facts.volume import is_formatted
from pocqueue.deploy.words import Command
from tests.deploy import loop_devices
from tests.deploy.loop_devices import LoopDevice, attempt, gpt, loop_device, luks, lvm, raid, run

pytestmark = pytest.mark.skipif(
    bool(loop_devices.missing()), reason=f"{loop_devices.missing()}: no disk to format"
)

RULE = FormatRule(min_bytes=loop_devices.MIB, kinds=("loop",))
UUID = "0f814836-0b1e-445f-8411-ded2eba18ce2"


def sh(argv: tuple[str, ...], path: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command as the server does."""
    return subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env={"PATH": f"{path}{':' if path else ''}/usr/sbin:/usr/bin:/sbin:/bin"},
    )


def facts_of(device: str, path: str = "") -> DiskFacts:
    """Read what is known of a device, as a deployment does."""
    done = sh(disk_facts(device, "/mnt/pocqueue-none", samples=True).argv(), path)
    assert done.returncode == 0, done.stderr
    return read_disk(device, "/mnt/pocqueue-none", done.stdout)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopDevice]:
    """An empty disk; who writes to it uses another one."""
    with loop_device(tmp_path_factory.mktemp("disks")) as device:
        yield device


def guard(
    device: LoopDevice, /, *, path: str = "", **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run the last look for a device that looked empty before.

    Args:
        device: on which it runs.
        path: a folder of programs before the server's.
        changes: of its arguments, by their names.
    """
    sequence = Path(f"/sys/class/block/{device.name}/diskseq")
    words = {
        "device": device.path,
        "serial": "",
        "bytes": str(device.file.stat().st_size),
        "sequence": sequence.read_text().strip() if sequence.exists() else "-",
        "min_bytes": str(RULE.min_bytes),
        "kinds": "loop",
        "uuid": UUID,
        "label": "pocqueue",
        "content": "zero",
    }
    return sh(Command(tuple((words | changes).values()), script="format_volume").argv(), path)


def assert_refused(done: subprocess.CompletedProcess[str], sentence: str) -> None:
    """Check that nothing was done, and that it says why."""
    assert done.returncode == REFUSED, done
    assert re.search(f"^REFUSED .*{sentence}", done.stdout, re.MULTILINE), done.stdout


def test_an_empty_disk_is_formatted_once(tmp_path: Path) -> None:
    """With the UUID that was recorded before; the second time it is known as ours."""
    with loop_device(tmp_path) as device:
        facts = facts_of(device.path)
        assert reasons_against(facts, RULE) == ()
        command = format_volume(facts, RULE, uuid.UUID(UUID))
        done = sh(command.argv())
        assert done.returncode == 0, done
        assert "258 samples zero" in done.stdout
        assert done.stdout.endswith(f"UUID {UUID}\n")
        made = device.hash()
        assert is_formatted(facts_of(device.path), UUID)
        again = sh(command.argv())
        assert again.returncode == 0, again
        assert "has this filesystem already" in again.stdout
        other = guard(device, uuid=str(uuid.uuid4()))
        assert_refused(other, "has content: .*TYPE=ext4")
        assert device.hash() == made


CONTENT: dict[str, tuple[Callable[[], dict[int, bytes]], str]] = {
    "gpt": (gpt, "has partitions|PTTYPE=gpt"),
    "luks": (luks, "TYPE=crypto_LUKS"),
    "lvm": (lvm, "TYPE=LVM2_member"),
    "raid": (raid, "TYPE=linux_raid_member"),
    "raw data at its beginning": (lambda: {0: b"x" * 512}, "without a signature, at byte 0"),
    "raw data at its end": (lambda: {16 * loop_devices.MIB - 1: b"x"}, "without a signature"),
    "raw data in its middle": (
        lambda: {5 * loop_devices.MIB: b"data" * loop_devices.MIB},
        "without a signature",
    ),
}


@pytest.mark.parametrize("case", CONTENT)
@pytest.mark.parametrize("content", ["zero", "garbage"])
def test_what_somebody_has_on_it_stays(case: str, content: str, tmp_path: Path) -> None:
    """Whether its data was given away or not, but for data that nothing knows."""
    if content == "garbage" and "raw" in case:
        pytest.skip("that is what it is for")
    make, sentence = CONTENT[case]
    with loop_device(tmp_path) as device:
        for at, data in make().items():
            device.write(data, at)
        before = device.hash()
        assert_refused(guard(device, content=content), sentence)
        assert reasons_against(facts_of(device.path), RULE)
        assert device.hash() == before


@pytest.mark.parametrize("tool", [("mkfs.ext4", "-q"), ("mkswap",)])
def test_what_a_tool_made_on_it_stays(tool: tuple[str, ...], tmp_path: Path) -> None:
    """A filesystem, a swap area: without a terminal mkfs.ext4 would have asked nobody."""
    with loop_device(tmp_path) as device:
        run(*tool, device.path)
        before = device.hash()
        for content in ("zero", "garbage"):
            assert_refused(guard(device, content=content), "has content: .*TYPE=(ext4|swap)")
        assert any(
            "has content" in reason for reason in reasons_against(facts_of(device.path), RULE)
        )
        assert device.hash() == before


def test_old_data_goes_if_it_was_given_away(tmp_path: Path) -> None:
    """The one thing that the operator can overrule."""
    with loop_device(tmp_path) as device:
        device.write(b"old" * 1000, 5000)
        assert_refused(guard(device), "without a signature")
        done = guard(device, content="garbage")
        assert done.returncode == 0, done


def test_a_disk_that_cannot_be_read_is_not_given_away(tmp_path: Path, empty: LoopDevice) -> None:
    """Old data may go; a disk with read errors is refused in both looks, also where data stands before them."""
    cmp = tmp_path / "cmp"
    cmp.write_text('#!/bin/sh\ncase " $* " in *" 0:0 "*) exit 1 ;; *) exit 2 ;; esac\n')
    cmp.chmod(0o755)
    before = empty.hash()
    assert_refused(guard(empty, path=str(tmp_path), content="garbage"), "cannot be read at byte")
    facts = facts_of(empty.path, str(tmp_path))
    assert any("cannot be read" in reason for reason in reasons_against(facts, RULE))
    assert empty.hash() == before


def test_a_read_only_disk_is_refused(tmp_path: Path) -> None:
    """In both looks."""
    with loop_device(tmp_path, "--read-only") as device:
        assert_refused(guard(device), "is read-only")
        assert any("read-only" in reason for reason in reasons_against(facts_of(device.path), RULE))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"device": "/dev/pocqueue-none"}, "not there any more"),
        ({"device": "/dev/null"}, "no block device"),
        ({"device": "/etc/fstab"}, "no block device"),
        ({"serial": "7f3a"}, "serial '' now, not '7f3a'"),
        ({"sequence": "1"}, "was exchanged"),
        ({"bytes": "1"}, "bytes now, not 1"),
        ({"min_bytes": "200000000000"}, "fewer than 200000000000"),
        ({"kinds": "disk part"}, "kind 'loop', not one of: disk part"),
    ],
)
def test_another_device_than_was_shown_is_refused(
    changes: dict[str, str], sentence: str, empty: LoopDevice
) -> None:
    """Gone, renamed, exchanged, of another size or kind."""
    before = empty.hash()
    assert_refused(guard(empty, **changes), sentence)
    assert empty.hash() == before


def test_a_disk_that_vanished_is_refused(tmp_path: Path) -> None:
    """Its node may still be there, without a disk behind it; and a new disk may have its name."""
    with loop_device(tmp_path) as device:
        args = {"bytes": str(device.file.stat().st_size)}
        sequence = Path(f"/sys/class/block/{device.name}/diskseq").read_text().strip()
        run("losetup", "-d", device.path)
        assert_refused(guard(device, sequence=sequence, **args), "exchanged|0 bytes now")
        run("losetup", device.path, str(device.file))
        assert_refused(guard(device, sequence=sequence, **args), "was exchanged")
        assert not any(device.file.read_bytes())


def test_a_renamed_disk_is_refused(tmp_path: Path, empty: LoopDevice) -> None:
    """The serial is read anew: lsblk says another one now."""
    for name, serial in (("before", "7f3a"), ("now", "9b2c")):
        (tmp_path / name).mkdir()
        fake = tmp_path / name / "lsblk"
        fake.write_text(
            f'#!/bin/sh\ncase " $* " in *SERIAL*) echo {serial} ;; *) exec /usr/bin/lsblk "$@" ;; esac\n'
        )
        fake.chmod(0o755)
    before = empty.hash()
    facts = facts_of(empty.path, str(tmp_path / "before"))
    assert facts.device is not None
    assert facts.device.serial == "7f3a"
    command = format_volume(facts, RULE, uuid.UUID(UUID))
    assert_refused(sh(command.argv(), str(tmp_path / "now")), "serial '9b2c' now, not '7f3a'")
    assert empty.hash() == before


def test_a_mounted_disk_is_refused(tmp_path: Path) -> None:
    """Here, or in the namespace of another process alone."""
    (tmp_path / "disks").mkdir()
    folder = tmp_path / "here"
    folder.mkdir()
    with loop_device(tmp_path / "disks") as device, ExitStack() as after:
        run("mkfs.ext4", "-q", device.path)
        run("mount", device.path, str(folder))
        after.callback(attempt, "umount", str(folder))
        assert_refused(guard(device), "is mounted")
        facts = facts_of(device.path)
        assert any(f"mounted at {folder}" in reason for reason in reasons_against(facts, RULE))
        run("umount", str(folder))
        before = device.hash()
        holder = subprocess.Popen(
            [  # noqa: S607
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-euc",
                'mount -o ro,noload "$1" "$2"; echo; exec cat',
                "sh",
                device.path,
                str(folder),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        after.callback(holder.communicate, timeout=60)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        assert_refused(guard(device), "is mounted")
        assert any(
            "another namespace" in reason for reason in reasons_against(facts_of(device.path), RULE)
        )
        holder.communicate(timeout=60)
        assert device.hash() == before


def test_a_disk_that_a_program_has_open_is_refused(empty: LoopDevice) -> None:
    """As a virtual machine has its own, which claims nothing; least of all is its data given away."""
    before = empty.hash()
    with Path(empty.path).open("rb"):
        for content in ("zero", "garbage"):
            assert_refused(
                guard(empty, content=content), f"is open in the process /proc/{os.getpid()}"
            )
    assert empty.hash() == before


def test_active_swap_is_refused(tmp_path: Path) -> None:
    """It is in use, whatever is on it."""
    with loop_device(tmp_path) as device, ExitStack() as after:
        run("mkswap", device.path)
        done = attempt("swapon", device.path)
        if done.returncode:
            pytest.skip(f"swapon: {done.stderr.strip()}")
        after.callback(run, "swapoff", device.path)
        assert_refused(guard(device), "used as swap")
        assert any(
            "used as swap" in reason for reason in reasons_against(facts_of(device.path), RULE)
        )


def test_a_held_disk_is_refused(tmp_path: Path) -> None:
    """By the device mapper, as LVM and encryption are; empty as it looks."""
    with loop_device(tmp_path) as device, ExitStack() as after:
        name = f"pocqueue-test-{os.getpid()}"
        sectors = device.file.stat().st_size // 512
        table = f"0 {sectors} linear {device.path} 0"
        done = attempt("dmsetup", "create", name, "--table", table)
        if done.returncode:
            pytest.skip(f"dmsetup: {done.stderr.strip()}")
        after.callback(run, "dmsetup", "remove", "--retry", name)
        before = device.hash()
        for content in ("zero", "garbage"):
            assert_refused(guard(device, content=content), "is in use by dm-")
        assert any(
            "in use by dm-" in reason for reason in reasons_against(facts_of(device.path), RULE)
        )
        assert device.hash() == before


def test_a_disk_below_a_loop_device_is_refused(tmp_path: Path, empty: LoopDevice) -> None:
    """The kernel does not count that as a holder."""
    above = run("losetup", "--find", "--show", empty.path).strip()
    try:
        assert_refused(guard(empty), "what a loop device stands on")
        assert any(
            "in use by loop" in reason for reason in reasons_against(facts_of(empty.path), RULE)
        )
    finally:
        run("losetup", "-d", above)
    assert reasons_against(facts_of(empty.path), RULE) == ()


#: A system whose `/` is a partition of ours, as its first process sees it.
SYSTEM = """
mount "$1" "$2"
cd "$2"
mkdir -p usr etc proc sys dev mnt
for folder in usr sys dev; do mount --rbind "/$folder" "$folder"; done
for link in bin sbin lib lib64; do [ ! -e "/$link" ] || [ -L "$link" ] || ln -s "usr/$link" "$link"; done
mount -t proc proc proc
shift 2
exec chroot . "$@"
"""


def test_a_part_of_roots_own_disk_is_refused(tmp_path: Path) -> None:
    """Empty and unused as it is; in a system of its own whose root is another partition of that disk."""
    (tmp_path / "disks").mkdir()
    folder = tmp_path / "root"
    folder.mkdir()
    with loop_device(tmp_path / "disks") as disk:
        for at, data in gpt(num_partitions=2).items():
            disk.write(data, at)
        attempt("partx", "--add", disk.path)
        root, rest = (
            LoopDevice(f"{disk.path}p1", disk.file),
            LoopDevice(f"{disk.path}p2", disk.file),
        )
        if not Path(rest.path).is_block_device():
            pytest.skip("the kernel makes no partitions of loop devices here")
        run("mkfs.ext4", "-q", root.path)

        def there(argv: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
            within = ("sh", "-euc", SYSTEM, "sh", root.path, str(folder))
            return sh(("unshare", "--mount", "--pid", "--fork", "--kill-child", *within, *argv))

        done = there(disk_facts(rest.path, "/mnt/none", samples=True).argv())
        assert done.returncode == 0, done.stderr
        facts = read_disk(rest.path, "/mnt/none", done.stdout)
        rule = FormatRule(min_bytes=1, kinds=("part",))
        assert reasons_against(facts, rule) == (f"{rest.path} is on the disk of /.",)
        assert facts.device is not None
        words = (
            "",
            str(facts.device.size_bytes),
            facts.device.sequence or "-",
            "1",
            "part",
            UUID,
            "x",
            "zero",
        )
        done = there(Command((rest.path, *words), script="format_volume").argv())
        assert_refused(done, "is on the disk of /")
        # The same partition beside another root may be.
        assert reasons_against(facts_of(rest.path), rule) == ()
        assert not any(Path(rest.path).read_bytes())


@pytest.mark.parametrize(
    ("tool", "script", "sentence"),
    [
        ("blkid", "exit 127", "blkid does not understand"),
        ("blkid", "exit 8", "blkid does not understand"),
        ("wipefs", "exit 1", "wipefs cannot examine"),
        ("shuf", "exit 1", "Only 2 of 258"),
        ("cmp", "exit 2", "cannot be read at byte 0"),
        ("lsblk", "exit 1", "kind ''"),
        ("flock", "exit 1", "is locked by another program"),
    ],
)
def test_a_tool_that_fails_proves_nothing(
    tool: str, script: str, sentence: str, tmp_path: Path, empty: LoopDevice
) -> None:
    """Whatever cannot be looked at counts as a reason."""
    fake = tmp_path / tool
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    before = empty.hash()
    assert_refused(guard(empty, path=str(tmp_path)), sentence)
    assert empty.hash() == before


def test_mkfs_that_fails_is_no_success(tmp_path: Path, empty: LoopDevice) -> None:
    """Nor one that made nothing."""
    fake = tmp_path / "mkfs.ext4"
    for script in ("exit 1", "exit 0"):
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        done = guard(empty, path=str(tmp_path))
        assert done.returncode not in (0, REFUSED), done


def test_reading_facts_changes_nothing(empty: LoopDevice, tmp_path: Path) -> None:
    """Of a missing device, of one that is none, and of an empty one, by whatever name."""
    before = empty.hash()
    assert facts_of("/dev/pocqueue-none").device is None
    assert facts_of("/etc/fstab").is_other
    link = tmp_path / "by-id"
    link.symlink_to(empty.path)
    facts = facts_of(str(link))
    assert reasons_against(facts, RULE) == ()
    assert facts.device is not None
    assert facts.device.name == empty.name
    assert empty.hash() == before
