"""An agent as its owner starts it: a real process, a real socket, a real sandbox."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pocqueue.hosts.agent.agent import LONGEST_WAIT_S, wait_s
from pocqueue.hosts.wire import (
    Bye,
    CloseCode,
    Drain,
    Draining,
    ErrorText,
    Hello,
    Job,
    JobCancel,
    JobRefused,
    JobResult,
    JobStarted,
    Limits,
    Register,
    Resume,
    SelfTest,
)
from tests.support.commands import without_settings
from tests.support.hosts_server import HostsServer, hosts_server
from tests.support.processes import with_us
from tests.support.sandbox_process import need
from tests.support.small_disk import fill, small_disk
from tests.support.waiting import until

TOKEN = "token-one"


@pytest.fixture
async def server() -> AsyncIterator[HostsServer]:
    """A server that takes the token `token-one`."""
    async with hosts_server() as server:
        yield server


class Agents:
    """Starts agents on one state folder."""

    def __init__(self, folder: Path, server: HostsServer) -> None:
        self.folder, self.server = folder, server
        self.log = folder / "agent.log"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(
        self, *options: str, token: str | None = TOKEN, **env: str
    ) -> subprocess.Popen[bytes]:
        """Start one; its token is in the environment."""
        variables = {
            "POCQUEUE_STATE_DIR": str(self.folder),
            "HN_ENDPOINT": self.server.endpoint,
            # Whatever else there is on this machine.
            "HN_SANDBOX": "bubblewrap",
        }
        if token is not None:
            variables["HN_NODE_TOKEN"] = token
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                with_us(sys.executable, "-m", "pocqueue", "agent", *options),
                env=without_settings() | variables | {"HN_COMMANDS": "sh,sleep,echo"} | env,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def said(self) -> str:
        """Return what they have written."""
        return self.log.read_text()


@contextlib.contextmanager
def started(agents: Agents) -> Iterator[Agents]:
    """End the agents with the block."""
    try:
        yield agents
    finally:
        for process in agents.processes:
            process.kill()
            process.wait()


@pytest.fixture
def agents(tmp_path: Path, server: HostsServer) -> Iterator[Agents]:
    """Agents that end with the test."""
    with started(Agents(tmp_path, server)) as found:
        yield found


def job(*argv: str, job_id: str = "job-1", attempt: int = 1, seconds: float = 600) -> Job:
    """Return a command to run."""
    return Job(
        id=job_id,
        kind="command",
        argv=argv,
        attempt=attempt,
        limits=Limits(seconds=seconds, memory_mib=512, disk_mib=16),
    )


async def ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process; return its exit code."""
    await until(lambda: process.poll() is not None)
    return process.returncode


async def test_it_registers_with_a_key_of_its_own(server: HostsServer, agents: Agents) -> None:
    """The server verifies the signature; the key is its owner's alone, and neither it nor the token is logged."""
    need("bwrap", "bubblewrap")
    agents.start("--endpoint", server.endpoint)
    said = await server.next(Register)
    assert (said.protocol, said.isolation) == (2, "bubblewrap")
    assert said.kinds == ("test", "command")
    await until(lambda: server.socket)
    key = agents.folder / "agent" / "127.0.0.1" / "node-key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    rows = {row.name: row for row in (await server.next(SelfTest)).rows}
    assert rows["sandbox"].state == "pass"
    assert rows["way"].state == "pass"
    assert "token-one" not in agents.said()
    assert "PRIVATE" not in agents.said()


async def test_a_job_runs_and_its_result_is_sent_once(server: HostsServer, agents: Agents) -> None:
    """Again after every reconnect until it is acknowledged, and never after that."""
    need("bwrap", "bubblewrap")
    server.acknowledges = False
    agents.start()
    await server.next(SelfTest)
    await server.send(job("sh", "-c", "echo out; exit 3"))
    started = await server.next(JobStarted)
    assert (started.id, started.attempt) == ("job-1", 1)
    result = await server.next(JobResult)
    assert (result.id, result.attempt, result.status) == ("job-1", 1, "failed")
    assert (result.exit_code, result.logs, result.truncated) == (3, "out\n", False)
    # The same job again, as Celery may deliver it twice.
    await server.send(job("sh", "-c", "echo again"))
    await server.stop()
    server.acknowledges = True
    await server.start()
    resumed = await server.next(Resume)
    assert [(ref.id, ref.attempt) for ref in resumed.jobs] == [("job-1", 1)]
    assert (await server.next(JobResult, 2)).logs == "out\n"
    await until(lambda: "the server has its result" in agents.said())
    await server.stop()
    await server.start()
    assert (await server.next(Resume, 2)).jobs == ()
    await server.next(SelfTest, 3)
    await server.send(job("sh", "-c", "echo again"))
    await server.send(job("echo", "other", job_id="job-2"))
    assert (await server.next(JobResult, 3)).id == "job-2"
    assert len(server.of(JobStarted)) == 2


