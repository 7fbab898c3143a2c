"""What tests on a clone of this machine share: one clone for all of them, clean for each, a disk, and whole runs on it."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocqueue.deploy.facts.format_rule import FormatRule
from pocqueue.deploy.steps import volume
from tests.deploy import loop_devices
from tests.deploy.clone.machine import Clone, Sshd, cloned, missing
from tests.deploy.clone.runs import Runs
from tests.deploy.confs import PASSWORD
from tests.deploy.fake_programs import Fakes
from tests.deploy.loop_devices import LoopDevice, gpt, loop_device
from tests.deploy.steps_of_tests import with_scripts


@pytest.fixture(scope="session")
def only_clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone for the whole run: skipped where there can be none, but in CI."""
    if reason := missing():
        if os.environ.get("CI"):
            pytest.fail(f"CI runs these tests, but {reason}")
        pytest.skip(reason)
    with cloned(tmp_path_factory.mktemp("clone")) as clone:
        yield clone


@pytest.fixture
def clone(only_clone: Clone) -> Iterator[Clone]:
    """It, as it was at first."""
    try:
        yield only_clone
    finally:
        only_clone.clean()


@pytest.fixture
def sshd(clone: Clone) -> Sshd:
    """A real sshd in it."""
    server = clone.sshd()
    server.start()
    return server


@pytest.fixture
def fakes(clone: Clone) -> Iterator[Fakes]:
    """Programs of a server with one GPU that reaches the network; they fail if they see the password."""
    fakes = Fakes(clone.fakes)
    for url in ("http://node2.gonka.ai:8000", "https://huggingface.co", "https://ghcr.io"):
        fakes.answer(url, "")
    fakes.secret(PASSWORD)
    yield fakes
    assert not fakes.leaks()


@pytest.fixture
def disk(clone: Clone, tmp_path: Path) -> Iterator[LoopDevice]:
    """An empty disk, /dev/vdc of the clone."""
    with loop_device(tmp_path, mib=32) as disk:
        clone.add_disk(disk.path, "vdc")
        try:
            yield disk
        finally:
            # What is mounted there would keep it.
            clone.clean()


@pytest.fixture
def part(clone: Clone, disk: LoopDevice) -> LoopDevice:
    """An empty partition of it, /dev/vdc1: what the command itself takes, as no setting lets it take a loop device."""
    for at, data in gpt(mib=32).items():
        disk.write(data, at)
    loop_devices.attempt("partx", "--add", disk.path)
    part = LoopDevice(f"{disk.path}p1", disk.file)
    if not Path(part.path).is_block_device():
        pytest.skip("the kernel makes no partitions of loop devices here")
    clone.add_disk(part.path, "vdc1")
    return part


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have scripts for tests beside ours."""
    waits = 'echo "$1" >> /run/begun; echo begins; until [ -e /run/go ]; do sleep 0.02; done; echo ends; exit 3\n'
    with_scripts(monkeypatch, {"echoes": 'echo "says $1"\n', "waits": waits})


@pytest.fixture(autouse=True)
def loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have loop devices pass for disks."""
    monkeypatch.setattr(volume, "FormatRule", functools.partial(FormatRule, kinds=("loop", "part")))


@pytest.fixture
def runs(sshd: Sshd, fakes: Fakes, disk: LoopDevice, tmp_path: Path) -> Runs:
    """Runs on that server."""
    return Runs(sshd, tmp_path / "nodes")
