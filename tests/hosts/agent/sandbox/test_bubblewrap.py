"""What a job in bubblewrap can see, reach and use; each test runs a real sandbox, as root and as an ordinary user.

Every one of these was seen to leak in some sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocqueue.hosts.agent.errors import SandboxUnavailable
from pocqueue.hosts.agent.sandbox.base import Command
from pocqueue.hosts.agent.sandbox.bubblewrap import Bubblewrap, arguments
from pocqueue.hosts.agent.sandbox.cgroup import OURS, ROOT, Cgroups
from tests.support.held_agent import held_agent, parent_of, silenced_agent
from tests.support.processes import open_transports
from tests.support.sandbox_process import (
    ORDINARY_UID,
    SECRET,
    SandboxProcess,
    need,
    sandbox_process,
)
from tests.support.waiting import wait_until

#: Mark of the agents that these tests start themselves.
OWNER = f"test{uuid.uuid4().hex}"


@pytest.fixture(scope="module", params=["root", "user"])
def jobs(request: pytest.FixtureRequest) -> Iterator[SandboxProcess]:
    """An agent's sandbox: of root, which changes to another user, and of an ordinary user."""
    need("bwrap", "bubblewrap")
    if request.param == "root" and os.getuid() != 0:
        pytest.skip("only root can run the agent as root")
    uid = ORDINARY_UID if request.param == "user" and os.getuid() == 0 else -1
    with sandbox_process("bubblewrap", uid) as process:
        yield process


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of this machine can read."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_command_runs(jobs: SandboxProcess) -> None:
    """Its output, its exit code, its time."""
    done = jobs.run("sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.exit_code, done.ended_by, done.output) == (3, "itself", "out\nerr\n")
    assert jobs.run("true").is_good
    assert jobs.run("sh", "-c", "kill -9 $$").exit_code == 137


def test_a_program_that_is_not_there_is_a_failed_job(jobs: SandboxProcess) -> None:
    """With a line that says so."""
    done = jobs.run("no-such-program")
    assert done.exit_code == 127
    assert "no-such-program: not found" in done.output


def test_the_agents_environment_is_not_to_be_seen(jobs: SandboxProcess) -> None:
    """Process 1 is bwrap itself, and --clearenv clears that of the command alone."""
    done = jobs.run("sh", "-c", "env; cat /proc/1/environ /proc/*/environ /proc/1/cmdline")
    assert SECRET not in done.output
    assert "HN_NODE_TOKEN" not in done.output
    assert "HOME=/tmp" in done.output


def test_the_owners_files_are_not_to_be_seen(jobs: SandboxProcess, open_folder: Path) -> None:
    """Neither the key of the node, nor homes, nor passwords, by path or by a symbolic link in the work folder."""
    key = open_folder / "node-key.pem"
    key.write_text(SECRET)
    code = """
import os, sys
for path in [*sys.argv[1:], "/root", "/home", "/etc/shadow", "/etc/passwd", "/var", "/opt", "/sys", "/run"]:
    assert not os.path.exists(path), path
os.symlink(sys.argv[1], "/tmp/link")
try:
    open("/tmp/link").read()
except FileNotFoundError:
    print("not found")
os.symlink("/proc/1/root" + sys.argv[1], "/tmp/other")
try:
    open("/tmp/other").read()
except OSError:
    print("not there either")
"""
    done = jobs.script(code, str(key), str(open_folder))
    assert done.output == "not found\nnot there either\n"
    assert sorted(open_folder.iterdir()) == [key]


def test_nothing_outside_can_be_written(jobs: SandboxProcess) -> None:
    """Programs are read-only, and so are the file systems in memory that have no bound."""
    code = """
import os
for folder in ["/", "/usr", "/usr/bin", "/bin", "/etc", "/dev", "/proc", "/proc/sys/kernel"]:
    try:
        open(folder + "/mine", "w")
    except OSError:
        continue
    raise SystemExit("can write to " + folder)
"""
    done = jobs.script(code)
    assert (done.output, done.exit_code) == ("", 0)


def test_the_network_is_not_to_be_reached(jobs: SandboxProcess) -> None:
    """This machine's loopback, the cloud's metadata, other addresses, and abstract Unix sockets."""
    name = f"\0pocqueue-{uuid.uuid4()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(name)
        local.listen()
        code = """
import socket, sys
port, name = int(sys.argv[1]), "\\0" + sys.argv[2]
for address in [("127.0.0.1", port), ("169.254.169.254", 80), ("10.0.0.1", 80), ("192.0.2.1", 443)]:
    with socket.socket() as one:
        one.settimeout(20)
        try:
            one.connect(address)
        except (ConnectionRefusedError, OSError) as exc:
            assert not isinstance(exc, TimeoutError), address
            continue
        raise SystemExit("reached " + str(address))
with socket.socket(socket.AF_UNIX) as one:
    try:
        one.connect(name)
    except ConnectionRefusedError:
        print("nothing")
"""
        done = jobs.script(code, str(server.getsockname()[1]), name[1:])
    assert done.output == "nothing\n"


def test_no_rights_and_no_way_to_them(jobs: SandboxProcess) -> None:
    """No capabilities, no new privileges, system calls filtered: for the job and for process 1 in its sandbox."""
    done = jobs.run("sh", "-c", "id -u; cat /proc/self/status /proc/1/status")
    uid, _, status = done.output.partition("\n")
    assert int(uid) != 0
    if jobs.is_root:
        assert int(uid) >= 64_001
    own, first = status[: status.rindex("Name:")], status[status.rindex("Name:") :]
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert f"{kind}:\t0000000000000000" in own
    assert "NoNewPrivs:\t1" in own
    assert "Seccomp:\t2" in own
    # A job could make one without a filter do what it may not itself; and it is how the agent knows that this one
    # dies with it.
    assert "Seccomp:\t2" in first


@pytest.mark.parametrize(
    "call",
    [
        "libc.unshare(0x10000000)",
        "libc.syscall(56 if x86 else 220, 0x10000000 | 17, 0, 0, 0, 0)",
        "libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None)",
        "libc.ptrace(0, 0, 0, 0)",
        "libc.syscall(321 if x86 else 280, 0, 0, 0)",
        "libc.syscall(425, 1, 0)",
        "libc.syscall(250 if x86 else 219, 0, 0)",
        "libc.syscall(29 if x86 else 194, 0, 1 << 20, 0o1600)",
        "libc.syscall(319 if x86 else 279, b'mine', 0)",
        "libc.ioctl(0, 0x5412, b'x')",
        "libc.socket(40, 1, 0)",
        "libc.socket(38, 5, 0)",
    ],
)
def test_system_calls_that_no_job_needs_are_refused(jobs: SandboxProcess, call: str) -> None:
    """By the filter: with EPERM, or EAFNOSUPPORT for kinds of sockets."""
    code = f"""
import ctypes, errno, platform
libc, x86 = ctypes.CDLL(None, use_errno=True), platform.machine() == "x86_64"
assert {call} == -1
print(errno.errorcode[ctypes.get_errno()])
"""
    assert jobs.script(code).output in {"EPERM\n", "EAFNOSUPPORT\n"}


def test_threads_and_processes_are_not_refused(jobs: SandboxProcess) -> None:
    """Programs of every day run: threads, children, pipes, sockets within the job."""
    code = """
import socket, subprocess, threading
server = socket.create_server(("127.0.0.1", 0))
thread = threading.Thread(target=lambda: server.accept()[0].sendall(b"hello"))
thread.start()
with socket.create_connection(server.getsockname()) as one:
    print(one.recv(5).decode(), subprocess.run(["echo", "child"], capture_output=True, text=True).stdout, end="")
thread.join()
"""
    assert jobs.script(code).output == "hello child\n"


def test_a_fork_bomb_is_bounded(jobs: SandboxProcess) -> None:
    """It runs out of processes, and nobody else does."""
    code = """
import os, signal, time
count = 0
try:
    while True:
        if os.fork() == 0:
            signal.pause()
        count += 1
        assert count < 2000
except BlockingIOError:
    print("refused", count)
"""
    done = jobs.script(code, processes=40)
    refused = done.output.startswith("refused ")
    assert refused or done.ended_by == "processes"
    if refused:
        # Without root, what else the user runs is counted, and changes meanwhile.
        assert int(done.output.split()[1]) <= (42 if jobs.is_root else 500)


def test_memory_is_bounded(jobs: SandboxProcess) -> None:
    """One process, and many that are small each."""
    done = jobs.script("b = bytearray(800 << 20); print(len(b))", memory_mib=200)
    assert not done.is_good
    assert done.output.strip() != str(800 << 20)
    code = """
import os, signal
for _ in range(30):
    if os.fork() == 0:
        kept = bytearray(b"x") * (50 << 20)
        signal.pause()
os.wait()
signal.pause()
"""
    done = jobs.script(code, memory_mib=400, wall_s=300)
    assert done.ended_by == "memory"


def test_the_disk_is_bounded(jobs: SandboxProcess) -> None:
    """Its own folder, and shared memory, which is one."""
    code = """
import errno
for folder in ["/tmp", "/dev/shm"]:
    total = 0
    try:
        for number in range(100):
            with open(f"{folder}/{number}", "wb", buffering=0) as file:
                for _ in range(8):
                    total += file.write(bytes(1 << 20))
    except OSError as exc:
        assert exc.errno in (errno.ENOSPC, errno.EFBIG)
    print(folder, total >> 20)
"""
    assert jobs.script(code, disk_mib=16).output.split()[1::2] == ["16", "16"]


def test_endless_output_is_bounded(jobs: SandboxProcess) -> None:
    """The beginning and the end are kept, and a job that writes for ever is ended."""
    done = jobs.run("sh", "-c", "echo first; seq 1 400000; echo last")
    assert done.ended_by == "itself"
    assert done.output.startswith("first\n1\n2\n")
    assert done.output.endswith("400000\nlast\n")
    assert len(done.output) < (256 << 10) + 100
    assert done.left_out > 1_000_000
    done = jobs.run("yes", output_mib=4)
    assert done.ended_by == "output"
    assert len(done.output) < (256 << 10) + 100


def test_nothing_outlives_a_job(jobs: SandboxProcess) -> None:
    """A daemon in a session of its own ends with the job, whether that ends by itself or is ended."""
    mark = f"9{uuid.uuid4().int % 10**12}"
    done = jobs.run("sh", "-c", f"setsid sleep {mark} & sleep 0.1; echo started")
    assert done.output == "started\n"
    wait_until(lambda: not _processes_with(mark), message="the daemon's end")
    done = jobs.run("sh", "-c", f"setsid sleep {mark} & sleep {mark}", wall_s=0.5)
    assert done.ended_by == "wall time"
    wait_until(lambda: not _processes_with(mark), message="the daemon's end")


def test_time_is_bounded(jobs: SandboxProcess) -> None:
    """That of the clock, and that of the CPU over all processes."""
    assert jobs.run("sleep", "500", wall_s=0.2).ended_by == "wall time"
    busy = "while :; do :; done"
    done = jobs.run("sh", "-c", f"({busy}) & ({busy}) & wait", cpu_s=0.5, wall_s=300)
    assert done.ended_by == "cpu time"


def test_a_job_can_be_cancelled(jobs: SandboxProcess, open_folder: Path) -> None:
    """At once, even before its command has begun."""
    stop = open_folder / "stop"
    stop.touch()
    done = jobs.run("sleep", "500", stop_on=stop)
    assert (done.ended_by, done.exit_code) == ("cancelled", 137)


def test_a_killed_agent_leaves_nothing_running() -> None:
    """Not even a daemon; what is left of control groups the next agent removes."""
    need("bwrap", "bubblewrap")
    mark = f"8{uuid.uuid4().int % 10**12}"
    with sandbox_process("bubblewrap") as agent:
        agent.start("sh", "-c", f"setsid sleep {mark} & sleep {mark}")
        sleep = [b"sleep", mark.encode()]
        wait_until(
            lambda: [_words(pid) for pid in _processes_with(mark)].count(sleep) == 2,
            message="the job",
        )
        agent.process.kill()
        wait_until(lambda: not _processes_with(mark), message="the job's end")
    cgroups = Cgroups.find(agent.owner)
    assert _groups(agent.owner) or cgroups is None
    if cgroups is not None:
        cgroups.clean()
    assert not _groups(agent.owner)


def test_an_agent_killed_while_it_starts_a_job_leaves_nothing_running() -> None:
    """In the one moment in which nobody in the sandbox would notice: the first process in it is held there."""
    need("bwrap", "bubblewrap")
    mark = f"8{uuid.uuid4().int % 10**12}"
    with held_agent(OWNER, "sleep", mark) as (agent, first):
        outside = parent_of(first)
        agent.kill()
        wait_until(
            lambda: not Path(f"/proc/{outside}").exists(), message="the end of bwrap's own process"
        )
        os.kill(first, signal.SIGCONT)
        wait_until(lambda: not _processes_with(mark), message="the job's end")


def test_what_was_left_running_is_ended_by_the_next_agent() -> None:
    """By its mark: a job of an agent of another folder goes on, and so does whoever speaks of the mark."""
    need("bwrap", "bubblewrap")
    mark = f"8{uuid.uuid4().int % 10**12}"
    other = Bubblewrap(None, uuid.uuid4().hex)
    with held_agent(OWNER, "sleep", mark) as (_, first):
        outside = parent_of(first)
        waits = [sys.executable, "-c", "import signal; signal.pause()"]
        speaks = subprocess.Popen([*waits, *_words(outside)])
        try:
            other.clean()
            assert Path(f"/proc/{first}").exists()
            Bubblewrap(None, OWNER).clean()
            wait_until(lambda: _processes_with(mark) == [speaks.pid], message="the job's end")
        finally:
            speaks.kill()
            speaks.wait()


def test_a_process_inside_that_was_never_let_go_on_is_ended_by_the_next_agent() -> None:
    """It waits for ever, as bwrap's process outside has died with the agent before."""
    need("bwrap", "bubblewrap")
    mark = f"8{uuid.uuid4().int % 10**12}"
    with silenced_agent(OWNER, "sleep", mark) as agent:
        wait_until(lambda: len(_processes_with(mark)) == 3, message="agent, outside, inside")
        agent.kill()
        wait_until(lambda: len(_processes_with(mark)) == 1, message="the end of the one outside")
        Bubblewrap(None, OWNER).clean()
        assert not _processes_with(mark)


async def test_a_job_that_is_given_up_while_it_starts_leaves_nothing() -> None:
    """At any moment of it; whoever gives it up does not wait for ever."""
    need("bwrap", "bubblewrap")
    box, mark = Bubblewrap(None, OWNER), f"8{uuid.uuid4().int % 10**12}"
    for number in range(20):
        running = asyncio.create_task(box.run(Command(("sleep", mark)), asyncio.Event()))
        await asyncio.sleep(number / 1000)
        running.cancel()
        await asyncio.wait([running], timeout=60)
        assert running.done(), number
        assert open_transports() == [], number
    assert not _processes_with(mark)


async def test_a_job_that_is_given_up_before_it_can_be_told_by_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a moment after its start a program's arguments cannot be read; here, as it is another one by then."""
    need("bwrap", "bubblewrap")
    mark = f"8{uuid.uuid4().int % 10**12}"
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/sh\nexec /bin/sleep {mark}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    box = Bubblewrap(None, OWNER)
    running = asyncio.create_task(box.run(Command(("true",)), asyncio.Event()))
    await asyncio.sleep(0)
    running.cancel()
    try:
        await asyncio.wait([running], timeout=10)
        assert running.cancelled()
        assert open_transports() == []
        assert not _processes_with(mark)
    finally:
        for pid in _processes_with(mark):
            os.kill(pid, signal.SIGKILL)


def test_groups_are_removed(jobs: SandboxProcess) -> None:
    """With the job."""
    jobs.run("true")
    assert not _groups(jobs.owner)


def test_a_machine_without_bubblewrap_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install; one of another kind, too."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SandboxUnavailable, match="bwrap is not installed: `sudo apt-get install"):
        Bubblewrap(None, OWNER)
    monkeypatch.undo()
    need("bwrap", "bubblewrap")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(SandboxUnavailable, match="this machine is riscv64"):
        Bubblewrap(None, OWNER)


def test_a_kernel_without_user_namespaces_is_told(jobs: SandboxProcess, tmp_path: Path) -> None:
    """The job is not run, least of all without a sandbox; the sentence has AppArmor's remedy."""
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    fake.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        with (
            sandbox_process("bubblewrap") as agent,
            pytest.raises(SandboxUnavailable) as caught,
        ):
            agent.run("true")
    assert "/etc/apparmor.d/bwrap" in str(caught.value)
    assert "setting up uid map: Permission denied" in str(caught.value)


def test_a_gpu_job_gets_its_devices_alone() -> None:
    """By index, and the environment names them by UUID; everything else is as for any job."""
    argv = arguments(Command(("x",), gpus=((2, "GPU-abc"),)), uid=None, setpriv=None)
    devices = [argv[at + 1] for at, word in enumerate(argv) if word == "--dev-bind-try"]
    assert devices == [
        "/dev/nvidia2",
        "/dev/nvidiactl",
        "/dev/nvidia-uvm",
        "/dev/nvidia-uvm-tools",
        "/dev/nvidia-modeset",
    ]
    assert argv[argv.index("CUDA_VISIBLE_DEVICES") + 1] == "GPU-abc"
    assert argv[-2:] == ["sh", "x"]


def _words(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    return []


def _processes_with(mark: str) -> list[int]:
    """Return the processes of this machine with a word in their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if mark.encode() in words:
                found.append(int(entry.name))
    return found


def _groups(owner: str) -> list[Path]:
    """Return the control groups of an agent's jobs."""
    return [*ROOT.glob(f"{OURS}/{owner}-*"), *ROOT.glob(f"*/{OURS}/{owner}-*")]
