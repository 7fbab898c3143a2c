"""Programs that a node needs: found, installed from the server's own repositories, or left to the operator with the commands."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Literal

import pytest

from pocqueue.deploy import words
from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.facts.packages import DOCKER_KEY, NVIDIA_KEY
from pocqueue.deploy.steps.packages import Packages
from tests.deploy.fake_programs import FOLDER
from tests.deploy.server import Fault
from tests.deploy.steps.on_disk import OnDisk, kinds, on_disk
from tests.support.waiting import until

STEP = Packages(wait_s=1)


@contextmanager
def with_apt_of(folder: Path) -> Iterator[Path]:
    """Have the scripts look at files of the test within the block, not at those of this machine.

    Args:
        folder: for them; made if it is not there.

    Returns:
        Apt's lock.
    """
    lock, docker, lists = folder / "apt-lock", folder / "etc-docker", folder / "lists"
    for each in (docker, lists):
        each.mkdir(parents=True)
    lock.touch()
    # As on a server that has asked for them before.
    (lists / "archive.ubuntu.com_jammy_Packages").touch()
    (docker / "daemon.json").write_text("{}")
    real = words.script

    def script(name: str) -> str:
        text = real(name).replace("/var/lib/dpkg/lock-frontend", str(lock))
        text = text.replace("/var/lib/apt/lists/lock", str(lock))
        text = text.replace("/var/lib/apt/lists", str(lists))
        return text.replace("/etc/docker", str(docker))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "script", script)
        patch.setattr("pocqueue.deploy.remote_job.script", script)
        yield lock


@pytest.fixture(autouse=True)
def lock(tmp_path: Path) -> Iterator[Path]:
    """Have apt's files be the test's."""
    with with_apt_of(tmp_path) as lock:
        yield lock


@asynccontextmanager
async def lacking(folder: Path, *programs: str, **changes: str | None) -> AsyncIterator[OnDisk]:
    """Be connected with a server that has all programs but some."""
    bin_dir = folder / "bin"
    bin_dir.mkdir()
    for place in (FOLDER, Path("/usr/bin"), Path("/bin"), Path("/usr/sbin"), Path("/sbin")):
        for program in place.iterdir():
            link = bin_dir / program.name
            if program.name not in programs and not link.is_symlink():
                link.symlink_to(program)
    async with on_disk(folder, **{"INSTALL": "yes"} | changes) as here:
        here.server.env["PATH"] = str(bin_dir)
        here.fakes.set("bin", str(bin_dir))
        if "nvidia-ctk" in programs:
            here.fakes.set("no-nvidia")
        yield here


async def test_what_is_there_is_not_installed(tmp_path: Path) -> None:
    """Nothing is asked of apt, nothing is changed."""
    async with on_disk(tmp_path) as here:
        lines = await here.run(STEP)
        assert kinds(lines) == {"[INFO]", "[CHECK]", "[SKIP]"}
        assert lines[-1] == (
            "[SKIP] packages: docker 27.3.1, compose 2.29.7, NVIDIA's runtime, git, curl, python3 with venv"
        )
        assert not here.fakes.calls("apt-get")
        assert not here.fakes.calls("apt-cache")


async def test_what_is_missing_is_installed_from_the_servers_repositories(tmp_path: Path) -> None:
    """By a job, after a look at what that would do; docker is told of the runtime without a restart."""
    async with lacking(tmp_path, "docker", "git", "nvidia-ctk") as here:
        here.fakes.set(
            "policy",
            "docker.io 24.0.7\ndocker-compose-v2 2.24.6\nnvidia-container-toolkit 1.17.4\ngit 1:2.34",
        )
        plan = await here.plan(STEP)
        assert "docker.io, docker-compose-v2, nvidia-container-toolkit, git" in plan.what
        lines = await here.run(STEP)
        assert lines[-1].startswith("[OK] packages: docker 27.3.1")
        assert here.fakes.state("packages").split() == [
            *(
                "docker.io",
                "docker-compose-v2",
                "nvidia-container-toolkit",
                "git",
                "ca-certificates",
            )
        ]
        assert [str(call) for call in here.fakes.calls("systemctl")] == ["systemctl reload docker"]
        assert len(list((tmp_path / "etc-docker").glob("daemon.json.pocqueue-*"))) == 1
        verbs = [call.words for call in here.fakes.calls("apt-get")]
        assert ["-s" in words for words in verbs] == [False, True, False]
        lines = await here.later().run(STEP)
        assert kinds(lines) == {"[INFO]", "[CHECK]", "[SKIP]"}


@pytest.mark.parametrize("install", ["no", "yes"])
async def test_repositories_of_strangers_are_the_operators(install: str, tmp_path: Path) -> None:
    """With the fingerprints of their keys, in commands that remove another key; nothing is done, with INSTALL=yes neither."""
    async with lacking(tmp_path, "docker", "nvidia-ctk", INSTALL=install) as here:
        here.fakes.set("policy", "docker.io 20.10.24\ndocker-compose 1.29.2-3")
        with pytest.raises(StepFailed) as failed:
            await here.plan(STEP)
        said = str(failed.value)
        assert f"fpr:.*:{DOCKER_KEY}:' || rm" in said
        assert f"fpr:.*:{NVIDIA_KEY}:' || rm" in said
        assert (
            "apt-get install --no-install-recommends docker.io docker-compose-plugin nvidia-container-toolkit"
            in said
        )
        assert not here.fakes.calls("apt-get")


async def test_without_install_the_commands_are_shown(tmp_path: Path) -> None:
    """And nothing is done."""
    async with lacking(tmp_path, "git", INSTALL=None) as here:
        with pytest.raises(
            StepFailed,
            match=r"(?s)INSTALL=yes.*apt-get install --no-install-recommends git ca-cert",
        ):
            await here.plan(STEP)
        assert not here.fakes.calls("apt-get")


async def test_a_docker_that_does_not_answer_is_not_started(tmp_path: Path) -> None:
    """Containers may start with it: that is a person's to decide."""
    async with on_disk(tmp_path, INSTALL="yes") as here:
        here.fakes.set("engine", "stopped")
        with pytest.raises(StepFailed, match=r"(?s)does not answer.*systemctl enable --now docker"):
            await here.plan(STEP)