async def test_a_killed_agent_loses_no_result(server: HostsServer, agents: Agents) -> None:
    """It comes back by its key, with the used token, and sends what was not acknowledged."""
    need("bwrap", "bubblewrap")
    server.acknowledges = False
    process = agents.start()
    await server.next(SelfTest)
    await server.send(job("echo", "kept"))
    await server.next(JobResult)
    process.kill()
    await ended(process)
    server.acknowledges = True
    process = agents.start()
    resumed = await server.next(Resume)
    assert resumed.node_id == "node-1"
    assert [(ref.id, ref.attempt) for ref in resumed.jobs] == [("job-1", 1)]
    assert (await server.next(JobResult, 2)).logs == "kept\n"
    await until(lambda: "the server has its result" in agents.said())
    process.kill()
    await ended(process)
    # Without any token now.
    agents.start(token=None)
    assert (await server.next(Resume, 2)).jobs == ()
    await server.next(SelfTest, 3)
    await server.send(job("echo", "other", job_id="job-2"))
    assert (await server.next(JobResult, 3)).id == "job-2"
    assert len(server.of(Register)) == 1


async def test_a_killed_agent_runs_what_it_had_again(server: HostsServer, agents: Agents) -> None:
    """What ran has died with it, or does when the next one starts; the server sees that it is gone and sends it again."""
    need("bwrap", "bubblewrap")
    mark = f"7{uuid.uuid4().int % 10**12}"
    process = agents.start()
    await server.next(SelfTest)
    await server.send(job("sleep", mark))
    await server.next(JobStarted)
    # At any moment from here on: the command has run, or bubblewrap is still at the sandbox.
    await until(lambda: _is_running(mark))
    process.kill()
    await ended(process)
    agents.start()
    assert (await server.next(Resume)).jobs == ()
    await until(lambda: not _is_running(mark))
    await server.next(SelfTest, 2)
    await server.send(job("echo", "second"))
    assert (await server.next(JobResult)).logs == "second\n"


async def test_a_full_disk_loses_no_result(server: HostsServer, tmp_path: Path) -> None:
    """It is said with what to do; the result is kept in memory until there is room, and sent then; so with the next one."""
    need("bwrap", "bubblewrap")
    with small_disk(tmp_path / "disk") as folder, started(Agents(folder, server)) as agents:
        agents.log = tmp_path / "agent.log"
        agents.start()
        await server.next(SelfTest)
        mark = f"5{uuid.uuid4().int % 10**12}"
        await server.send(job("sh", "-c", f"exec 2>/dev/null; sleep {mark}; echo done"))
        await until(lambda: _is_running(mark))
        filling = fill(folder)
        _end(mark)
        await until(lambda: "Make room on its disk; nothing is lost until then." in agents.said())
        assert server.of(JobResult) == []
        filling.unlink()
        assert (await server.next(JobResult)).logs == "done\n"
        await until(lambda: "the server has its result" in agents.said())
        # Full once the result is written, and before it is acknowledged: sent twice at most, run once.
        server.acknowledges = False
        await server.send(job("echo", "second", job_id="job-2"))
        await server.next(JobResult, 2)
        filling = fill(folder)
        server.acknowledges = True
        await server.stop()
        await server.start()
        await server.next(JobResult, 3)
        filling.unlink()
        await server.stop()
        await server.start()
        await until(lambda: agents.said().count("the server has its result") == 2)
        assert len(server.of(JobStarted)) == 2


async def test_a_lost_key_is_said(server: HostsServer, agents: Agents) -> None:
    """The node is not this machine's any more; a new token makes it another one."""
    process = agents.start(HN_SANDBOX="none")
    await server.next(SelfTest)
    process.kill()
    await ended(process)
    (agents.folder / "agent" / "127.0.0.1" / "node-key.pem").unlink()
    assert await ended(agents.start(HN_SANDBOX="none")) == 2
    assert "if the key is lost, register with a new token" in agents.said()
    server.tokens.add("token-two")
    agents.start(token="token-two", HN_SANDBOX="none")
    assert (await server.next(Register, 2)).token == "token-two"
    await server.next(SelfTest, 2)


async def test_a_job_goes_on_while_the_server_is_away(server: HostsServer, agents: Agents) -> None:
    """Its result waits; the agent comes back by itself."""
    need("bwrap", "bubblewrap")
    agents.start()
    await server.next(SelfTest)
    await server.send(job("sh", "-c", "sleep 1; echo done"))
    await server.next(JobStarted)
    await server.stop()
    await until(lambda: "job-1 ended" in agents.said().lower())
    await server.start()
    assert (await server.next(JobResult)).logs == "done\n"
    assert len(server.of(Hello)) == 2


