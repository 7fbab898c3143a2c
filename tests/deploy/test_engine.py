"""The engine: what is done is skipped, what is not is done and looked at again, and nothing is believed that was not seen."""

from __future__ import annotations

import io
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from typing_extensions import override

from pocqueue.deploy.engine import Host, LocalFile, Plan, Step, Upload, run_steps
from pocqueue.deploy.errors import DeployError, OutcomeUnknown, StepFailed, UnsafeDisk
from pocqueue.deploy.facts.parts import UnexpectedAnswer
from pocqueue.deploy.journal import Journal, Undo
from pocqueue.deploy.log import Log
from pocqueue.deploy.planning import plan_steps
from pocqueue.deploy.report import plan_lines
from pocqueue.deploy.words import Redactor, Secret
from tests.deploy.confs import PASSWORD, conf
from tests.deploy.server import Fault, Server, connected, serving
from tests.deploy.steps_of_tests import HasFile, tree, with_make_script

SECRET = Secret("KEYRING_PASSWORD", PASSWORD)


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server of the test's own."""
    async with serving(tmp_path) as server:
        yield server


@dataclass
class Here:
    """A test's host, and what its console has."""

    host: Host
    console: io.StringIO

    @property
    def lines(self) -> list[str]:
        """Return the log without times."""
        return [line.partition("] ")[2] for line in self.console.getvalue().splitlines()]

    async def run(self, steps: Sequence[Step], first: int = 0, last: int = 99) -> list[str]:
        """Run steps; return the lines that this wrote."""
        before = len(self.lines)
        now = lambda: "2026-01-02 03:04:05"  # noqa: E731
        await run_steps(self.host, steps, first=first, last=last, now=now)
        return self.lines[before:]


@asynccontextmanager
async def at(server: Server, folder: Path) -> AsyncIterator[Here]:
    """Be connected as a run is."""
    console = io.StringIO()
    node = conf(folder)
    node.folder.mkdir(exist_ok=True)
    journal = Journal.read(node.folder / "state.json", node.server_ip)
    async with connected(server, folder) as connection:
        out = Log(Redactor([SECRET]), console=console)
        yield Here(Host(node, connection, out, journal, str(server.root / "state")), console)


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script for tests beside ours."""
    with_make_script(monkeypatch)


THREE: list[Step] = [HasFile("a"), HasFile("b", 1, by_job=True), HasFile("c", 1, is_final=True)]


async def test_a_second_run_does_nothing(server: Server, tmp_path: Path) -> None:
    """The first does what its dry run has said, command for command, in lines of the seed's form."""
    async with at(server, tmp_path) as here:
        before = tree(server.root)
        planned = await plan_steps(here.host, THREE)
        assert [item.state for item in planned] == ["change"] * 3
        assert tree(server.root) == before
        shown = [action.shown() for item in planned if item.plan for action in item.plan.actions]
        lines = await here.run(THREE)
        assert [line for line in lines if line.startswith("[EXEC]")] == [
            f"[EXEC] Remote: {line}" for line in shown
        ]
        assert lines[3:7] == [
            *("[CHECK] file a...", "[EXEC] Remote: make.sh a 1 0", "[OUTPUT] making a"),
            "[OK] file a: there",
        ]
        done = tree(server.root)
        lines = await here.run(THREE)
        assert {line.split()[0] for line in lines} == {"[INFO]", "[CHECK]", "[SKIP]"}
        assert tree(server.root) == done
        assert [item.state for item in await plan_steps(here.host, THREE)] == ["skip"] * 3
    journal = Journal.read(tmp_path / "quick-newton" / "state.json", "203.0.113.7")
    assert list(journal.steps) == ["file a", "file b", "file c"]
    assert [undo.words for undo in journal.undos] == [("a",), ("b",), ("c",)]


@pytest.mark.parametrize("drop", ["before", "during", "after"])
async def test_a_run_that_is_cut_anywhere_goes_on(
    drop: str, server: Server, tmp_path: Path
) -> None:
    """At each command that a run sends: it ends by itself or by a second run as if nothing had been, each thing done once."""
    # What is no job is short: it has ended by the time that anybody has connected again.
    server.is_slow_to_let_in = True
    async with at(server, tmp_path) as here:
        await here.run(THREE)
    names = {path.name for path in server.root.iterdir()}
    num_commands = len(server.commands)
    assert num_commands >= 8
    for number in range(num_commands):
        for path in server.root.iterdir():
            if path.is_file():
                path.unlink()
        (server.root / "state" / "jobs" / "1-b" / "rc").unlink(missing_ok=True)
        server.faults[:] = [Fault("", after=number, drop=drop)]  # type: ignore[arg-type]
        async with at(server, tmp_path) as here:
            try:
                await here.run(THREE)
            except OutcomeUnknown:
                assert "[OK] file c: there" not in here.lines
                await here.run(THREE)
        assert {path.name for path in server.root.iterdir()} == names, number
        runs = (server.root / "runs").read_text().split()
        assert sorted(runs) == ["a", "b", "c"], number


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (HasFile("a", makes=False), "not as it should be"),
        (HasFile("a", makes=False, exit_code=7), "exit code 7"),
        (HasFile("a", makes=False, exit_code=7, by_job=True), "exit code 7"),
        (HasFile("a", needs="z"), "until z is there"),
    ],
)
async def test_nothing_is_believed_that_was_not_seen(
    step: Step, said: str, server: Server, tmp_path: Path
) -> None:
    """No exit code makes a step done; the run stops there, with the last lines, and without an OK."""
    async with at(server, tmp_path) as here:
        with pytest.raises(StepFailed, match=said) as raised:
            await here.run([step, HasFile("after")])
    assert not any(line.startswith("[OK]") for line in here.lines)
    assert not (server.root / "after").exists()
    if raised.value.exit_code_there:
        assert raised.value.tail == ("making a",)


