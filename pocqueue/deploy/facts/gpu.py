"""The server's GPUs and their driver, as `nvidia-smi` and the kernel speak of them."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from pocqueue.deploy.facts.parts import Part, UnexpectedAnswer, read_parts
from pocqueue.deploy.words import Command

_XID = re.compile(r"NVRM: Xid \(PCI:([0-9A-Fa-f:.]+)\): (\d+),? ?(.*)")
_UPGRADES = r'^\s*APT::Periodic::Unattended-Upgrade\s+"[1-9]'
_NOT_SAID = frozenset(
    {
        "[N/A]",
        "N/A",
        "[Not Supported]",
        "[Unknown Error]",
        "[GPU is lost]",
        "[Insufficient Permissions]",
    }
)


class DriverState(enum.Enum):
    """How the driver is, each with what to do."""

    READY = "it answers"
    MISSING = "there is no driver: install the one of your distribution, then start the server anew"
    MISMATCH = "another version is loaded than is installed: start the server anew"
    NOT_LOADED = "it is installed but not loaded: `modprobe nvidia`, see `dmesg`; with Secure Boot its module has to be signed"
    NO_GPU = "it finds no GPU: see `lspci` and the provider"
    LOST = "a GPU is lost: start the server anew, then see the provider"
    STUCK = "it does not answer within a minute: see `dmesg`"


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """One GPU. None: it does not say."""

    index: int
    uuid: str
    name: str
    memory_mib: int
    free_mib: int
    compute_capability: str  #: such as ``9.0``
    uncorrected_ecc: int | None = None  #: errors since the driver was loaded
    is_persistent: bool = False
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    is_mig: bool = False
    rows_pending: bool = False  #: rows of its memory are replaced with the next reset
    rows_failed: bool = False  #: rows of its memory could not be replaced


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that computes on a GPU."""

    uuid: str
    pid: int
    used_mib: int | None
    name: str


@dataclass(frozen=True, slots=True)
class Xid:
    """An error of a GPU that the kernel logged."""

    address: str
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """The driver and its GPUs.

    Attributes:
        state: of the driver; without READY there are no GPUs.
        said: what `nvidia-smi` said where it is not READY.
        driver: version of the programs; empty: not known.
        module: version of the loaded module; empty: none is loaded.
        packages: of the driver, with their versions.
        switches: how many NVSwitches there are.
        fabric_manager: its version; empty: there is none.
        is_fabric_active: it runs.
        is_secure_boot: None: not known.
        is_upgraded_alone: the system may exchange the driver below a running node.
    """

    state: DriverState
    said: str = ""
    gpus: tuple[GpuDevice, ...] = ()
    processes: tuple[GpuProcess, ...] = ()
    xids: tuple[Xid, ...] = ()
    driver: str = ""
    module: str = ""
    packages: tuple[tuple[str, str], ...] = ()
    switches: int = 0
    fabric_manager: str = ""
    is_fabric_active: bool = False
    is_secure_boot: bool | None = None
    is_upgraded_alone: bool = False


def gpu_facts() -> Command:
    """Return the command that reads them; as root, for the kernel's log."""
    return Command((), script="gpu_facts", sudo=True, timeout_s=240)


def read_gpus(text: str) -> GpuFacts:
    """Return what the command said.

    Raises:
        UnexpectedAnswer: something of it is not understood.
    """
    parts = read_parts(
        *(
            text,
            "gpus",
            "rows",
            "apps",
            "module",
            "packages",
            "xid",
            "switches",
            "fabric",
            "secure_boot",
            "upgrades",
        ),
    )
    module = re.search(
        r"(?:Kernel Module|Open Kernel Module for \S+)\s+(\d[\d.]+)", parts["module"].text
    )
    if parts["module"].text.strip() and not module:
        raise UnexpectedAnswer(
            "/proc/driver/nvidia/version", parts["module"].text, "a driver's version"
        )
    fabric = re.search(r"(\d+\.\d[\d.]*)", parts["fabric"].text)
    packages, held = [], set[str]()
    for line in parts["packages"].lines:
        want, name, version = [*line.split(), "", ""][:3]
        if version:
            packages.append((name, version))
            held |= {name} if want == "hold" else set()
    state = _state(parts["gpus"])
    rows = _rows(parts["rows"]) if state is DriverState.READY else {}
    return GpuFacts(
        state=state,
        said="" if state is DriverState.READY else parts["gpus"].text.strip()[:300],
        gpus=tuple(_gpu(line, rows) for line in parts["gpus"].lines)
        if state is DriverState.READY
        else (),
        processes=tuple(map(_process, _app_lines(parts["apps"])))
        if state is DriverState.READY
        else (),
        xids=tuple(_xids(parts["xid"])),
        driver=_driver(parts["gpus"]) if state is DriverState.READY else "",
        module=module[1] if module else "",
        packages=tuple(packages),
        switches=_int("ls", parts["switches"].text.strip()),
        fabric_manager=fabric[1] if fabric else "",
        is_fabric_active="active" in parts["fabric"].text.split(),
        is_secure_boot={"SecureBoot enabled": True, "SecureBoot disabled": False}.get(
            (parts["secure_boot"].lines or [""])[0].strip()
        ),
        is_upgraded_alone=any(name not in held for name, _ in packages)
        and re.search(_UPGRADES, parts["upgrades"].text, re.MULTILINE) is not None,
    )


