"""Commands in bubblewrap: namespaces of their own, this machine's programs read-only, nothing else of it.

A job sees /usr (read-only), /proc of its own processes, a few devices and an empty /tmp in memory. It has no network,
no capabilities, no way to new ones, and a user id that nobody else has: as root by changing to it, otherwise in a user
namespace. bwrap itself is started with an empty environment, as the job can read that of process 1.

Bounds are set from outside while bwrap waits, before the command is started: control group where there can be one,
resource limits, and the first place when the kernel needs memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import resource
import shutil
import signal
import uuid
from asyncio.subprocess import Process
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from typing_extensions import override

from pocqueue.hosts.agent.errors import SandboxUnavailable
from pocqueue.hosts.agent.sandbox.base import Command, Limits, Outcome, Sandbox
from pocqueue.hosts.agent.sandbox.bounded import run_bounded
from pocqueue.hosts.agent.sandbox.cgroup import Cgroups, JobGroup
from pocqueue.hosts.agent.sandbox.leftovers import end_marked
from pocqueue.hosts.agent.sandbox.seccomp import machines, seccomp_filter
from pocqueue.hosts.agent.sandbox.usage import Usage, num_threads_of, usage_below

#: First of the user ids of jobs, where the agent runs as root; each running job has its own.
FIRST_UID = 64_001
_NUM_UIDS = 256

_NAME = "bubblewrap"
_PATH = "/usr/local/bin:/usr/bin:/bin"
_ROOT_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# The dynamic linker's cache, and where Debian's links from /usr/bin lead.
_ETC = ("/etc/ld.so.cache", "/etc/alternatives")
_NVIDIA = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
_MIB = 1 << 20
# Seconds between two looks at a sandbox that is set up, which takes milliseconds.
_FOLLOWS_S = 0.0005
# Starts the words behind it, unless the agent has died meanwhile: bwrap goes on then, and nobody would end it.
_WHEN_TOLD = ("/bin/sh", "-c", 'read -r _ && exec "$@" </dev/null', "sh")
_WITHOUT_GROUPS = "resource limits (no control groups can be made here: run the agent as root, or use Docker, for stricter ones)"
#: Ubuntu since 23.10, and Debian where it is hardened.
_NO_NAMESPACES = (
    "This kernel does not let bubblewrap make a user namespace. Where AppArmor forbids it, as Ubuntu does since 23.10, "
    "allow it with `printf 'abi <abi/4.0>,\\ninclude <tunables/global>\\nprofile bwrap /usr/bin/bwrap "
    "flags=(unconfined) { userns, }\\n' | sudo tee /etc/apparmor.d/bwrap` and `sudo systemctl reload apparmor`; elsewhere "
    "`sudo sysctl kernel.unprivileged_userns_clone=1` or `sudo sysctl user.max_user_namespaces=10000`. In a container "
    "it takes `--privileged`. Or run the agent as root, which changes to another user for each job."
)


class Bubblewrap(Sandbox):
    """Runs commands in bubblewrap.

    Args:
        cgroups: where control groups can be made; None: resource limits and looking at /proc have to do.
        owner: mark of what is started, by which what a killed agent has left is found.

    Raises:
        SandboxUnavailable: bubblewrap or something it takes is not there; says what to install.
    """

    name = _NAME
    takes_images = False

    def __init__(self, cgroups: Cgroups | None, owner: str) -> None:
        self._mark = f"pocqueue-agent-{owner}"
        self._bwrap = _needed("bwrap", "bubblewrap")
        self._is_root = os.geteuid() == 0
        self._setpriv = _needed("setpriv", "util-linux") if self._is_root else None
        if platform.machine() not in machines():
            raise SandboxUnavailable(
                f"Bubblewrap is used on {' and '.join(machines())}; this machine is {platform.machine()}, for "
                "which there is no filter of system calls. Docker or podman would do."
            )
        self._cgroups = cgroups
        self.bounds = "control groups" if cgroups is not None else _WITHOUT_GROUPS
        self._free_uids = list(range(FIRST_UID, FIRST_UID + _NUM_UIDS)) if self._is_root else []

    @override
    async def run(self, command: Command, stop: asyncio.Event) -> Outcome:
        if command.image is not None:
            raise SandboxUnavailable("Bubblewrap has no images; they take Docker or podman.")
        uid = self._free_uids.pop(0) if self._free_uids else None
        try:
            with contextlib.ExitStack() as stack:
                group = None
                if self._cgroups is not None:
                    try:
                        group = stack.enter_context(self._cgroups.new(command.limits))
                    except OSError as exc:
                        raise SandboxUnavailable(
                            f"The control group of a job cannot be made ({exc.strerror}): see whether "
                            "/sys/fs/cgroup can be written to."
                        ) from None
                return await self._run(command, stop, uid, group)
        finally:
            if uid is not None:
                self._free_uids.append(uid)

    @override
    def clean(self) -> None:
        """End and remove what a killed agent has left: its processes die with it, control groups do not.

        The processes are looked for all the same. One there is: while bwrap begins, its process outside dies with the
        agent before it has let the one inside go on, and that one waits for it for ever, with nothing running in it.
        """
        end_marked(self._bwrap, self._mark)
        if self._cgroups is not None:
            self._cgroups.clean()

    async def _run(
        self, command: Command, stop: asyncio.Event, uid: int | None, group: JobGroup | None
    ) -> Outcome:
        with contextlib.ExitStack() as stack:
            info, info_in = _pipe(stack)
            go_out, go = _pipe(stack)
            rules, rules_in = _pipe(stack)
            # Far less than a pipe holds.
            rules_in.write(seccomp_filter(platform.machine(), with_gpu=bool(command.gpus)))
            rules_in.close()
            fds = {"--info-fd": info_in, "--block-fd": go_out, "--seccomp": rules}
            argv = [self._bwrap]
            for option, file in fds.items():
                argv += [option, str(file.fileno())]
            # Nothing comes of these but that our own processes are known by them: all of this agent, and this job's.
            job_mark = f"{self._mark}-{uuid.uuid4().hex}"
            argv += ["--unsetenv", self._mark, "--unsetenv", job_mark]
            argv += arguments(command, uid=uid, setpriv=self._setpriv)
            starting = asyncio.create_task(
                asyncio.create_subprocess_exec(
                    *argv,
                    env={},
                    cwd="/",
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    pass_fds=tuple(file.fileno() for file in fds.values()),
                    start_new_session=True,
                )
            )
            try:
                process = await asyncio.shield(starting)
            except asyncio.CancelledError:
                # asyncio would end the process outside alone, and wait for the pipe that the one inside holds.
                process = await starting
                # By its number first: it has only just become bwrap, and its arguments may not be there to read yet.
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                end_marked(self._bwrap, job_mark)
                await process.communicate()
                raise

            child: int | None = None

            def end() -> None:
                # bwrap's process outside, and the first one inside: everything else there goes with it. Both, as
                # right after its start the second does not follow the first yet.
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                if child is not None:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(child, signal.SIGKILL)

            try:
                # Reading ends when bwrap does, if nobody else can write.
                info_in.close()
                pid = await _child_of(info)
                child = os.pidfd_open(pid)
                stack.callback(os.close, child)
                _bound(pid, command, uid=uid, group=group)
                go.write(b"1")
                await _until_it_follows(pid, process)
                assert process.stdin is not None
                process.stdin.write(b"\n")
                process.stdin.close()
            except BaseException as exc:
                end()
                # The process inside may wait for the one outside for ever, and hold our pipe: see `clean`.
                end_marked(self._bwrap, job_mark)
                said, _ = await process.communicate()
                if isinstance(exc, (OSError, ValueError)):
                    raise _not_set_up(said, exc) from None
                raise
            return await run_bounded(
                process, command.limits, stop, look=lambda: _used(pid, group), end=end
            )


def arguments(command: Command, *, uid: int | None, setpriv: str | None) -> list[str]:
    """Return bwrap's arguments for a command, without those that name open files.

    Args:
        command: what is run.
        uid: user and group to change to, where the agent is root; None: the agent's own, in a namespace.
        setpriv: the program that changes to it.
    """
    tmp = ["--perms", "1777", "--size", str(command.limits.disk_mib * _MIB), "--tmpfs"]
    argv = ["--die-with-parent", "--new-session", "--hostname", "job", "--cap-drop", "ALL"]
    argv += [
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ]
    argv += ["--ro-bind", "/usr", "/usr"]
    for name in _ROOT_FOLDERS:
        here = Path("/", name)
        if here.is_symlink():
            argv += ["--symlink", os.readlink(here), str(here)]
        elif here.is_dir():
            argv += ["--ro-bind", str(here), str(here)]
    for file in _ETC:
        argv += ["--ro-bind-try", file, file]
    argv += ["--proc", "/proc", "--dev", "/dev", *tmp, "/dev/shm", *tmp, "/tmp"]  # noqa: S108 - the job's own
    if command.gpus:
        for device in (*(f"/dev/nvidia{index}" for index, _ in command.gpus), *_NVIDIA):
            argv += ["--dev-bind-try", device, device]
    # Both are file systems in memory without a bound.
    argv += ["--remount-ro", "/dev", "--remount-ro", "/"]
    for name, value in environment(command).items():
        argv += ["--setenv", name, value]
    argv += ["--chdir", "/tmp"]  # noqa: S108 - the job's own
    if uid is None:
        return [*argv, "--unshare-user", "--", *_WHEN_TOLD, *command.argv]
    for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
        argv += ["--cap-add", capability]
    assert setpriv is not None
    drop = [setpriv, "--reuid", str(uid), "--regid", str(uid), "--clear-groups"]
    drop += ["--bounding-set", "-all", "--inh-caps", "-all", "--no-new-privs"]
    return [*argv, "--", *drop, "--", *_WHEN_TOLD, *command.argv]


def environment(command: Command) -> dict[str, str]:
    """Return the whole environment of a job."""
    env = {"PATH": _PATH, "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}  # noqa: S108 - the job's own
    if command.gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_uuid for _, gpu_uuid in command.gpus)
    return env


def _bound(pid: int, command: Command, *, uid: int | None, group: JobGroup | None) -> None:
    """Bound what waits to become the command.

    Raises:
        OSError: it cannot be bounded.
    """
    limits = command.limits
    if group is not None:
        group.add(pid)
    Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
    for which, most in _resource_limits(command, _processes(limits, uid), group).items():
        _, hard = resource.prlimit(pid, which)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.prlimit(pid, which, (most, most))


def _resource_limits(command: Command, processes: int, group: JobGroup | None) -> dict[int, int]:
    limits = command.limits
    found = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 1024,
        resource.RLIMIT_CPU: max(1, round(limits.cpu_s)) + 1,
        resource.RLIMIT_FSIZE: limits.disk_mib * _MIB,
        resource.RLIMIT_NPROC: processes,
    }
    # The next best thing to a control group; but CUDA reserves far more addresses than it uses.
    if group is None and not command.gpus:
        found[resource.RLIMIT_AS] = limits.memory_mib * _MIB
    return found


def _processes(limits: Limits, uid: int | None) -> int:
    """Return RLIMIT_NPROC: it bounds all threads of a user, and the agent's own user has others."""
    return limits.processes + (0 if uid is not None else num_threads_of(os.getuid()))


