"""Loop devices of tests: those of processes that were killed do not stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy import loop_devices

pytestmark = pytest.mark.skipif(bool(reason := loop_devices.missing()), reason=reason or "none")

KILLED = """\
import os, signal, sys
from pathlib import Path
from tests.deploy.loop_devices import loop_device
with loop_device(Path(sys.argv[1]), mib=16) as disk:
    print(disk.path, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def files() -> dict[str, str]:
    """Return the file of each loop device of this machine."""
    said = loop_devices.run("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE")
    return {line.split(maxsplit=1)[0]: line for line in said.splitlines()}


def test_the_device_of_a_killed_process_is_released(tmp_path: Path) -> None:
    """By the next process that makes one; those of a process that lives stay."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    path = done.stdout.strip()
    assert str(tmp_path) in files()[path]
    with loop_devices.loop_device(tmp_path / "b") as ours:
        loop_devices.release_leftovers.cache_clear()
        loop_devices.release_leftovers()
        assert str(tmp_path / "a") not in files().get(path, "")
        assert f"disk-{os.getpid()}-" in files()[ours.path]
