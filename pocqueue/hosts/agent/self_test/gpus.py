"""Rows about GPUs: functions from facts to rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from pocqueue.hosts.agent.gpu_facts import Driver, Gpu, Lost
from pocqueue.hosts.agent.kernel_log import Xid
from pocqueue.hosts.agent.messages import HostGpu, TestRow

#: Share of a GPU's memory that is to be free.
FREE_SHARE = 0.9


def driver_row(driver: Driver) -> TestRow:
    """Return what there is to say of a driver that answers."""
    cuda = ".".join(map(str, driver.cuda))
    measured = f"driver {driver.version}, CUDA up to {cuda}, GPUs: {len(driver.gpus)}"
    if driver.gpus:
        return TestRow(name="driver", state="pass", measured=measured, wanted="a driver with GPUs")
    return TestRow(
        name="driver",
        state="fail",
        measured=measured,
        wanted="at least one GPU",
        remedy="see `lspci | grep -i nvidia`, and `nvidia-smi`; in a container, start it with `--gpus all`",
    )


def lost_row(lost: Lost, errors: Iterable[Xid] | None) -> TestRow:
    """Return the row of a GPU that does not answer, with what the kernel's log says of it."""
    said = [f"Xid {one.code}: {one.text}" for one in errors or () if one.bus == lost.bus]
    return TestRow(
        name="gpu_lost",
        state="fail",
        measured="; ".join([f"GPU {lost.index} does not answer: {lost.why}", *said[-1:]]),
        wanted="an answer of every GPU",
        remedy="see to its power cables, its riser and its slot, then switch the machine off and on; the others go on",
    )


def gpu_rows(gpu: Gpu) -> Iterator[TestRow]:
    """Yield what there is to say of one GPU."""

    def row(
        name: str,
        state: Literal["pass", "warn", "fail", "skip"],
        measured: str,
        wanted: str,
        remedy: str = "",
    ) -> TestRow:
        return TestRow(
            name=name, state=state, measured=measured, wanted=wanted, remedy=remedy, gpu=gpu.uuid
        )

    yield row(
        "gpu",
        "fail" if gpu.is_mig else "pass",
        f"{gpu.name}, {gpu.vram_mib} MiB, compute capability {gpu.compute_capability}{', MIG' if gpu.is_mig else ''}",
        "a whole GPU",
        f"it is split by MIG: `sudo nvidia-smi -i {gpu.index} -mig 0`" if gpu.is_mig else "",
    )
    is_free = gpu.free_mib >= FREE_SHARE * gpu.vram_mib and not gpu.processes
    yield row(
        "gpu_free",
        "pass" if is_free else "warn",
        f"{gpu.free_mib} MiB free, processes of others: {gpu.processes}",
        f"{FREE_SHARE:.0%} free and nobody else on it",
        "" if is_free else "end what uses it: `nvidia-smi` lists it",
    )
    if gpu.uncorrected_ecc is None and gpu.rows_failed is None:
        yield row("gpu_memory", "skip", "it does not count errors of its memory", "no errors")
    else:
        is_bad = bool(gpu.rows_failed) or bool(gpu.uncorrected_ecc)
        yield row(
            "gpu_memory",
            "fail" if is_bad else "warn" if gpu.rows_pending else "pass",
            f"uncorrected errors: {gpu.uncorrected_ecc or 0}, replaced rows: {gpu.rows_replaced or 0}"
            f"{', rows that could not be replaced' if gpu.rows_failed else ''}"
            f"{', rows to be replaced with the next reset' if gpu.rows_pending else ''}",
            "none",
            "replace the card"
            if gpu.rows_failed
            else f"reset it: `sudo nvidia-smi -i {gpu.index} --gpu-reset`"
            if is_bad or gpu.rows_pending
            else "",
        )
    yield row(
        "gpu_clocks",
        "warn" if gpu.slowed_by else "pass",
        f"slowed down by {' and '.join(gpu.slowed_by)}" if gpu.slowed_by else "not slowed down",
        "not slowed down",
        "see to its fans, its air and its power cables" if gpu.slowed_by else "",
    )
    if gpu.pcie_width and gpu.pcie_width_max:
        is_narrow = gpu.pcie_width < gpu.pcie_width_max
        yield row(
            "gpu_pcie",
            "warn" if is_narrow else "pass",
            f"{gpu.pcie_width} lanes",
            f"{gpu.pcie_width_max} lanes",
            "seat the card anew, or use another slot; some cards widen under load only"
            if is_narrow
            else "",
        )


def host_gpu(gpu: Gpu, rows: tuple[TestRow, ...]) -> HostGpu:
    """Return a GPU as the server is told of it: out if one of its rows failed."""
    failed = [row for row in rows if row.gpu == gpu.uuid and row.state == "fail"]
    return HostGpu(
        name=gpu.name,
        memory=f"{gpu.vram_mib} MiB",
        uuid=gpu.uuid,
        index=gpu.index,
        vram_mib=gpu.vram_mib,
        compute_capability=gpu.compute_capability,
        healthy=not failed,
        reason=f"{failed[0].name}: {failed[0].measured}" if failed else None,
    )
