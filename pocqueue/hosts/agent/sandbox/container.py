"""Commands in containers of Docker or podman, by their command line.

A command without an image runs in an image of ours, which is empty but for links: /usr is this machine's, read-only, as
in bubblewrap. A command with an image (by digest, so that it is what the server means) gets that one; it is fetched if
it is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import time
import uuid
from asyncio.subprocess import Process
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from typing_extensions import override

from pocqueue.hosts.agent.errors import SandboxUnavailable
from pocqueue.hosts.agent.sandbox.base import Command, Limits, Outcome, Sandbox
from pocqueue.hosts.agent.sandbox.bounded import LOOK_S, run_bounded, until_gone
from pocqueue.hosts.agent.sandbox.bubblewrap import FIRST_UID, environment
from pocqueue.hosts.agent.sandbox.leftovers import end_marked, is_any_marked
from pocqueue.hosts.agent.sandbox.usage import Usage

#: Image of ours; a new version of what is in it has a new name.
IMAGE = "pocqueue-agent-programs:1"
#: Label of the containers of one state folder.
LABEL = "pocqueue.agent"

_ASK_S = 60
# A path of a volume that means the same to everybody who splits the option that it is in.
_VOLUME = re.compile(r"/[\w./+@-]*", re.ASCII)
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
        volumes: list[str] = []
        image = command.image
        if image is None:
            await asyncio.to_thread(self._make_image)
        else:
            if not await asyncio.to_thread(self._has, image):
                fetched = await self._fetch(image, command.limits, stop)
                if fetched.ended_by != "itself":
                    return fetched
                left_s = max(1.0, command.limits.wall_s - fetched.seconds)
                command = replace(command, limits=replace(command.limits, wall_s=left_s))
            volumes = await asyncio.to_thread(self._volumes, image)
        name = f"pocqueue-{uuid.uuid4().hex}"
        argv = arguments(command, name=name, engine=self.name, owner=self._owner, volumes=volumes)

        # Also if this is cut off meanwhile: whatever is killed then, the engine may have been told already.
        starting = asyncio.ensure_future(self._start(*argv))
        endings: list[asyncio.Task[None]] = []
        try:
            process = await asyncio.shield(starting)

            def end() -> None:
                endings.append(asyncio.create_task(self._remove(name, process)))

            # The engine's server bounds what the container uses.
            outcome = await run_bounded(
                process, command.limits, stop, look=Usage, end=end, end_s=2 * _ASK_S
            )
            if outcome.ended_by == "itself":
                outcome = await asyncio.to_thread(self._judged, name, outcome)
        finally:
            await asyncio.wait([starting])
            failed = starting.cancelled() or starting.exception() is not None
            started = None if failed else starting.result()
            await self._remove(name, started)
            await asyncio.gather(*endings)
            if started is not None:
                await until_gone(started)
        return outcome

    async def _remove(self, name: str, process: Process | None) -> None:
        """Remove a container, and then end the command line that it is of.

        One that is killed while the engine's server makes the container leaves it to nobody: it is asked to be removed until it
        was there, or until whoever wanted it has given up or does not get it for a minute.
        """
        until_s, removed = time.monotonic() + _ASK_S, ""
        while not removed:
            is_last = (
                process is None or process.returncode is not None or time.monotonic() > until_s
            )
            # The engines name what they have removed, and nothing that was not there.
            with contextlib.suppress(SandboxUnavailable):
                removed = await asyncio.to_thread(self._ask, "rm", *self._now, name)
            if is_last:
                break
            if not removed:
                await asyncio.sleep(LOOK_S)
        if process is not None:
            _kill(process)

    @override
    def clean(self) -> None:
        """Remove the containers that a killed agent has left, also those that its command lines are starting.

        Those end by themselves then, see `_remove`; after a minute they are killed.
        """
        mark, until_s = f"{LABEL}={self._owner}", time.monotonic() + _ASK_S
        is_last = False
        while not is_last:
            is_last = not is_any_marked(self._program, mark) or time.monotonic() > until_s
            for container in self._ask(
                "ps", "--all", "--quiet", "--filter", f"label={mark}"
            ).split():
                self._ask("rm", *self._now, container)
            if not is_last:
                time.sleep(LOOK_S)
        end_marked(self._program, mark)

    async def _start(self, *argv: str) -> Process:
        return await asyncio.create_subprocess_exec(
            self._program,
            *argv,
            env=_own_environment(),
            cwd="/",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )

    def _has(self, image: str) -> bool:
        try:
            self._ask("image", "inspect", "--format", "{{.Id}}", image)
        except SandboxUnavailable:
            return False
        return True

    async def _fetch(self, image: str, limits: Limits, stop: asyncio.Event) -> Outcome:
        """Fetch an image, within the job's time.

        Raises:
            SandboxUnavailable: it is not to be had.
        """
        process = await self._start("pull", "--quiet", image)
        done = await run_bounded(process, limits, stop, look=Usage, end=lambda: _kill(process))
        if done.ended_by == "itself" and done.exit_code:
            said = done.output.strip()[-300:]
            raise SandboxUnavailable(f"{self.name} cannot fetch the image {image}: {said}.")
        return done

    def _volumes(self, image: str) -> list[str]:
        """Return where an image wants volumes, which would be on this machine's disk and without a bound.

        Raises:
            SandboxUnavailable: the image is gone, or a path is none that can be named to the engine.
        """
        said = self._ask("image", "inspect", "--format", "{{json .Config.Volumes}}", image)
        found = sorted(json.loads(said.strip() or "null") or ())
        if bad := [path for path in found if not _VOLUME.fullmatch(path)]:
            raise SandboxUnavailable(f"The image {image} has a volume at {bad[0][:100]!r}.")
        return [path for path in found if path.rstrip("/") != "/tmp"]  # noqa: S108 - the job's own

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
            said = done.stderr.decode("utf-8", "replace").strip().rstrip(".")[-300:]
            raise SandboxUnavailable(
                f"{self.name} is installed but cannot be used ({said}): start its server, and let this user use it."
            )
        return done.stdout.decode()


def arguments(
    command: Command, *, name: str, engine: str, owner: str, volumes: Sequence[str] = ()
) -> list[str]:
    """Return the engine's arguments that run a command.

    Args:
        command: what is run.
        name: of the container.
        engine: `docker` or `podman`.
        owner: value of the label.
        volumes: where the image wants volumes; they are empty, in memory, and end with the job.
    """
    limits, user = command.limits, f"{FIRST_UID}:{FIRST_UID}"
    argv = ["run", "--name", name, "--label", f"{LABEL}={owner}", "--network", "none"]
    argv += ["--read-only", "--user", user, "--cap-drop", "ALL", "--hostname", "job"]
    argv += ["--security-opt", "no-new-privileges", "--workdir", "/tmp"]  # noqa: S108 - the job's own
    argv += ["--tmpfs", f"/tmp:rw,exec,mode=1777,size={limits.disk_mib}m"]  # noqa: S108
    for path in volumes:
        size = limits.disk_mib << 20
        argv += ["--mount"]
        argv += [f"type=tmpfs,destination={path},tmpfs-size={size},tmpfs-mode=1777"]
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
        return [*argv, "--pull", "never", command.image, *command.argv]
    return [*argv, "--volume", "/usr:/usr:ro", "--pull", "never", IMAGE, *command.argv]


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def _links() -> bytes:
    """Make the layer of our image: what this machine's root folder has as links into /usr."""
    import tarfile

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
