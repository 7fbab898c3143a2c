"""The units of pocqueue: those that the documents show, and that systemd understands."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from pocqueue.deploy.stack.steps import Places
from pocqueue.deploy.stack.units import TARGET, unit_files, unit_text, units_of
from tests.deploy.confs import conf

ROOT = Path(__file__).parents[3]
FILES = sorted(p.name for p in resources.files("pocqueue.deploy").joinpath("units").iterdir())
ROLES = "redis,scheduler,worker,io,delegation,hosts,agent"


def test_every_role_has_its_unit(tmp_path: Path) -> None:
    """Workers one a GPU, and last; no file is without a role."""
    units = units_of(conf(tmp_path, POCQUEUE_ROLE=ROLES, POCQUEUE_GPUS="0,3"))
    assert sorted(unit_files(units)) == FILES
    assert [unit.queue for unit in units[-2:]] == ["quick-newton.gpu0", "quick-newton.gpu3"]
    assert units[-1].name == "pocqueue-worker@gpu3.service"
    assert not any(unit.queue for unit in units[:-2])


def test_the_documents_show_the_units_that_are_deployed() -> None:
    """Word for word."""
    text = (ROOT / "docs" / "operating.md").read_text()
    shown = dict(re.findall(r"```\n(# /etc/systemd/system/(\S+)\n.*?)```", text, re.DOTALL))
    assert shown
    for block, name in shown.items():
        assert block == unit_text(name)


@pytest.mark.parametrize("name", FILES)
def test_units_are_hardened(name: str) -> None:
    """All run as the user, write to their own folder alone, and end when they are told that they cannot run."""
    text, places = unit_text(name), Places()
    assert text.startswith(f"# {places.systemd}/{name}\n")
    if name == TARGET:
        return
    lines = set(text.splitlines())
    assert {
        "User=pocqueue",
        f"EnvironmentFile={places.etc}/pocqueue.env",
        f"StateDirectory={places.state.removeprefix('/var/lib/')}",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "PrivateTmp=yes",
        "RestartPreventExitStatus=2",
        "PartOf=pocqueue.target",
    } <= lines
    [start] = [line for line in lines if line.startswith("ExecStart=")]
    assert start.startswith(f"ExecStart={places.opt}/current/bin/")
    assert set(re.findall(r"%.", text)) <= {"%i"}


def test_a_worker_finds_the_files_of_its_gpu() -> None:
    """Root makes them before, which needs `m`; without them the worker starts all the same, and says so."""
    lines = unit_text("pocqueue-worker@.service").splitlines()
    [start] = [n for n, line in enumerate(lines) if line.startswith("ExecStart=")]
    assert lines[start - 2 : start] == [
        "ExecStartPre=-+/usr/bin/nvidia-modprobe -c 0 -u",
        "ExecStartPre=-+/usr/bin/nvidia-smi -L",
    ]
    assert "DeviceAllow=char-nvidia* rwm" in lines


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    """Every line of every file, with a program in the place of ours."""
    for name in FILES:
        text = re.sub(r"/opt/pocqueue/current/bin/\w+", "/bin/true", unit_text(name))
        (tmp_path / name).write_text(text)
    (tmp_path / "pocqueue-worker@gpu0.service").symlink_to("pocqueue-worker@.service")
    names = [name for name in FILES if "@" not in name] + ["pocqueue-worker@gpu0.service"]
    done = subprocess.run(
        [
            str(shutil.which("systemd-analyze")),
            "verify",
            "--man=no",
            *(str(tmp_path / name) for name in names),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "pocqueue" in line]
    assert not ours