async def test_apt_that_is_held_is_waited_for(tmp_path: Path, lock: Path) -> None:
    """By name and number of who holds it; then the run stops, and a later one goes on."""
    async with lacking(tmp_path, "git") as here:
        with lock.open("w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            plan = await here.plan(STEP)
            assert f"apt is held by process {os.getpid()} now" in plan.what
            with pytest.raises(StepFailed, match="75"):
                await here.run(STEP)
        text = here.console.getvalue()
        assert f"apt is held by process {os.getpid()} (" in text
        assert "waiting, up to 1 s" in text
        assert "for 1 s: let it end (ps -fp" in text
        assert not here.fakes.state("packages")
        lines = await here.later().run(STEP)
        assert lines[-1].startswith("[OK] packages")


async def test_a_broken_dpkg_is_left_to_the_operator(tmp_path: Path) -> None:
    """With the command, before anything is asked for and in the job itself."""
    async with lacking(tmp_path, "git") as here:
        plan = await here.plan(STEP)
        here.fakes.set("apt", "broken")
        with pytest.raises(StepFailed, match="dpkg --configure -a"):
            await here.plan(STEP)
        [job] = plan.actions
        said = await here.host.connection.run(job.command)  # type: ignore[union-attr]
        assert (said.exit_code, "dpkg --configure -a" in said.stdout) == (76, True)
        assert not here.fakes.state("packages")


@pytest.mark.parametrize(
    ("would", "runs", "name"),
    [
        ("Remv nginx [1.18]", False, "nginx"),
        ("Inst containerd [1.6] (1.7 Fake:1 [amd64])", True, "containerd"),
    ],
)
async def test_nothing_is_exchanged_under_a_node(
    would: str, runs: bool, name: str, tmp_path: Path
) -> None:
    """What apt would remove, or what containers run on, stops it before anything is done."""
    async with lacking(tmp_path, "git") as here:
        here.fakes.set("would", would)
        if runs:
            (here.fakes.folder / "state" / "docker").mkdir(parents=True)
            (here.fakes.folder / "state" / "docker" / "node").write_text("running 0\n")
        with pytest.raises(StepFailed, match="77"):
            await here.run(STEP)
        assert f"apt would remove or exchange {name}" in here.console.getvalue()
        assert not here.fakes.state("packages")


@pytest.mark.parametrize("drop", ["before", "after"])
async def test_a_connection_that_breaks_installs_nothing_twice(
    drop: Literal["before", "after"], tmp_path: Path
) -> None:
    """When the job is started, and when it is looked at."""
    async with lacking(tmp_path, "git") as here:
        faults = [
            here.server.fault(Fault(rf"{script} .*1-packages", drop=drop))
            for script in ("job_start", "job_look")
        ]
        lines = await here.run(STEP)
        assert [fault.times for fault in faults] == [0, 0]
        assert lines[-1].startswith("[OK] packages")
        assert here.fakes.state("packages").split() == ["git", "ca-certificates"]


async def test_an_installation_of_an_earlier_run_is_waited_for(tmp_path: Path) -> None:
    """Docker is on the disk before it answers: that is no docker that a person has to start."""
    async with lacking(tmp_path, "docker") as here:
        here.fakes.set("engine", "stopped")
        (tmp_path / "bin" / "docker").symlink_to(FOLDER / "docker")
        job = here.server.root / "state" / "jobs" / "1-packages"
        job.mkdir(parents=True)
        with (job / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            run = asyncio.create_task(here.run(STEP))
            await until(lambda: "An earlier run installs packages" in here.console.getvalue())
            here.fakes.unset("engine")
        lines = await run
        assert lines[-1].startswith("[SKIP] packages: docker 27")
