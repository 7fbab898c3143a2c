"""The whole self-test, and what follows from it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from pocqueue.hosts.agent.errors import GpuFactsUnavailable
from pocqueue.hosts.agent.gpu_facts import Gpu, GpuFacts
from pocqueue.hosts.agent.kernel_log import KMSG, KernelLog, Xid
from pocqueue.hosts.agent.messages import HostGpu, TestRow
from pocqueue.hosts.agent.options import MATRIX_S
from pocqueue.hosts.agent.sandbox.base import Sandbox
from pocqueue.hosts.agent.self_test.gpus import driver_row, gpu_rows, host_gpu, lost_row
from pocqueue.hosts.agent.self_test.machine import disk_rows, memory_row, sandbox_row
from pocqueue.hosts.agent.self_test.matrix import matrix_row
from pocqueue.hosts.agent.self_test.network import network_rows
from pocqueue.hosts.agent.self_test.xids import xid_row


@dataclass(frozen=True, slots=True)
class Report:
    """What a self-test has found."""

    rows: tuple[TestRow, ...]
    gpus: tuple[Gpu, ...]

    @property
    def is_good(self) -> bool:
        """Whether nothing failed."""
        return all(row.state != "fail" for row in self.rows)

    @property
    def has_sandbox(self) -> bool:
        """Whether commands can be run."""
        return any(row.name == "sandbox" and row.state == "pass" for row in self.rows)

    def host_gpus(self) -> tuple[HostGpu, ...]:
        """Return the GPUs as the server is told of them."""
        return tuple(host_gpu(gpu, self.rows) for gpu in self.gpus)

    def healthy(self) -> dict[str, int]:
        """Return the index of each GPU that may have jobs, by UUID."""
        return {
            gpu.uuid: gpu.index
            for gpu, told in zip(self.gpus, self.host_gpus(), strict=True)
            if told.healthy
        }


async def run_self_test(
    facts: GpuFacts,
    sandbox: Sandbox,
    folder: Path,
    endpoint: str | None,
    *,
    matrix_s: float = MATRIX_S,
    log_path: Path = KMSG,
) -> Report:
    """Look at everything.

    Args:
        facts: about GPUs.
        sandbox: that commands are to run in.
        folder: where results are kept.
        endpoint: of the server; None leaves out what needs one.
        matrix_s: seconds for which each GPU multiplies; 0 leaves that out.
        log_path: the kernel's log.
    """
    errors: list[Xid] | None = None
    gpus: tuple[Gpu, ...] = ()
    rows: list[TestRow] = []
    try:
        driver = await asyncio.to_thread(facts.read)
    except GpuFactsUnavailable as exc:
        wanted = "a driver with GPUs"
        rows.append(
            TestRow(
                name="driver", state="fail", measured=exc.reason, wanted=wanted, remedy=exc.remedy
            )
        )
    else:
        gpus = driver.gpus
        rows.append(driver_row(driver))
        errors = await asyncio.to_thread(_errors, log_path)
        rows += [lost_row(lost, errors) for lost in driver.lost]
    for gpu in gpus:
        rows += [*gpu_rows(gpu), xid_row(gpu, errors)]
        if matrix_s:
            rows.append(await matrix_row(gpu, matrix_s))
    rows.append(memory_row())
    rows += await asyncio.to_thread(disk_rows, folder)
    rows.append(await sandbox_row(sandbox))
    rows += await network_rows(endpoint)
    return Report(tuple(rows), gpus)


def _errors(path: Path) -> list[Xid] | None:
    """Return the errors in the kernel's log; None: it cannot be read."""
    with KernelLog(path) as log:
        try:
            return log.news()
        except OSError:
            return None
