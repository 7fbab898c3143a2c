"""Checks of the driver and the GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from pocqueue.deploy.facts.docker import numbers
from pocqueue.deploy.facts.gpu import DriverState
from pocqueue.deploy.facts.image import CAPABILITY, UNFIT, built_for
from pocqueue.deploy.preflight.checks import Check, Seen, Wanted, check

#: The first driver of each CUDA that images are built with (NVIDIA's table of minor version compatibility).
_CUDA_DRIVERS = {12: (525, 60, 13), 13: (580, 65, 6)}
#: Errors after which a GPU is to be looked at, not only a program on it (NVIDIA's list of Xid errors).
_HARDWARE_XIDS = frozenset({48, 62, 63, 64, 74, 79, 92, 94, 95, 119, 120, 140})


def driver_checks(seen: Seen, wanted: Wanted) -> Iterator[Check]:
    gpus = seen.gpus
    if wanted.num_gpus == 0:
        return
    is_ready = gpus.state is DriverState.READY
    said = gpus.said or gpus.state.value
    yield check(
        "driver",
        "driver",
        is_ready,
        "answers" if is_ready else said,
        "nvidia-smi answers",
        gpus.state.value,
    )
    if gpus.driver and gpus.module:
        needs = "Start the server anew: another version is loaded than is installed."
        yield check(
            "driver",
            "driver-version",
            gpus.driver == gpus.module,
            f"{gpus.driver}, module {gpus.module}",
            "one version",
            needs,
        )
    installed = {
        version.split(":")[-1].split("-")[0]
        for name, version in gpus.packages
        if "fabric" not in name
    }
    if gpus.module and installed:
        shown = ", ".join(sorted(installed))
        yield check(
            "driver",
            "driver-package",
            installed == {gpus.module},
            f"package {shown}, module {gpus.module}",
            "one version",
            "Start the server anew after an upgrade of the driver.",
            warn=True,
        )
    if gpus.driver:
        least = _CUDA_DRIVERS.get(wanted.cuda)
        is_new = None if least is None else numbers("the driver", gpus.driver) >= least
        shown = ".".join(map(str, least)) if least else "not known"
        yield check(
            "driver",
            "driver-cuda",
            is_new,
            gpus.driver,
            f"{shown} or newer for CUDA {wanted.cuda}",
            "Install a newer driver.",
        )
    if gpus.is_secure_boot and not is_ready:
        yield check(
            "driver",
            "secure-boot",
            False,
            "on",
            "off, or a signed driver",
            "Sign the driver's module (mokutil) or switch Secure Boot off.",
        )
    yield check(
        "driver",
        "driver-upgrades",
        not gpus.is_upgraded_alone,
        "by themselves" if gpus.is_upgraded_alone else "held",
        "no upgrade below a running node",
        "`apt-mark hold` the driver's packages.",
        warn=True,
    )


def gpu_checks(seen: Seen, wanted: Wanted) -> Iterator[Check]:
    gpus = seen.gpus.gpus
    if not gpus or wanted.num_gpus == 0:
        return
    names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
    yield check(
        "GPUs",
        "gpu-count",
        len(gpus) >= wanted.num_gpus,
        f"{len(gpus)} ({names})",
        f"{wanted.num_gpus} of the profile",
        "Set NODE_CONFIG_PROFILE to one for these GPUs.",
    )
    yield check(
        "GPUs",
        "gpu-kinds",
        len({g.name for g in gpus}) == 1,
        names,
        "one kind",
        "Use GPUs of one kind in a node.",
        warn=True,
    )
    found = sorted({gpu.compute_capability for gpu in gpus})
    runs = built_for(wanted.image).runs_on(found)
    shown = ", ".join(found)
    yield check(
        "GPUs",
        CAPABILITY,
        runs,
        f"{shown}, of which is not known whether they are among them" if runs is None else shown,
        f"those that {wanted.image or 'the image, which the repository of phase 2 names,'} is built for",
        "Look for these GPUs among those that upstream names for it; phase 7 tells whether it computes."
        if runs is None
        else UNFIT,
    )
    yield check(
        "GPUs",
        "gpu-mig",
        not any(g.is_mig for g in gpus),
        "split" if any(g.is_mig for g in gpus) else "whole",
        "whole GPUs",
        "`nvidia-smi -mig 0`, then start the server anew.",
    )
    strangers = [p for p in seen.gpus.processes if p.pid not in seen.our_pids]
    shown = ", ".join(f"{p.name.rpartition('/')[2]} ({p.pid})" for p in strangers[:5]) or "none"
    yield check(
        "GPUs",
        "gpu-processes",
        not strangers,
        shown,
        "none of others",
        "They take memory that the model needs: end them, or use other GPUs.",
        warn=True,
    )
    full = [g for g in gpus if g.free_mib < g.memory_mib * 0.9]
    shown = (
        ", ".join(f"GPU {g.index}: {g.free_mib:,} of {g.memory_mib:,} MiB" for g in full) or "free"
    )
    yield check(
        "GPUs",
        "gpu-memory",
        not full,
        shown,
        "90 % free before the node runs",
        "See gpu-processes.",
        warn=True,
    )
    broken = [g for g in gpus if g.uncorrected_ecc or g.rows_failed]
    shown = (
        ", ".join(
            f"GPU {g.index}: {g.uncorrected_ecc or 0} errors{', rows failed' if g.rows_failed else ''}"
            for g in broken
        )
        or "none"
    )
    yield check(
        "GPUs",
        "gpu-ecc",
        not broken,
        shown,
        "no uncorrected errors",
        "Have the provider exchange it.",
    )
    pending = [str(g.index) for g in gpus if g.rows_pending]
    yield check(
        "GPUs",
        "gpu-rows",
        not pending,
        f"GPU {', '.join(pending)}" if pending else "none pending",
        "no rows to be replaced",
        "Start the server anew: rows of the memory are replaced then.",
        warn=True,
    )
    bad = [x for x in seen.gpus.xids if x.code in _HARDWARE_XIDS]
    other = [x for x in seen.gpus.xids if x.code not in _HARDWARE_XIDS]
    shown = ", ".join(f"{x.code} at {x.address}" for x in (bad or other)[-3:]) or "none"
    yield check(
        "GPUs",
        "gpu-xid",
        not (bad or other),
        shown,
        "no Xid in the kernel's log",
        "The GPU or its link is failing: start the server anew, then see the provider."
        if bad
        else "A program of a GPU failed; see `dmesg`.",
        warn=not bad,
    )
    lazy = [str(g.index) for g in gpus if not g.is_persistent]
    yield check(
        "GPUs",
        "gpu-persistence",
        not lazy,
        "on" if not lazy else f"off for GPU {', '.join(lazy)}",
        "on",
        "`nvidia-smi -pm 1`.",
        warn=True,
    )
    narrow = [
        g for g in gpus if g.pcie_width and g.pcie_width_max and g.pcie_width < g.pcie_width_max
    ]
    shown = (
        ", ".join(f"GPU {g.index}: x{g.pcie_width} of x{g.pcie_width_max}" for g in narrow)
        or "full"
    )
    yield check(
        "GPUs",
        "gpu-pcie",
        not narrow,
        shown,
        "the full width",
        "A riser or slot may be bad; a sleeping GPU may be narrow, too.",
        warn=True,
    )
    if seen.gpus.switches:
        is_same = seen.gpus.is_fabric_active and seen.gpus.fabric_manager == seen.gpus.driver
        shown = f"{seen.gpus.fabric_manager or 'none'}, {'active' if seen.gpus.is_fabric_active else 'not active'}"
        yield check(
            "GPUs",
            "fabric-manager",
            is_same,
            shown,
            f"{seen.gpus.driver}, active",
            "Install nvidia-fabricmanager of the driver's version and start it: without it NVSwitch machines compute nothing.",
        )
