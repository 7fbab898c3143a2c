"""Jobs that outlive the connection."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from pocqueue.deploy import transport
from pocqueue.deploy.connection import Connection
from pocqueue.deploy.errors import OutcomeUnknown, StepFailed
from pocqueue.deploy.remote_job import EndedMeanwhile, Job, run_job
from pocqueue.deploy.words import Command
from tests.deploy.server import Fault, Server, connected, serving
from tests.deploy.steps_of_tests import with_scripts
from tests.support.waiting import until


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server of the test's own."""
    async with serving(tmp_path) as server:
        yield server


@pytest_asyncio.fixture
async def connection(server: Server, tmp_path: Path) -> AsyncIterator[Connection]:
    """A connection with it."""
    async with connected(server, tmp_path) as connection:
        yield connection


#: Counts how often it is run, waits for a file, and prints.
SCRIPT = """\
echo "begin $1" >> begun
echo "first line é"
until [ -e go ]; do sleep 0.01; done
echo "last line"
printf 'no end of line'
exit 3
"""


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts for tests beside ours."""
    with_scripts(
        monkeypatch,
        {"wait": SCRIPT, "ends": "exit 0\n", "much": "head -c 700000 /dev/zero | tr '\\0' y\n"},
    )


def job(name: str = "wait", **options: float) -> Job:
    """Return a job."""
    return Job("1-test", Command(("it's a $word",), script=name, **options))  # type: ignore[arg-type]


def run_to_the_end(server: Server) -> None:
    """Let the job go on."""
    (server.root / "go").touch()


@pytest.mark.parametrize("pattern", ["job_start", "job_look"])
@pytest.mark.parametrize("drop", ["before", "cut", "during", "after"])
async def test_a_job_outlives_the_connection(
    pattern: str, drop: str, server: Server, connection: Connection
) -> None:
    """However it breaks, the job runs once, and all of its output and its exit code are read."""
    server.fault(Fault(pattern, drop=drop, when=(server.root / "begun").exists))  # type: ignore[arg-type]
    lines: list[str] = []

    def output(text: str) -> None:
        lines.extend(text.split("\n"))
        run_to_the_end(server)

    state = str(server.root / "state")
    try:
        end = await run_job(connection, job(), output, state_dir=state)
    except OutcomeUnknown:
        # It never began: the next run begins it.
        assert (pattern, drop) in {("job_start", "before"), ("job_start", "cut")}
        end = await run_job(connection, job(), output, state_dir=state)
    assert (end.exit_code, lines) == (3, ["first line é", "last line", "no end of line"])
    assert end.tail == tuple(lines)
    assert (server.root / "begun").read_text() == "begin it's a $word\n"


async def test_a_connection_that_falls_silent_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the laptop has slept: nobody ends it, and its silence is noticed; the job went on meanwhile, and is found again."""
    monkeypatch.setattr(transport, "KEEPALIVE_S", 0.1)
    lines: list[str] = []

    def output(text: str) -> None:
        if not lines:
            server.hush()
            run_to_the_end(server)
        lines.extend(text.split("\n"))

    async with connected(server, tmp_path) as connection:
        end = await run_job(connection, job(), output, state_dir=str(server.root / "state"))
    assert (end.exit_code, lines) == (3, ["first line é", "last line", "no end of line"])
    assert (server.root / "begun").read_text().count("begin") == 1
    assert server.num_connections > 1


async def test_a_later_run_finds_the_job(server: Server, tmp_path: Path) -> None:
    """Also one whose first run was killed; it is not begun twice."""
    state = str(server.root / "state")
    async with connected(server, tmp_path) as first:
        assert (await first.run(job().start("ab" * 8, state))).stdout == "started\n"
    assert (server.root / "state" / "jobs" / "1-test").stat().st_mode & 0o777 == 0o700
    async with connected(server, tmp_path) as second:
        assert (await second.run(job().start("ab" * 8, state))).stdout == "running\n"
        end = await run_job(second, job(), lambda _text: run_to_the_end(server), state_dir=state)
    assert end.exit_code == 3
    assert (server.root / "begun").read_text().count("begin") == 1


async def test_a_job_that_was_killed_has_no_exit_code(
    server: Server, connection: Connection
) -> None:
    """As after a reboot; it can be begun again."""
    import psutil

    state = str(server.root / "state")

    def kill(_text: str) -> None:
        for process in psutil.process_iter():
            try:
                if process.cwd() == str(server.root) and process.pid != os.getpid():
                    process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue

    known: dict[str, str] = {}
    with pytest.raises(StepFailed, match="without an exit code"):
        await run_job(connection, job(), kill, state_dir=state, known=known)
    run_to_the_end(server)
    end = await run_job(connection, job(), lambda _text: None, state_dir=state, known=known)
    assert end.exit_code == 3


