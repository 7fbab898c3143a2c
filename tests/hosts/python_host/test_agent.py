"""The small agent in one file, as an owner runs it."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import pocqueue.hosts.python_host
from pocqueue.hosts.wire import CloseCode, ErrorText, Job, JobResult, Register
from tests.support.commands import without_settings
from tests.support.hosts_server import HostsServer, hosts_server
from tests.support.waiting import until

FILE = Path(pocqueue.hosts.python_host.__file__).with_name("agent.py")
# As in an environment that has what `requirements.txt` names, and nothing else.
BARE = "import runpy, sys; sys.path.append(sys.argv.pop(1)); runpy.run_path(sys.argv.pop(1), run_name='__main__')"
SECRET = "hunter2-hunter2"


@pytest.fixture
async def server() -> AsyncIterator[HostsServer]:
    """A server that takes the token `token-one`."""
    async with hosts_server() as server:
        yield server


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the agent of a test writes."""
    return tmp_path / "log"


@pytest.fixture
def needs(tmp_path: Path) -> Path:
    """A folder with the packages of `requirements.txt`."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for line in FILE.with_name("requirements.txt").read_text().split():
        found = importlib.util.find_spec(re.split(r"\W", line)[0])
        assert found is not None
        assert found.submodule_search_locations is not None
        (folder / found.name).symlink_to(found.submodule_search_locations[0])
    return folder


@pytest.fixture
def agent(server: HostsServer, log: Path, needs: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An agent that is connected, or soon will be."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", "-c", BARE, str(needs), str(FILE)),
                "--endpoint",
                server.endpoint,
                "--token",
                "token-one",
                "--allow",
                "sleep,echo",
            ],
            env=without_settings() | {"HN_NODE_TOKEN": "another", "SECRET": SECRET},
            stderr=file,
        )
    yield process
    process.kill()
    process.wait()


async def test_it_registers_and_runs_the_test_job(
    server: HostsServer, agent: subprocess.Popen[bytes]
) -> None:
    """The fields of today's agents and no other."""
    said = await server.next(Register)
    assert (said.token, said.protocol, said.node_key) == ("token-one", 1, None)
    assert said.host_info.hostname != "unknown"
    assert said.host_info.os != "unknown"
    await until(lambda: server.socket)
    await server.send(Job(id="job-1", command="sleep 0.2"))
    result = await server.next(JobResult)
    assert (result.id, result.status, result.logs) == ("job-1", "completed", "")


@pytest.mark.parametrize(
    "command",
    ["id", "sh -c id", "/bin/sleep 1", "", "'; id", "$(id)", "`id`", "sleep\nid", "| id"],
)
async def test_only_programs_of_its_list_are_started(
    server: HostsServer, agent: subprocess.Popen[bytes], command: str
) -> None:
    """Whatever else it says is refused, so that another machine gets it, and never a line for a shell."""
    await server.next(Register)
    await until(lambda: server.socket)
    await server.send(Job(id="job-1", command=command))
    result = await server.next(JobResult)
    # A line break is a blank: `sleep id`, which the program itself does not understand.
    assert result.status == ("failed" if command == "sleep\nid" else "cancelled")
    assert "uid=" not in result.logs


async def test_words_are_words(server: HostsServer, agent: subprocess.Popen[bytes]) -> None:
    """What a shell would do something with is text."""
    await server.next(Register)
    await until(lambda: server.socket)
    await server.send(Job(id="job-1", command="echo $SECRET; id && 'a b' > /tmp/x `id`"))
    assert (await server.next(JobResult)).logs == "$SECRET; id && a b > /tmp/x `id`\n"


