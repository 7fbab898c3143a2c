"""Commands in containers of Docker or podman, by their command line.

A command without an image runs in an image of ours, which is empty but for links: /usr is this machine's, read-only, as
in bubblewrap. A command with an image (by digest, so that it is what the server means) gets that one; it is fetched if
it is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import subprocess
import tarfile
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Literal

from typing_extensions import override

from pocqueue.hosts.agent.errors import SandboxUnavailable
from pocqueue.hosts.agent.sandbox.base import Command, Outcome, Sandbox
from pocqueue.hosts.agent.sandbox.bounded import run_bounded
from pocqueue.hosts.agent.sandbox.bubblewrap import FIRST_UID, environment
from pocqueue.hosts.agent.sandbox.leftovers import end_marked
from pocqueue.hosts.agent.sandbox.usage import Usage

#: Image of ours; a new version of what is in it has a new name.
IMAGE = "pocqueue-agent-programs:1"
#: Label of the containers of one state folder.
LABEL = "pocqueue.agent"

_ASK_S = 60
_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# What the two engines' own command lines need of the agent's environment, in which there may be a token.
_VARIABLES = ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONTEXT", "XDG_RUNTIME_DIR", "CONTAINER_HOST")


class Containers(Sandbox):
    """Runs commands in containers.

    Args:
        engine: whose command line is used.
        owner: label of what is started, so that another agent's containers are left alone.

    Raises:
        SandboxUnavailable: it is not installed, or its server does not answer.
    """

    takes_images = True

    def __init__(self, engine: Literal["docker", "podman"], owner: str) -> None:
        self.name: str = engine
        self.bounds = engine
        self._owner = owner
        # podman would ask the container first, for ten seconds.
        forced = ("--force", "--time", "0") if engine == "podman" else ("--force",)
        # With the volumes that an image may ask for, which nobody else would remove.
        self._now = (*forced, "--volumes")
        program = shutil.which(engine)
        if program is None:
            raise SandboxUnavailable(f"{engine} is not installed.")
        self._program = program
        self._ask("version", "--format", "{{.Server.Version}}" if engine == "docker" else "json")

    @override
    async def run(self, command: Command, stop: asyncio.Event) -> Outcome:
        if command.image is None:
            await asyncio.to_thread(self._make_image)
        name = f"pocqueue-{uuid.uuid4().hex}"
        process = await asyncio.create_subprocess_exec(
            self._program,
            *arguments(command, name=name, engine=self.name, owner=self._owner),
            env=_own_environment(),
            cwd="/",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )

        def end() -> None:
            # The command line's own process is not the container: both are to end.
            subprocess.Popen(  # noqa: S603 - a fixed list
                [self._program, "rm", *self._now, name],
                env=_own_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            with contextlib.suppress(ProcessLookupError):
                process.kill()

        try:
            # The engine's server bounds what the container uses.
            outcome = await run_bounded(process, command.limits, stop, look=Usage, end=end)
            if outcome.ended_by == "itself":
                outcome = await asyncio.to_thread(self._judged, name, outcome)
        finally:
            with contextlib.suppress(SandboxUnavailable):
                await asyncio.to_thread(self._ask, "rm", "--force", "--volumes", name)
        return outcome

    @override
    def clean(self) -> None:
        """End and remove the containers that a killed agent has left, and the command lines that were starting some."""
        end_marked(self._program, f"{LABEL}={self._owner}")
        left = self._ask("ps", "--all", "--quiet", "--filter", f"label={LABEL}={self._owner}")
        for container in left.split():
            self._ask("rm", *self._now, container)

    def _judged(self, name: str, outcome: Outcome) -> Outcome:
        """Tell the engine's failures from the command's, and who was killed for want of memory."""
        try:
            said = self._ask(
                "inspect", "--format", "{{.State.OOMKilled}} {{.State.ExitCode}}", name
            )
        except SandboxUnavailable:
            raise SandboxUnavailable(
                f"{self.name} did not start the job: {outcome.output.strip()[-300:]}."
            ) from None
        out_of_memory, code = said.split()
        if outcome.exit_code == 125 and code != "125":
            raise SandboxUnavailable(
                f"{self.name} did not start the job: {outcome.output.strip()[-300:]}."
            )
        return replace(outcome, ended_by="memory") if out_of_memory == "true" else outcome

    def _make_image(self) -> None:
        """Import the image of ours, if it is not there."""
        with contextlib.suppress(SandboxUnavailable):
            self._ask("image", "inspect", "--format", "{{.Id}}", IMAGE)
            return
        self._ask("import", "-", IMAGE, data=_links())

    def _ask(self, *argv: str, data: bytes | None = None) -> str:
        """Run the engine's command line; return what it says.

        Raises:
            SandboxUnavailable: it fails.
        """
        try:
            done = subprocess.run(  # noqa: S603 - a fixed list
                [self._program, *argv],
                env=_own_environment(),
                input=data or b"",
                capture_output=True,
                timeout=_ASK_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SandboxUnavailable(f"{self.name} does not answer within {_ASK_S} s.") from None
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip()[-300:]
            raise SandboxUnavailable(
                f"{self.name} is installed but cannot be used: {said}. Start its server, and let this user use it."
            )
        return done.stdout.decode()


def arguments(command: Command, *, name: str, engine: str, owner: str) -> list[str]:
    """Return the engine's arguments that run a command.

    Args:
        command: what is run.
        name: of the container.
        engine: `docker` or `podman`.
        owner: value of the label.
    """
    limits, user = command.limits, f"{FIRST_UID}:{FIRST_UID}"
    argv = ["run", "--name", name, "--label", f"{LABEL}={owner}", "--network", "none"]
    argv += ["--read-only", "--user", user, "--cap-drop", "ALL", "--hostname", "job"]
    argv += ["--security-opt", "no-new-privileges", "--workdir", "/tmp"]  # noqa: S108 - the job's own
    argv += ["--tmpfs", f"/tmp:rw,exec,mode=1777,size={limits.disk_mib}m"]  # noqa: S108
    argv += ["--memory", f"{limits.memory_mib}m", "--memory-swap", f"{limits.memory_mib}m"]
    argv += ["--pids-limit", str(limits.processes), "--ulimit", "core=0:0"]
    argv += [
        "--ulimit",
        "nofile=1024:1024",
        "--ulimit",
        f"nproc={limits.processes}:{limits.processes}",
    ]
    # So that the time of all its processes together is bounded, as that of the clock is.
    cpus = max(0.01, min(limits.cpu_s / limits.wall_s, os.cpu_count() or 1))
    argv += ["--cpus", f"{cpus:.2f}"]
    # The engine's own log would take the disk.
    argv += ["--log-driver", "none"]
    for variable, value in environment(command).items():
        argv += ["--env", f"{variable}={value}"]
    for _, gpu_uuid in command.gpus:
        argv += (
            ["--gpus", f"device={gpu_uuid}"]
            if engine == "docker"
            else ["--device", f"nvidia.com/gpu={gpu_uuid}"]
        )
    if command.image is not None:
        return [*argv, "--pull", "missing", command.image, *command.argv]
    return [*argv, "--volume", "/usr:/usr:ro", "--pull", "never", IMAGE, *command.argv]


def _links() -> bytes:
    """Make the layer of our image: what this machine's root folder has as links into /usr."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for folder in ("usr", "proc", "dev", "tmp", "etc"):
            entry = tarfile.TarInfo(folder)
            # The engines give what they mount on /tmp the mode that it has here.
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        for name in _LINKS:
            if Path("/", name).is_symlink():
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(Path("/", name))
                tar.addfile(entry)
        for name in ("ld.so.cache",):
            with contextlib.suppress(FileNotFoundError):
                tar.add(Path("/etc", name), f"etc/{name}")
        with contextlib.suppress(FileNotFoundError):
            tar.add("/etc/alternatives", "etc/alternatives")
    return data.getvalue()


def _own_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}
