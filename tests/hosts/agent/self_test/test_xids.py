"""Errors of GPUs in the kernel's log: found, judged, and looked at again as soon as there is a new one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pocqueue.hosts.agent.kernel_log import KernelLog, Xid, short_bus, xids
from pocqueue.hosts.agent.self_test.xids import FRESH_S, xid_row
from tests.hosts.agent.self_test.test_gpus import changed

BUS = "0000:65:00"
GPU = changed(bus=BUS, index=2)


def line(code: int, *, bus: str = "PCI:0000:65:00", at_s: float = 10.0) -> str:
    """Return a record as the kernel has it."""
    return f"4,1193,{at_s * 1e6:.0f},-;NVRM: Xid ({bus}): {code}, pid='<unknown>', name=<unknown>, it broke"


def test_errors_are_found_among_everything_else() -> None:
    """By both ways in which drivers write them; what is older than a day is history."""
    records = [
        "6,1,0,-;Linux version 6.1.0",
        line(79),
        line(31, bus="0000:B3:00", at_s=20.0),
        "4,5,6,-;NVRM: Xid (PCI:0000:65:00): what is this",
        "half a record",
    ]
    found = list(xids(records, now_s=100.0))
    assert [(one.bus, one.code, one.age_s) for one in found] == [
        (BUS, 79, 90.0),
        ("0000:b3:00", 31, 80.0),
    ]
    assert found[0].text == "pid='<unknown>', name=<unknown>, it broke"
    assert list(xids(records, now_s=100.0 + 86_400)) == []
    assert short_bus("00000000:65:00.0") == BUS


@pytest.mark.parametrize(
    ("code", "state", "remedy"),
    [
        (31, "pass", ""),
        (48, "fail", "sudo nvidia-smi -i 2 --gpu-reset"),
        (63, "warn", "--gpu-reset"),
        (64, "fail", "replace the card"),
        (74, "fail", "nvidia-smi nvlink -s -i 2"),
        (79, "fail", "power cables"),
        (92, "warn", "-q -d ECC -i 2"),
        (94, "warn", "--gpu-reset"),
        (119, "fail", "update the driver"),
        (777, "warn", "docs.nvidia.com/deploy/xid-errors"),
    ],
)
def test_each_error_has_a_meaning_and_a_remedy(code: int, state: str, remedy: str) -> None:
    """A program's own fault is none of the GPU's."""
    row = xid_row(GPU, [Xid(BUS, code, "it broke", 60.0)])
    assert (row.name, row.state, row.gpu) == ("gpu_xid", state, GPU.uuid)
    assert f"Xid {code}, 1 min ago" in row.measured
    assert remedy in row.remedy


def test_the_worst_of_a_gpus_own_errors_counts() -> None:
    """For an hour: a GPU that was reset is not out for ever. Those of other GPUs do not count."""
    errors = [
        Xid(BUS, 64, "a", FRESH_S - 1),
        Xid(BUS, 31, "b", 5.0),
        Xid("0000:b3:00", 79, "c", 5.0),
    ]
    assert "Xid 64" in xid_row(GPU, errors).measured
    assert xid_row(GPU, errors).state == "fail"
    assert xid_row(GPU, [Xid(BUS, 64, "a", FRESH_S + 1)]).state == "warn"
    assert xid_row(GPU, errors[2:]).measured == "none"


def test_a_log_that_may_not_be_read_is_said() -> None:
    """With the command that shows it."""
    row = xid_row(GPU, None)
    assert (row.state, "sudo dmesg | grep Xid" in row.measured) == ("skip", True)


def test_a_log_is_read_on(tmp_path: Path) -> None:
    """What was read is not told again; a log that is not there is an error."""
    path = tmp_path / "kmsg"
    now_s = time.monotonic()
    path.write_text(line(79, at_s=now_s - 1) + "\n")
    with KernelLog(path) as log:
        assert [one.code for one in log.news()] == [79]
        assert log.news() == []
        with path.open("a") as file:
            file.write(line(31, at_s=now_s) + "\n")
        assert [one.code for one in log.news()] == [31]
    with KernelLog(tmp_path / "nothing") as log, pytest.raises(FileNotFoundError):
        log.news()


@pytest.mark.skipif(os.getuid() != 0 or not Path("/dev/kmsg").exists(), reason="takes root")
def test_the_kernels_own_log_is_read() -> None:
    """All of it that there is, and without waiting for more."""
    with KernelLog() as log:
        assert all(one.age_s >= 0 for one in log.news())
        log.news()