async def test_what_cannot_be_taken_back_is_not_tried_again_by_itself(
    server: Server, tmp_path: Path
) -> None:
    """What can be is, once, where the server does not have it."""
    async with at(server, tmp_path) as here:
        server.fault(Fault("make", drop="before"))
        with pytest.raises(OutcomeUnknown):
            await here.run([HasFile("a", is_final=True)])
        assert not (server.root / "runs").exists()
        server.fault(Fault("make", drop="before"))
        lines = await here.run([HasFile("a")])
    assert lines[-1] == "[OK] file a: there"
    assert "[WARN]" in "".join(lines)


async def test_later_phases_need_the_earlier_ones(server: Server, tmp_path: Path) -> None:
    """`--from` and `--phase` do not jump over what is not done."""
    async with at(server, tmp_path) as here:
        with pytest.raises(StepFailed, match="phase 1 cannot begin"):
            await here.run(THREE, first=1)
        assert not (server.root / "runs").exists()
        await here.run(THREE, last=0)
        assert (server.root / "runs").read_text() == "a\n"
        await here.run(THREE, first=1)
    assert (server.root / "runs").read_text() == "a\nb\nc\n"


@dataclass(frozen=True)
class Refuses(HasFile):
    """A step that must not be done."""

    @override
    def plan(self, facts: bool) -> Plan:
        raise UnsafeDisk("/dev/vdc", ["It has data."])


class IsUnclear(HasFile):
    """A step whose look is not understood."""

    @override
    async def look(self, host: Host) -> bool:
        raise UnexpectedAnswer("lsblk", "?", "a disk")


async def test_an_answer_that_is_not_understood_stops_its_step_alone(
    server: Server, tmp_path: Path
) -> None:
    """The plan goes on with the others."""
    async with at(server, tmp_path) as here:
        planned = await plan_steps(here.host, [IsUnclear("x"), HasFile("a")])
    assert [item.state for item in planned] == ["stop", "change"]


async def test_a_plan_says_what_is_not_known_and_what_must_not_be(
    server: Server, tmp_path: Path
) -> None:
    """Each line, and their sum."""
    (server.root / "done").touch()
    steps = [HasFile("done"), HasFile("a", is_final=True), Refuses("x"), HasFile("y", 1, needs="a")]
    async with at(server, tmp_path) as here:
        lines = list(plan_lines(await plan_steps(here.host, steps)))
        with pytest.raises(UnsafeDisk):
            await here.run(steps)
    assert lines == [
        "PHASE 0  VALIDATION",
        "  skip     file done              there",
        "  change   file a                 make a   CANNOT BE UNDONE",
        "             make.sh a 1 0",
        "  stop     file x                 /dev/vdc is not formatted: It has data.",
        "PHASE 1  SERVER PREPARATION",
        "  unknown  file y                 until a is there",
        "PHASE 7  VERIFICATION",
        "  look     the node as it runs, and verification.txt here; every time",
        "1 step to change, 1 done, 1 unknown, 1 cannot be done. Nothing was changed.",
    ]


@dataclass(frozen=True)
class HasConfig:
    """A private file is there, and a note here."""

    path: Path
    note: Path
    phase: int = 0
    name: str = "config.env"

    async def look(self, host: Host) -> bool:
        return self.path.exists() and self.note.exists()

    def told(self, facts: bool) -> str:
        return str(facts)

    def is_done(self, facts: bool) -> bool:
        return facts

    def plan(self, facts: bool) -> Plan:
        content = ("export P='", SECRET, "'\n")
        return Plan(
            "write it",
            (
                Upload("config.env", str(self.path), content, 0o600),
                LocalFile(str(self.note), "noted\n", 0o600),
            ),
        )


async def test_secrets_are_in_their_file_alone(server: Server, tmp_path: Path) -> None:
    """Not in a line of the log, not in a command, not in the journal; the file is private."""
    path, note = server.root / "config.env", tmp_path / "note.txt"
    async with at(server, tmp_path) as here:
        step = HasConfig(path, note)
        [item] = await plan_steps(here.host, [step])
        assert PASSWORD not in repr(item) + "".join(plan_lines([item]))
        lines = await here.run([step])
    assert f"[EXEC] Upload: config.env -> {path}" in lines
    assert path.read_text() == f"export P='{PASSWORD}'\n"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(note.stat().st_mode) == 0o600
    state = tmp_path / "quick-newton" / "state.json"
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    for text in (here.console.getvalue(), state.read_text(), *server.commands):
        assert PASSWORD not in text


def test_a_journal_is_of_one_server(tmp_path: Path) -> None:
    """A broken one is not taken for an empty one; notes and undos come back as they were, each once."""
    path = tmp_path / "state.json"
    journal = Journal.read(path, "server")
    undo = Undo("fstab", "remove our line", "fstab", ("remove", "uuid"))
    journal.add_undo(undo)
    journal.add_undo(undo)
    journal.record(volume={"uuid": "u"})
    again = Journal.read(path, "server")
    assert (again.undos, again.get("volume"), again.get("none")) == ((undo,), {"uuid": "u"}, None)
    assert undo.command().shown() == "sudo -n fstab.sh remove uuid"
    with pytest.raises(DeployError, match="is about server"):
        Journal.read(path, "other")
    for text in ("{", "[]", '{"version": 2}'):
        path.write_text(text)
        with pytest.raises(DeployError):
            Journal.read(path, "server")