def _used(pid: int, group: JobGroup | None) -> Usage:
    used = usage_below(pid)
    # bwrap's own process in the sandbox.
    used = replace(used, processes=max(0, used.processes - 1))
    if group is None:
        return used
    # The kernel bounds memory itself, and what processes share is counted once by it.
    with contextlib.suppress(OSError):
        lacks = group.lacks_memory()
        return replace(used, memory_bytes=0, cpu_s=group.cpu_s(), lacks_memory=lacks)
    return used


async def _child_of(info: BinaryIO) -> int:
    """Return the process that becomes the command, as bwrap tells it.

    Raises:
        ValueError: it has ended without a word.
    """
    loop, ready, said = asyncio.get_running_loop(), asyncio.Event(), b""
    loop.add_reader(info.fileno(), ready.set)
    try:
        while not said.rstrip().endswith(b"}"):
            await ready.wait()
            ready.clear()
            more = os.read(info.fileno(), 4096)
            if not more:
                raise ValueError("bwrap said nothing")
            said += more
    finally:
        loop.remove_reader(info.fileno())
    return int(json.loads(said)["child-pid"])


async def _until_it_follows(pid: int, process: Process) -> None:
    """Wait until the first process in a sandbox dies with bwrap's process outside, which died with us from before.

    It asks the kernel for that before it filters its system calls, and that it does can be seen. Were the command told
    to start before, an agent that is killed in between would leave it running for ever. Killed before it has told, it
    leaves a command that is never started.

    Raises:
        ValueError: it has ended.
    """
    while process.returncode is None:
        if _has_filter(pid):
            return
        await asyncio.sleep(_FOLLOWS_S)
    raise ValueError("it has ended before its command was started")


def _has_filter(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return b"\nSeccomp:\t2\n" in Path(f"/proc/{pid}/status").read_bytes()
    return False


def _not_set_up(said: bytes, exc: Exception) -> SandboxUnavailable:
    text = said.decode("utf-8", "replace").strip()
    if any(word in text for word in ("uid map", "namespace", "Operation not permitted")):
        return SandboxUnavailable(f"{_NO_NAMESPACES} It says: {text[:300]}.")
    return SandboxUnavailable(f"Bubblewrap cannot be set up: {(text or str(exc))[:300]}.")


def _needed(program: str, package: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise SandboxUnavailable(
            f"{program} is not installed: `sudo apt-get install {package}`, or install Docker or podman."
        )
    return found


def _pipe(stack: contextlib.ExitStack) -> tuple[BinaryIO, BinaryIO]:
    """Return the two ends of a pipe, unbuffered; those still open are closed with the stack."""
    out, into = os.pipe()
    return (
        stack.enter_context(open(out, "rb", buffering=0)),
        stack.enter_context(open(into, "wb", buffering=0)),
    )
