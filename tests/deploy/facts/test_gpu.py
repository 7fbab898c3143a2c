"""GPUs and their driver in `nvidia-smi`'s words: none, a mismatch, one, eight, lost, and errors that the kernel logged."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pocqueue.deploy.facts.gpu import DriverState, gpu_facts, read_gpus
from pocqueue.deploy.facts.parts import UnexpectedAnswer
from tests.deploy.facts.answers import answer

H100 = "{n}, GPU-{n}, NVIDIA H100 80GB HBM3, 81559, 81079, 550.54.15, 9.0, 0, Enabled, 16, 16, Disabled"
MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12"


def gpus(**parts: str | tuple[str, int]) -> str:
    """Return the answer of a server with one H100."""
    usual: dict[str, str | tuple[str, int]] = {
        "gpus": H100.format(n=0),
        "rows": "GPU-0, 0, 0",
        "apps": "",
        "module": MODULE,
        "packages": "install nvidia-driver-550-server 550.54.15-0ubuntu1",
        "xid": "",
        "switches": "0",
        "fabric": "",
        "secure_boot": "SecureBoot disabled",
        "upgrades": "",
    }
    return answer(**usual | parts)


def test_one_gpu() -> None:
    """All that it says."""
    facts = read_gpus(gpus())
    [gpu] = facts.gpus
    assert facts.state is DriverState.READY
    assert (gpu.name, gpu.memory_mib, gpu.free_mib) == ("NVIDIA H100 80GB HBM3", 81559, 81079)
    assert (gpu.compute_capability, gpu.uncorrected_ecc, gpu.is_persistent, gpu.is_mig) == (
        "9.0",
        0,
        True,
        False,
    )
    assert (facts.driver, facts.module, facts.is_secure_boot) == ("550.54.15", "550.54.15", False)


def test_eight_gpus_with_switches() -> None:
    """And what one of them has: rows that wait, a process, an error."""
    facts = read_gpus(
        gpus(
            gpus="\n".join(H100.format(n=n) for n in range(8)),
            rows="\n".join(f"GPU-{n}, {'Yes' if n == 3 else 'No'}, No" for n in range(8)),
            apps="GPU-2, 4242, 70000, /usr/bin/python3, -m x",
            xid="[  12.3] NVRM: Xid (PCI:0000:1b:00): 79, pid='<unknown>', GPU has fallen off the bus.\nnoise",
            switches="4",
            fabric="Fabric Manager version is : 550.54.15\nactive",
        )
    )
    assert len(facts.gpus) == 8
    assert [gpu.index for gpu in facts.gpus if gpu.rows_pending] == [3]
    [process] = facts.processes
    assert (process.uuid, process.pid, process.used_mib, process.name) == (
        "GPU-2",
        4242,
        70000,
        "/usr/bin/python3, -m x",
    )
    [xid] = facts.xids
    assert (xid.address, xid.code) == ("0000:1b:00", 79)
    assert (facts.switches, facts.fabric_manager, facts.is_fabric_active) == (4, "550.54.15", True)


def test_a_gpu_that_does_not_say_all() -> None:
    """A small one has no ECC and no rows to replace."""
    line = (
        "0, GPU-a, NVIDIA GeForce RTX 4090, 24564, 24000, 575.1, 8.9, [N/A], Disabled, 8, 16, [N/A]"
    )
    facts = read_gpus(gpus(gpus=line, rows=("[N/A]", 3)))
    assert (facts.gpus[0].uncorrected_ecc, facts.gpus[0].pcie_width, facts.gpus[0].is_mig) == (
        None,
        8,
        False,
    )


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (
            ("timeout: failed to run command 'nvidia-smi': No such file or directory", 127),
            DriverState.MISSING,
        ),
        (
            (
                "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.54",
                18,
            ),
            DriverState.MISMATCH,
        ),
        (
            (
                "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure",
                9,
            ),
            DriverState.NOT_LOADED,
        ),
        (("No devices were found", 6), DriverState.NO_GPU),
        (("No devices were found", 0), DriverState.NO_GPU),
        (
            ("Unable to determine the device handle for GPU 0000:1B:00.0: GPU is lost.", 15),
            DriverState.LOST,
        ),
        (("", 124), DriverState.STUCK),
    ],
)
def test_drivers_that_do_not_answer(said: tuple[str, int], state: DriverState) -> None:
    """Each with what it said, and no GPU."""
    facts = read_gpus(gpus(gpus=said, module=""))
    assert facts.state is state
    assert facts.gpus == ()
    assert facts.said == said[0]


@pytest.mark.parametrize(
    "parts",
    [
        {"gpus": ("Segmentation fault", 139)},
        {"gpus": "0, GPU-a, NVIDIA"},
        {"gpus": H100.format(n=0).replace("81559", "many")},
        {"gpus": ""},
        {"module": "something else"},
        {"switches": "?"},
    ],
)
def test_what_is_not_understood_is_an_error(parts: dict[str, str | tuple[str, int]]) -> None:
    """No GPU is made up."""
    with pytest.raises(UnexpectedAnswer):
        read_gpus(gpus(**parts))


def test_an_open_module_and_upgrades_by_themselves() -> None:
    """Packages that are held stay."""
    module = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build"
    on = 'APT::Periodic::Unattended-Upgrade "1";'
    facts = read_gpus(gpus(module=module, upgrades=on))
    assert facts.module == "580.65.06"
    assert facts.is_upgraded_alone
    assert not read_gpus(
        gpus(upgrades=on, packages="hold nvidia-driver-550-server 550.54.15-0ubuntu1")
    ).is_upgraded_alone
    assert not read_gpus(gpus(upgrades=f"// {on}")).is_upgraded_alone


def test_the_script_on_a_machine_without_gpus(tmp_path: Path) -> None:
    """Its answer is understood wherever it runs."""
    argv = gpu_facts().argv()
    done = subprocess.run(
        argv, check=True, capture_output=True, text=True, timeout=120, env={"PATH": "/usr/bin:/bin"}
    )
    assert isinstance(read_gpus(done.stdout).state, DriverState)
