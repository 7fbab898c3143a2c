"""What a job in a container can see, reach and use; each test runs a real one, by podman and by Docker."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import subprocess
import tarfile
import uuid
from asyncio.subprocess import Process
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from typing_extensions import override

from pocqueue.hosts.agent.errors import SandboxUnavailable
from pocqueue.hosts.agent.sandbox.base import Command, Limits
from pocqueue.hosts.agent.sandbox.container import LABEL, Containers, arguments
from tests.support.processes import open_transports
from tests.support.sandbox_process import SECRET, SandboxProcess, need, sandbox_process
from tests.support.waiting import until, wait_until


@pytest.fixture(scope="module", params=["podman", "docker"])
def jobs(request: pytest.FixtureRequest) -> Iterator[SandboxProcess]:
    """An agent that runs jobs by one of the engines."""
    if request.param == "podman" and os.getuid() == 0:
        need("podman", "podman runc")
    try:
        Containers(request.param, "tests")
    except SandboxUnavailable as exc:
        pytest.skip(str(exc))
    with sandbox_process(request.param) as process:
        yield process


@pytest.mark.parametrize("engine", ["docker", "podman"])
async def test_what_is_removed_goes_with_its_volumes(
    engine: Literal["docker", "podman"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a job, one that was stopped, and a killed agent; by an engine that writes down what it is asked."""
    said = tmp_path / "said"
    program = tmp_path / engine
    program.write_text(
        f"""#!/bin/sh
echo "$*" >> {said}
case $1 in
ps) echo left ;;
inspect) echo false 0 ;;
rm) echo removed ;;
run) case "$*" in *"sleep 500") exec sleep 500 ;; esac ;;
esac
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    containers = Containers(engine, "tests")
    stop = asyncio.Event()
    image = "example.com/image@sha256:" + 64 * "0"
    done = await containers.run(Command(("true",), Limits(), image=image), stop)
    assert done.is_good
    stop.set()
    stopped = await containers.run(Command(("sleep", "500"), Limits(), image=image), stop)
    assert not stopped.is_good
    await asyncio.to_thread(containers.clean)

    def removed() -> list[str]:
        return [line for line in said.read_text().splitlines() if line.startswith("rm ")]

    assert len(removed()) == 4
    assert all("--volumes" in line.split() for line in removed())


@pytest.mark.parametrize("is_cut_off", [False, True])
async def test_a_container_that_is_made_late_is_removed(
    is_cut_off: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is at its end while the engine's server still makes its container, whatever becomes of the command line."""
    asked, made, served = (tmp_path / name for name in ("asked", "made", "served"))
    program = tmp_path / "docker"
    program.write_text(
        f"""#!/bin/sh
case $1 in
rm) if [ -e {made} ]; then rm {made}; echo removed; fi; echo >> {asked} ;;
run) (until [ "$(wc -l < {asked})" -ge 2 ]; do sleep 0.02; done; touch {made} {served}) > /dev/null 2>&1 &
    touch {asked}.begun
    exec sleep 500 ;;
esac
"""
    )
    asked.touch()
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    run = asyncio.create_task(
        Containers("docker", "tests").run(
            Command(("true",), Limits(wall_s=3600.0 if is_cut_off else 0.01)), asyncio.Event()
        )
    )
    if is_cut_off:
        await until((tmp_path / "asked.begun").exists)
        run.cancel()
    await asyncio.wait([run])
    assert run.cancelled() if is_cut_off else run.result().ended_by == "wall time"
    assert open_transports() == []
    await until(served.exists)
    assert not made.exists()


async def test_a_job_that_is_cut_off_as_it_starts_leaves_no_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine may have been told already: what has the job's name is removed."""
    said, program = tmp_path / "said", tmp_path / "docker"
    program.write_text(f'#!/bin/sh\necho "$*" >> {said}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    class Cut(Containers):
        @override
        async def _start(self, *argv: str) -> Process:
            await (await super()._start(*argv)).wait()
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await Cut("docker", "tests").run(Command(("true",), Limits()), asyncio.Event())
    assert open_transports() == []
    asked = said.read_text().splitlines()
    [started] = [line.split() for line in asked if line.startswith("run ")]
    assert asked[-1] == f"rm --force --volumes {started[started.index('--name') + 1]}"


def test_a_command_runs(jobs: SandboxProcess) -> None:
    """With this machine's programs; its output, its exit code; one that is not there is a failed job."""
    done = jobs.run("sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.exit_code, done.ended_by) == (3, "itself")
    assert sorted(done.output.split()) == ["err", "out"]
    assert jobs.run("no-such-program").exit_code == 127


def test_what_it_sees_is_its_own(jobs: SandboxProcess) -> None:
    """No environment, no files, no network, no rights of the agent's."""
    code = """
import os, socket
for path in ["/root/.bashrc", "/home", "/etc/shadow", "/var/lib"]:
    assert not os.path.exists(path), path
for folder in ["/", "/usr", "/etc"]:
    try:
        open(folder + "/mine", "w")
    except OSError:
        continue
    raise SystemExit("can write to " + folder)
for address in [("127.0.0.1", 22), ("169.254.169.254", 80)]:
    try:
        socket.create_connection(address, 20)
    except OSError as exc:
        assert not isinstance(exc, TimeoutError), address
print(open("/proc/1/environ").read())
print(os.getuid(), open("/proc/self/status").read())
"""
    done = jobs.script(code)
    assert done.is_good, done.output
    assert SECRET not in done.output
    assert "64001 Name:" in done.output
    assert "CapEff:\t0000000000000000" in done.output
    assert "NoNewPrivs:\t1" in done.output
    assert "Seccomp:\t2" in done.output


def test_what_it_uses_is_bounded(jobs: SandboxProcess) -> None:
    """Memory, files, processes, output, time."""
    assert jobs.script("b = bytearray(400 << 20)", memory_mib=100).exit_code == 137
    done = jobs.script("open('/tmp/x', 'wb').write(bytes(64 << 20))", disk_mib=8)
    assert "No space left on device" in done.output
    code = """
import os, signal
try:
    for number in range(200):
        if os.fork() == 0:
            signal.pause()
except BlockingIOError:
    print("refused", number)
"""
    assert re.search(r"refused \d+", jobs.script(code, processes=30).output)
    assert jobs.run("yes", output_mib=2).ended_by == "output"
    assert jobs.run("sh", "-c", "setsid sleep 500 & sleep 500", wall_s=1).ended_by == "wall time"
    assert _containers(jobs) == []


def test_what_a_killed_agent_has_left_is_removed(jobs: SandboxProcess) -> None:
    """The engine does not notice its end; the next agent does, and leaves those of others alone."""
    engine = _engine(jobs)
    mark = f"3{uuid.uuid4().int % 10**12}"
    with sandbox_process(engine) as agent:
        agent.start("sleep", mark)
        wait_until(lambda: _containers(agent), message="the container")
        agent.process.kill()
    Containers(engine, "another").clean()
    assert len(_containers(agent)) == 1
    Containers(engine, agent.owner).clean()
    assert _containers(agent) == []


def test_an_image_is_taken_by_its_digest(jobs: SandboxProcess) -> None:
    """And has nothing of this machine; one that is not to be had is refused."""
    with _own_image(jobs) as image:
        outcome = jobs.run("/bin/echo", "hello", image=image)
        assert (outcome.output, outcome.exit_code) == ("hello\n", 0)
        assert jobs.run("/bin/cat", "/usr/bin/env", image=image).exit_code != 0
    with pytest.raises(SandboxUnavailable, match="podman cannot fetch the image localhost:1/x@"):
        jobs.run("/bin/echo", image="localhost:1/x@sha256:" + 64 * "0")


def test_an_images_volumes_are_bounded_and_end_with_the_job(jobs: SandboxProcess) -> None:
    """They would be on this machine's disk, without a limit: now they are as the folder for temporary files is."""
    volumes = [_engine(jobs), "volume", "ls", "--quiet"]
    before = subprocess.run(volumes, capture_output=True, text=True, check=True).stdout
    with _own_image(jobs, "/data", "/tmp") as image:  # noqa: S108 - the job's own
        script = "echo kept > /data/x; cat /data/x; cat /dev/zero > /data/y; cat /dev/zero > /tmp/y; echo end"
        done = jobs.run("/bin/sh", "-c", script, image=image, disk_mib=8, wall_s=120)
        assert (done.exit_code, done.ended_by) == (0, "itself")
        assert done.output.startswith("kept\n")
        assert done.output.count("No space left on device") == 2
        assert "end\n" in done.output
        done = jobs.run("/bin/sh", "-c", "cat /data/x", image=image)
        assert "No such file" in done.output
    with (
        _own_image(jobs, "/data,readonly=false") as image,
        pytest.raises(SandboxUnavailable, match="has a volume at '/data,readonly=false'"),
    ):
        jobs.run("/bin/echo", image=image)
    assert subprocess.run(volumes, capture_output=True, text=True, check=True).stdout == before


def test_an_engine_that_does_not_answer_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that is not there, and one whose server is away."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="docker is not installed"):
        Containers("docker", "tests")
    fake = tmp_path / "docker"
    fake.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(SandboxUnavailable, match="Cannot connect to the Docker daemon"):
        Containers("docker", "tests")


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("docker", ["--gpus", "device=GPU-abc"]),
        ("podman", ["--device", "nvidia.com/gpu=GPU-abc"]),
    ],
)
def test_a_gpu_job_gets_its_gpus_by_uuid(engine: str, words: list[str]) -> None:
    """And no other; without one there is no such option."""
    command = Command(("x",), gpus=((2, "GPU-abc"),))
    argv = arguments(command, name="n", engine=engine, owner="o")
    assert argv[argv.index(words[0]) :][:2] == words
    assert words[0] not in arguments(Command(("x",)), name="n", engine=engine, owner="o")
    assert not {"--privileged", "--pid", "--ipc"} & set(argv)


def _engine(jobs: SandboxProcess) -> Literal["docker", "podman"]:
    return "docker" if jobs.name == "docker" else "podman"


def _containers(jobs: SandboxProcess) -> list[str]:
    """Return an agent's containers."""
    command = [_engine(jobs), "ps", "--all", "--quiet", "--filter", f"label={LABEL}={jobs.owner}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()


@contextlib.contextmanager
def _own_image(jobs: SandboxProcess, *volumes: str) -> Iterator[str]:
    """Yield an image by its digest, with volumes of its own."""
    engine = _engine(jobs)
    if engine != "podman":
        pytest.skip(
            "Docker knows a digest of what a registry has given it alone, and there is none here"
        )
    name = f"localhost/pocqueue-test-{uuid.uuid4().hex[:8]}"
    changes = [f"--change=VOLUME {path}" for path in volumes]
    make = [engine, "import", *changes, "-", name]
    subprocess.run(make, input=_image(), capture_output=True, check=True)
    try:
        shown = [engine, "image", "inspect", "--format", "{{.Digest}}", name]
        done = subprocess.run(shown, capture_output=True, text=True, check=True)
        yield f"{name}@{done.stdout.strip()}"
    finally:
        subprocess.run([engine, "rmi", "--force", name], capture_output=True, check=True)


def _image() -> bytes:
    """Make an image with a shell, `echo` and `cat`, and what they take."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", dereference=True) as tar:
        done = subprocess.run(
            ["/usr/bin/ldd", "/bin/echo"], capture_output=True, text=True, check=True
        )
        for path in ["/bin/sh", "/bin/echo", "/bin/cat", *re.findall(r"(/\S+)", done.stdout)]:
            tar.add(path, path.lstrip("/"))
    return data.getvalue()
