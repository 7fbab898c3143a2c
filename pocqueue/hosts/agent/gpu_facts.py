"""What there is to know of this machine's GPUs, as values; NVML is behind a seam."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from typing_extensions import override

from pocqueue.hosts.agent.errors import GpuFactsUnavailable
from pocqueue.hosts.agent.kernel_log import short_bus

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. None: it does not say."""

    index: int
    uuid: str
    name: str
    vram_mib: int
    free_mib: int
    compute_capability: str  #: such as ``9.0``
    uncorrected_ecc: int | None = None  #: errors since the driver was loaded
    rows_replaced: int | None = None  #: rows of its memory that were replaced so far
    rows_failed: bool | None = None  #: rows of its memory could not be replaced
    rows_pending: bool | None = None  #: rows are replaced with the next reset
    slowed_by: tuple[str, ...] = ()  #: heat or power, now
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    is_mig: bool = False
    processes: int = 0  #: of others, that compute on it
    load: float | None = None  #: per cent
    temperature: float | None = None  #: degrees Celsius
    bus: str = ""  #: its place on the bus, such as ``0000:65:00``


@dataclass(frozen=True, slots=True)
class Lost:
    """A GPU that does not answer."""

    index: int
    bus: str  #: empty: not known
    why: str


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver and its GPUs."""

    version: str
    cuda: tuple[int, int]  #: newest CUDA that it runs
    gpus: tuple[Gpu, ...]
    lost: tuple[Lost, ...] = ()


class GpuFacts(Protocol):
    """Reads what there is to know."""

    def read(self) -> Driver:
        """Return it.

        Raises:
            GpuFactsUnavailable: it cannot be known; says why and what to do.
        """


class NvmlFacts(GpuFacts):
    """Reads NVIDIA's management library, which comes with the driver."""

    @override
    def read(self) -> Driver:
        import pynvml

        with _nvml(pynvml):
            cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
            found = [_look(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
            return Driver(
                version=pynvml.nvmlSystemGetDriverVersion(),
                cuda=(cuda // 1000, cuda % 1000 // 10),
                gpus=tuple(one for one in found if isinstance(one, Gpu)),
                lost=tuple(one for one in found if isinstance(one, Lost)),
            )


@contextlib.contextmanager
def _nvml(nvml: Any) -> Iterator[None]:
    """Hold the library open within the block.

    Raises:
        GpuFactsUnavailable: there is none, or it does not work.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError_LibraryNotFound:
        raise GpuFactsUnavailable(
            "no NVIDIA driver (libnvidia-ml.so.1 is not there)",
            "install the driver, such as `sudo apt-get install nvidia-driver`; in a container, start it with `--gpus all`",
        ) from None
    except nvml.NVMLError_LibRmVersionMismatch:
        raise GpuFactsUnavailable(
            "the loaded kernel module is of another version than the driver's libraries",
            "the driver was updated: reboot, or unload and load its kernel modules",
        ) from None
    except nvml.NVMLError_DriverNotLoaded:
        raise GpuFactsUnavailable(
            "the driver's kernel module is not loaded",
            "`sudo modprobe nvidia`; after an update of the kernel, reboot",
        ) from None
    except nvml.NVMLError as exc:
        raise GpuFactsUnavailable(f"NVML says: {exc}", "see `nvidia-smi`") from None
    try:
        yield
    except nvml.NVMLError as exc:
        # A GPU that fell off the bus, say.
        raise GpuFactsUnavailable(
            f"NVML says: {exc}", "see `nvidia-smi` and `dmesg | grep -i xid`; reboot"
        ) from None
    finally:
        nvml.nvmlShutdown()


def _look(nvml: Any, index: int) -> Gpu | Lost:
    """Return what there is to know of one GPU; one that does not answer leaves the others as they are."""
    bus = ""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        bus = short_bus(nvml.nvmlDeviceGetPciInfo(handle).busId)
        return _gpu(nvml, index, handle, bus)
    except nvml.NVMLError as exc:
        return Lost(index, bus, str(exc))


def _gpu(nvml: Any, index: int, handle: Any, bus: str) -> Gpu:
    def ask(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
            return None

    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    remapped = ask(lambda: nvml.nvmlDeviceGetRemappedRows(handle))
    mig = ask(lambda: nvml.nvmlDeviceGetMigMode(handle))
    reasons = ask(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)) or 0
    loads = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    return Gpu(
        index=index,
        bus=bus,
        uuid=nvml.nvmlDeviceGetUUID(handle),
        name=nvml.nvmlDeviceGetName(handle),
        vram_mib=memory.total >> 20,
        free_mib=memory.free >> 20,
        compute_capability=f"{major}.{minor}",
        uncorrected_ecc=ask(
            lambda: nvml.nvmlDeviceGetTotalEccErrors(
                handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            )
        ),
        rows_replaced=None if remapped is None else remapped[0] + remapped[1],
        rows_failed=None if remapped is None else bool(remapped[3]),
        rows_pending=None if remapped is None else bool(remapped[2]),
        slowed_by=tuple(
            word
            for word, bits in {
                "heat": nvml.nvmlClocksThrottleReasonSwThermalSlowdown
                | nvml.nvmlClocksThrottleReasonHwThermalSlowdown,
                "power supply": nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
            }.items()
            if reasons & bits
        ),
        pcie_width=ask(lambda: nvml.nvmlDeviceGetCurrPcieLinkWidth(handle)),
        pcie_width_max=ask(lambda: nvml.nvmlDeviceGetMaxPcieLinkWidth(handle)),
        is_mig=mig is not None and mig[0] == nvml.NVML_DEVICE_MIG_ENABLE,
        processes=len(ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or ()),
        load=None if loads is None else float(loads.gpu),
        temperature=ask(
            lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        ),
    )
