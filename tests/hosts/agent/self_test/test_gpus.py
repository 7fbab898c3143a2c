"""What a self-test says of GPUs: from facts to rows."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest
from typing_extensions import override

from pocqueue.hosts.agent.errors import GpuFactsUnavailable
from pocqueue.hosts.agent.gpu_facts import Driver, Gpu, GpuFacts, NvmlFacts
from pocqueue.hosts.agent.sandbox.none import NoSandbox
from pocqueue.hosts.agent.self_test.gpus import driver_row, gpu_rows
from pocqueue.hosts.agent.self_test.matrix import matrix_row
from pocqueue.hosts.agent.self_test.run import Report, run_self_test
from tests.support.processes import open_transports
from tests.support.waiting import until

GOOD = Gpu(
    index=0,
    uuid="GPU-a",
    name="NVIDIA H200",
    vram_mib=143_771,
    free_mib=143_000,
    compute_capability="9.0",
    uncorrected_ecc=0,
    rows_failed=False,
    rows_pending=False,
    pcie_width=16,
    pcie_width_max=16,
)


def changed(**fields: object) -> Gpu:
    """Return a GPU that is not as it should be."""
    return dataclasses.replace(GOOD, **fields)  # type: ignore[arg-type]  # fields of it


def test_a_good_gpu_passes_every_row() -> None:
    """And one that does not count its errors is not blamed for it."""
    assert {row.state for row in gpu_rows(GOOD)} == {"pass"}
    silent = changed(uncorrected_ecc=None, rows_failed=None, pcie_width=None)
    assert {row.state for row in gpu_rows(silent)} == {"pass", "skip"}


@pytest.mark.parametrize(
    ("fields", "name", "state", "remedy"),
    [
        ({"is_mig": True}, "gpu", "fail", "-mig 0"),
        ({"uncorrected_ecc": 3}, "gpu_memory", "fail", "--gpu-reset"),
        ({"rows_failed": True}, "gpu_memory", "fail", "replace the card"),
        ({"rows_pending": True}, "gpu_memory", "warn", "--gpu-reset"),
        ({"free_mib": 1000}, "gpu_free", "warn", "end what uses it"),
        ({"processes": 2}, "gpu_free", "warn", "end what uses it"),
        ({"slowed_by": ("heat",)}, "gpu_clocks", "warn", "fans"),
        ({"pcie_width": 4}, "gpu_pcie", "warn", "seat the card anew"),
    ],
)
def test_what_is_wrong_has_a_remedy(
    fields: dict[str, object], name: str, state: str, remedy: str
) -> None:
    """One row says it; the others pass."""
    rows = list(gpu_rows(changed(**fields)))
    [wrong] = [row for row in rows if row.state != "pass"]
    assert (wrong.name, wrong.state, wrong.gpu) == (name, state, "GPU-a")
    assert remedy in wrong.remedy


def test_a_failed_gpu_is_out_and_the_others_stay() -> None:
    """The server is told why."""
    gpus = (GOOD, changed(index=1, uuid="GPU-b", rows_failed=True))
    report = Report(tuple(row for gpu in gpus for row in gpu_rows(gpu)), gpus)
    assert report.healthy() == {"GPU-a": 0}
    assert not report.is_good
    good, bad = report.host_gpus()
    assert (good.healthy, good.memory, good.reason) == (True, "143771 MiB", None)
    assert not bad.healthy
    assert bad.reason is not None
    assert bad.reason.startswith("gpu_memory: ")


def test_a_driver_without_gpus_fails() -> None:
    """One with them says which CUDA it runs."""
    assert driver_row(Driver("580.95", (13, 0), (GOOD,))).measured == (
        "driver 580.95, CUDA up to 13.0, GPUs: 1"
    )
    assert driver_row(Driver("580.95", (13, 0), ())).state == "fail"


class _Facts(GpuFacts):
    def __init__(self, found: Driver | GpuFactsUnavailable) -> None:
        self.found = found

    @override
    def read(self) -> Driver:
        if isinstance(self.found, GpuFactsUnavailable):
            raise self.found
        return self.found


async def test_a_machine_without_a_driver_is_told_first(tmp_path: Path) -> None:
    """The first row; the rest is looked at all the same."""
    facts = _Facts(GpuFactsUnavailable("no driver", "install it"))
    report = await run_self_test(facts, NoSandbox("no reason"), tmp_path, None)
    first = report.rows[0]
    assert (first.name, first.state, first.measured) == ("driver", "fail", "no driver")
    assert {row.name for row in report.rows} >= {"memory", "disk_free", "disk_speed", "sandbox"}
    assert [row.state for row in report.rows if row.name == "clock"] == ["skip"]
    assert (report.host_gpus(), report.has_sandbox) == ((), False)


def test_nvml_without_a_driver_is_a_reason() -> None:
    """On a machine with one, it says what there is."""
    if Path("/proc/driver/nvidia").exists():
        assert all(gpu.uuid.startswith("GPU-") for gpu in NvmlFacts().read().gpus)
        return
    with pytest.raises(GpuFactsUnavailable) as caught:
        NvmlFacts().read()
    assert "driver" in caught.value.reason
    assert caught.value.remedy


async def test_a_matrix_product_is_the_same_every_time() -> None:
    """In a process of its own; here on the CPU."""
    row = await matrix_row(GOOD, 0.2, device="cpu")
    assert (row.state, row.gpu) == ("pass", "GPU-a")
    assert "TFLOPS" in row.measured
    row = await matrix_row(GOOD, 0.2, device="nowhere")
    assert row.state == "fail"
    assert "nowhere" in row.measured


async def test_a_matrix_product_that_is_given_up_is_ended() -> None:
    """Its process is not to outlive whoever waited for it."""
    row = asyncio.create_task(matrix_row(GOOD, 3600, device="cpu"))
    await until(open_transports)
    row.cancel()
    await asyncio.wait([row])
    assert row.cancelled()
    assert open_transports() == []