def test_a_command_has_no_secrets_and_a_bounded_time(tmp_path: Path) -> None:
    """Its own folder, a clean environment, little output; what it leaves behind ends with it."""
    mark = f"5{uuid.uuid4().int % 10**12}"
    code = f"""
import asyncio, runpy, sys
agent = runpy.run_path({str(FILE)!r})
print(asyncio.run(agent["run"](["sh", "-c", "pwd; env; echo $SECRET"], 60)))
print(asyncio.run(agent["run"](["sh", "-c", "sleep {mark} & exit 3"], 60))[:2])
print(asyncio.run(agent["run"](["sleep", "{mark}"], 0.3)))
status, code, text = asyncio.run(agent["run"](["seq", "1", "300000"], 60))
print(status, code, len(text) < 300_000, text.endswith("300000\\n"), "bytes left out" in text)
assert not any(name.startswith(("pocqueue", "pydantic", "typer", "numpy")) for name in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"SECRET": SECRET, "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    lines = done.stdout.splitlines()
    assert SECRET not in done.stdout
    assert "/job-" in lines[0]
    assert lines[1] == "('failed', 3)"
    assert lines[2] == repr(("failed", None, "\n[It ran for more than 0.3 s.]\n"))
    assert lines[3] == "completed 0 True True True"
    assert not _is_running(mark)


async def test_a_refused_token_ends_it(
    server: HostsServer, log: Path, agent: subprocess.Popen[bytes]
) -> None:
    """With a sentence and exit code 2; the token is not in the log."""
    await server.next(Register)
    await until(lambda: server.socket)
    server.refuses = ErrorText.TOKEN_USED, CloseCode.REFUSED
    await server.stop()
    await server.start()
    await until(lambda: agent.poll() is not None)
    assert agent.returncode == 2
    said = _text(log)
    assert "Token already used. Make a new token on its page." in said
    assert "token-one" not in said


async def test_it_ends_with_what_it_runs(
    server: HostsServer, agent: subprocess.Popen[bytes]
) -> None:
    """At SIGTERM."""
    mark = f"4{uuid.uuid4().int % 10**12}"
    await server.next(Register)
    await until(lambda: server.socket)
    await server.send(Job(id="job-1", command=f"sleep {mark}"))
    await until(lambda: _is_running(mark))
    agent.send_signal(signal.SIGTERM)
    await until(lambda: agent.poll() is not None)
    assert agent.returncode == 0
    assert not _is_running(mark)


async def test_what_is_no_message_is_passed_over(
    server: HostsServer, agent: subprocess.Popen[bytes]
) -> None:
    """Whatever a server sends, the next job runs."""
    await server.next(Register)
    await until(lambda: server.socket)
    assert server.socket is not None
    for text in (
        "",
        "{",
        "null",
        "[5]",
        '{"type": 5}',
        '{"type": "new"}',
        '{"type": "job", "argv": 5}',
    ):
        await server.socket.send(text)
    await server.send(Job(id="job-1", command="echo still here"))
    await until(lambda: any(one.id == "job-1" for one in server.of(JobResult)))
    assert {one.id: one.logs for one in server.of(JobResult)}["job-1"] == "still here\n"


@pytest.fixture
def anybodys() -> Iterator[Path]:
    """A folder that every user of this machine can write to."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def test_a_work_folder_goes_whatever_was_made_of_it(anybodys: Path) -> None:
    """Folders that nobody may enter, and links: what these lead to stays as it is."""
    outside = anybodys / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    script = f"mkdir -p a/b; touch a/b/c; ln -s {outside} a/link; ln -s {outside} link; chmod 0 a/b a; pwd"
    code = f"""
import asyncio, concurrent.futures.thread, os, runpy
agent = runpy.run_path({str(FILE)!r})
if os.getuid() == 0:  # who may enter any folder
    os.chown({str(outside)!r}, 61_234, 61_234)
    os.setuid(61_234)
os.chmod({str(outside)!r}, 0o500)
print(asyncio.run(agent["run"](["sh", "-c", {script!r}], 60))[2], end="")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(anybodys)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout.startswith(str(anybodys)), done.stderr
    assert list(anybodys.iterdir()) == [outside]
    assert (outside / "kept").read_text() == "kept"
    assert outside.stat().st_mode & 0o777 == 0o500


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--token is missing, or HN_NODE_TOKEN"),
        (["--token", "t", "--endpoint", "127.0.0.1:3002"], "is ws://HOST:PORT or wss://HOST"),
    ],
)
def test_it_says_what_it_needs(options: list[str], words: str) -> None:
    """Without a token, or with an endpoint to which nobody can connect, however often it is tried."""
    done = subprocess.run(
        [sys.executable, str(FILE), *options],
        env=without_settings(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 2
    assert words in done.stderr


def _text(log: Path) -> str:
    return log.read_text()


def _is_running(mark: str) -> bool:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                    return True
    return False