def _state(part: Part) -> DriverState:
    said = part.text.lower()
    if part.exit_code in (126, 127):
        return DriverState.MISSING
    if part.exit_code == 124:
        return DriverState.STUCK
    # An address that is lost is said on a line among others, with 0 or not.
    if "gpu is lost" in said:
        return DriverState.LOST
    if "driver/library version mismatch" in said:
        return DriverState.MISMATCH
    if "couldn't communicate with the nvidia driver" in said or "driver not loaded" in said:
        return DriverState.NOT_LOADED
    if "no devices were found" in said:
        return DriverState.NO_GPU
    if part.exit_code or not part.lines:
        raise UnexpectedAnswer(
            f"nvidia-smi (exit code {part.exit_code})", part.text, "a table of GPUs"
        )
    return DriverState.READY


def _cells(what: str, line: str, num: int) -> list[str]:
    cells = [cell.strip() for cell in line.split(",", num - 1)]
    if len(cells) != num:
        raise UnexpectedAnswer(what, line, f"a line of {num} values")
    return cells


def _gpu(line: str, rows: dict[str, tuple[bool, bool]]) -> GpuDevice:
    cells = _cells("nvidia-smi", line, 12)
    pending, failed = rows.get(cells[1], (False, False))
    return GpuDevice(
        index=_int("nvidia-smi", cells[0]),
        uuid=cells[1],
        name=cells[2],
        memory_mib=_int("nvidia-smi", cells[3]),
        free_mib=_int("nvidia-smi", cells[4]),
        compute_capability=cells[6],
        uncorrected_ecc=_maybe(cells[7]),
        is_persistent=cells[8] == "Enabled",
        pcie_width=_maybe(cells[9]),
        pcie_width_max=_maybe(cells[10]),
        is_mig=cells[11] == "Enabled",
        rows_pending=pending,
        rows_failed=failed,
    )


def _driver(part: Part) -> str:
    return _cells("nvidia-smi", part.lines[0], 12)[5]


def _rows(part: Part) -> dict[str, tuple[bool, bool]]:
    # Not every GPU has such rows; what it says then is no error.
    if part.exit_code:
        return {}
    found = {}
    for line in part.lines:
        uuid, *flags = [cell.strip() for cell in line.split(",")]
        if uuid.startswith("GPU-") and len(flags) == 2:
            pending, failed = (flag.lower() in ("1", "yes") for flag in flags)
            found[uuid] = (pending, failed)
    return found


def _app_lines(part: Part) -> list[str]:
    return [] if part.exit_code else [line for line in part.lines if line.startswith("GPU-")]


def _process(line: str) -> GpuProcess:
    uuid, pid, used, name = _cells("nvidia-smi", line, 4)
    return GpuProcess(uuid, _int("nvidia-smi", pid), _maybe(used), name)


def _xids(part: Part) -> list[Xid]:
    found = []
    for line in part.lines:
        if match := _XID.search(line):
            found.append(Xid(match[1], int(match[2]), match[3].strip()))
    return found


def _maybe(cell: str) -> int | None:
    return None if cell in _NOT_SAID else _int("nvidia-smi", cell)


def _int(what: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UnexpectedAnswer(what, text, "a number") from None