async def test_a_told_agent_gives_back_what_it_has(server: HostsServer, agents: Agents) -> None:
    """SIGTERM: a bounded time for what runs, good-bye; exit code 0 and nothing left running."""
    need("bwrap", "bubblewrap")
    mark = f"6{uuid.uuid4().int % 10**12}"
    process = agents.start(HN_STOP_SECONDS="1")
    await server.next(SelfTest)
    await server.send(job("sleep", mark))
    await until(lambda: _is_running(mark))
    process.send_signal(signal.SIGTERM)
    await server.next(Draining)
    await server.next(Bye)
    assert await ended(process) == 0
    assert not _is_running(mark)
    assert server.of(JobResult) == []


async def test_a_told_agent_sends_what_ends_in_time(server: HostsServer, agents: Agents) -> None:
    """Takes nothing new meanwhile, and waits until it is acknowledged."""
    need("bwrap", "bubblewrap")
    mark = f"6{uuid.uuid4().int % 10**12}"
    process = agents.start(HN_STOP_SECONDS="600")
    await server.next(SelfTest)
    await server.send(job("sh", "-c", f"exec 2>/dev/null; sleep {mark}; echo done"))
    await until(lambda: _is_running(mark))
    process.send_signal(signal.SIGTERM)
    await server.next(Draining)
    await server.send(job("echo", "late", job_id="job-2"))
    assert (await server.next(JobRefused)).reason == "This machine is about to stop."
    _end(mark)
    assert (await server.next(JobResult)).logs == "done\n"
    await server.next(Bye)
    assert await ended(process) == 0


async def test_only_what_the_owner_allows_is_run(server: HostsServer, agents: Agents) -> None:
    """Another program, a path, a shell line, a network, another kind, another GPU: refused with the reason."""
    need("bwrap", "bubblewrap")
    agents.start(HN_COMMANDS="echo")
    await server.next(SelfTest)
    for number, argv in enumerate([("sh", "-c", "id"), ("/bin/echo", "x"), ("echo x; id",), ()], 1):
        await server.send(job(*argv, job_id=f"job-{number}"))
        refused = await server.next(JobRefused, number)
        assert refused.reason.startswith("The owner of this machine does not allow")
    await server.send(
        Job(
            id="job-5",
            kind="command",
            argv=("echo",),
            attempt=1,
            limits=Limits(seconds=5, network=True),
        )
    )
    assert "no network" in (await server.next(JobRefused, 5)).reason
    await server.send(Job(id="job-6", kind="container", image="x@sha256:0", attempt=1))
    assert "kind container" in (await server.next(JobRefused, 6)).reason
    await server.send(
        Job(
            id="job-7",
            kind="command",
            argv=("echo",),
            attempt=1,
            limits=Limits(seconds=5, memory_mib=64, disk_mib=16),
            gpus=("GPU-nobodys",),
        )
    )
    assert "GPU-nobodys" in (await server.next(JobRefused, 7)).reason
    assert server.of(JobStarted) == []


async def test_a_second_job_waits_for_nobody(server: HostsServer, agents: Agents) -> None:
    """A machine without GPUs does one at a time; the second is refused, the first can be cancelled."""
    need("bwrap", "bubblewrap")
    agents.start()
    await server.next(SelfTest)
    await server.send(job("sleep", "500"))
    await server.send(job("echo", "x", job_id="job-2"))
    assert "has 1 jobs already" in (await server.next(JobRefused)).reason
    await server.send(JobCancel(id="job-1", attempt=1))
    result = await server.next(JobResult)
    assert (result.status, result.id) == ("cancelled", "job-1")


async def test_a_job_that_takes_too_long_is_a_timeout(server: HostsServer, agents: Agents) -> None:
    """The agent ends it itself, and says so in its log."""
    need("bwrap", "bubblewrap")
    agents.start()
    await server.next(SelfTest)
    await server.send(job("sh", "-c", "echo begun; sleep 500", seconds=1))
    result = await server.next(JobResult)
    assert result.status == "timeout"
    assert "begun\n\n[The job was ended: it ran for more than 1 s.]" in result.logs


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (ErrorText.INVALID_TOKEN, CloseCode.REFUSED, "it may be too old: make another one"),
        (ErrorText.TOKEN_USED, CloseCode.REFUSED, "each is for one machine"),
        (ErrorText.TOKEN_EXPIRED, CloseCode.REFUSED, "use it within the hour"),
        (ErrorText.BANNED, CloseCode.BANNED, "ask its operator"),
        (ErrorText.INVALID_SIGNATURE, CloseCode.REFUSED, "use the endpoint that its page shows"),
    ],
)
async def test_what_only_a_person_can_change_ends_it(
    server: HostsServer, agents: Agents, text: ErrorText, code: CloseCode, words: str
) -> None:
    """One sentence, exit code 2."""
    server.refuses = text, code
    process = agents.start(HN_SANDBOX="none")
    assert await ended(process) == 2
    assert f"pocqueue: 127.0.0.1 says: {text}; " in agents.said()
    assert words in agents.said()
    assert "Traceback" not in agents.said()