async def test_time_outs_leave_the_job_alone(server: Server, connection: Connection) -> None:
    """One for all of it, one for silence."""
    state = str(server.root / "state")
    with pytest.raises(StepFailed, match="took more than"):
        await run_job(connection, job(timeout_s=0.0), lambda _text: None, state_dir=state)
    slow = Job("1-test", job().command, stall_s=0.0)
    with pytest.raises(StepFailed, match="printed nothing"):
        await run_job(connection, slow, lambda _text: None, state_dir=state)
    run_to_the_end(server)
    rc = server.root / "state" / "jobs" / "1-test" / "rc"
    await until(rc.exists)
    assert rc.read_text() == "3\n"


async def test_much_output_is_read_in_parts(server: Server, connection: Connection) -> None:
    """All of it, and nothing twice."""
    texts: list[str] = []
    end = await run_job(connection, job("much"), texts.append, state_dir=str(server.root / "s"))
    assert (end.exit_code, sum(map(len, texts))) == (0, 700_000)


async def test_a_folder_of_somebody_else_is_refused(
    server: Server, connection: Connection, tmp_path: Path
) -> None:
    """A link in the job's place leads nowhere."""
    jobs = server.root / "s" / "jobs"
    jobs.mkdir(parents=True)
    (tmp_path / "victim").mkdir()
    (jobs / "1-test").symlink_to(tmp_path / "victim")
    with pytest.raises(StepFailed, match="does not start"):
        await run_job(connection, job("ends"), lambda _text: None, state_dir=str(server.root / "s"))
    assert not list((tmp_path / "victim").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder to somebody else")
async def test_a_folder_that_another_user_owns_is_refused(
    server: Server, connection: Connection
) -> None:
    """What lies in it would be run as root."""
    folder = server.root / "s" / "jobs" / "1-test"
    folder.mkdir(parents=True)
    os.chown(folder, 65534, 65534)
    with pytest.raises(StepFailed, match="does not start") as failed:
        await run_job(connection, job("ends"), lambda _text: None, state_dir=str(server.root / "s"))
    assert "is not ours" in failed.value.tail[0]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("drop", ["before", "cut", "after"])
async def test_the_end_of_an_earlier_start_is_not_taken_for_this_one(
    drop: str, server: Server, connection: Connection
) -> None:
    """Where the connection breaks as the job is started once more, and before its script has come."""
    state = str(server.root / "state")
    run_to_the_end(server)
    known: dict[str, str] = {}
    await run_job(connection, job(), lambda _text: None, state_dir=state, known=known)
    server.fault(Fault("job_start", drop=drop))  # type: ignore[arg-type]
    if drop == "after":
        end = await run_job(connection, job(), lambda _text: None, state_dir=state, known=known)
        assert end.exit_code == 3
    else:
        with pytest.raises(OutcomeUnknown):
            await run_job(connection, job(), lambda _text: None, state_dir=state, known=known)
    begun = (server.root / "begun").read_text().count("begin")
    assert begun == (2 if drop == "after" else 1)


async def test_nothing_is_begun_by_what_was_seen_before_an_end(
    server: Server, connection: Connection
) -> None:
    """A job of another run has ended since: whoever wanted to start it looks again first."""
    state = str(server.root / "state")
    run_to_the_end(server)
    await run_job(connection, job(), lambda _text: None, state_dir=state)
    known: dict[str, str] = {}
    with pytest.raises(EndedMeanwhile):
        await run_job(connection, job(), lambda _text: None, state_dir=state, known=known)
    assert (server.root / "begun").read_text().count("begin") == 1
    await run_job(connection, job(), lambda _text: None, state_dir=state, known=known)
    assert (server.root / "begun").read_text().count("begin") == 2


async def test_who_looks_at_a_job_keeps_nobody_from_starting_it(
    server: Server, connection: Connection
) -> None:
    """A look has its lock for a moment, and that is no job that runs."""
    state = str(server.root / "state")
    folder = server.root / "state" / "jobs" / "1-test"
    folder.mkdir(parents=True)
    run_to_the_end(server)
    looking = await asyncio.create_subprocess_exec("flock", str(folder / "lock"), "sleep", "0.3")
    await until(lambda: is_locked(folder / "lock"))
    assert (await connection.run(job().start("ab" * 8, state))).stdout == "started\n"
    await looking.wait()


def is_locked(path: Path) -> bool:
    """Say whether somebody has a lock of a file."""
    if not path.exists():
        return False
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