async def test_a_refusal_in_other_words_is_final_by_its_code(
    server: HostsServer, agents: Agents
) -> None:
    """What the server says is shown; the same words with the code of a restart are waited for."""
    said = "This wallet is banned here"
    server.refuses = said, CloseCode.RESTART  # type: ignore[assignment]  # a sentence of a newer server
    process = agents.start(HN_SANDBOX="none")
    await until(
        lambda: f"No connection to {server.endpoint}: 127.0.0.1 says: {said}." in agents.said()
    )
    server.refuses = said, CloseCode.REFUSED  # type: ignore[assignment]
    assert await ended(process) == 2
    assert f"pocqueue: 127.0.0.1 says: {said}.\n" in agents.said()


async def test_a_drained_node_runs_jobs_again_when_it_is_taken_back(
    server: HostsServer, agents: Agents
) -> None:
    """It is the server that sends nothing while it drains: what it sends is run, on this connection and the next."""
    agents.start(HN_SANDBOX="none")
    await server.next(SelfTest)
    await server.send(Drain())
    await until(lambda: "nothing new comes until" in agents.said())
    await server.send(Job(id="job-1", kind="test", argv=("sleep", "0"), attempt=1))
    assert (await server.next(JobResult)).status == "completed"
    await server.stop()
    await server.start()
    await server.next(SelfTest, 2)
    await server.send(Job(id="job-2", kind="test", argv=("sleep", "0"), attempt=1))
    assert (await server.next(JobResult, 2)).id == "job-2"
    assert server.of(JobRefused) == []


async def test_what_passes_is_waited_for(server: HostsServer, agents: Agents) -> None:
    """A server that is not there yet, or cannot for now."""
    await server.stop()
    agents.start(HN_SANDBOX="none")
    await until(lambda: "Next attempt to connect" in agents.said())
    server.refuses = ErrorText.NOT_NOW, CloseCode.RESTART
    await server.start()
    await server.next(Register)
    server.refuses = None
    await until(lambda: server.socket)


async def test_the_newer_of_two_stays(server: HostsServer, agents: Agents) -> None:
    """A second agent on the same folder is told; one whose node was taken over by a copy of its key ends."""
    process = agents.start(HN_SANDBOX="none")
    await server.next(SelfTest)
    second = agents.start(HN_SANDBOX="none")
    assert await ended(second) == 2
    assert "is in use by another agent, and two would be the same node" in agents.said()
    assert server.socket is not None
    await server.socket.close(CloseCode.REPLACED)
    assert await ended(process) == 2
    assert "with a copy of its key" in agents.said()


async def test_without_a_sandbox_only_the_test_job_is_taken(
    server: HostsServer, agents: Agents
) -> None:
    """It is waited for, not run; the page can say why."""
    agents.start(HN_SANDBOX="none")
    said = await server.next(Register)
    assert (said.isolation, said.kinds) == ("none", ("test",))
    rows = {row.name: row for row in (await server.next(SelfTest)).rows}
    assert rows["sandbox"].state == "fail"
    assert "HN_SANDBOX=none" in rows["sandbox"].remedy
    await server.send(Job(id="job-1", kind="test", argv=("sleep", "0.2"), attempt=1))
    result = await server.next(JobResult)
    assert (result.status, result.exit_code) == ("completed", 0)
    assert result.seconds is not None
    assert result.seconds >= 0.2
    await server.send(job("echo", "x", job_id="job-2"))
    assert "kind command" in (await server.next(JobRefused)).reason


def test_thousands_do_not_come_back_at_once() -> None:
    """Full jitter: anything from nothing to a bound that doubles, up to half a minute."""
    assert [wait_s(n, lambda: 1.0) for n in (1, 2, 3, 4, 5, 6, 100)] == [
        *(1.0, 2.0, 4.0, 8.0, 16.0),
        LONGEST_WAIT_S,
        LONGEST_WAIT_S,
    ]
    assert wait_s(3, lambda: 0.0) == 0.0
    assert len({wait_s(5) for _ in range(20)}) > 10


def _end(mark: str) -> None:
    """End a job's `sleep`: the shell that waits for it goes on."""
    for pid in _processes_with(mark):
        os.kill(pid, signal.SIGKILL)


def _is_running(mark: str) -> bool:
    """Say whether a process has a word among its arguments."""
    return bool(_processes_with(mark))


def _processes_with(mark: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
