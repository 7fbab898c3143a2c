"""Whole runs: questions, locks, exit codes, several servers side by side."""

from __future__ import annotations

import asyncio
import io
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from typing_extensions import override

from pocqueue.deploy import begin, runner, verify
from pocqueue.deploy.begin import Options
from pocqueue.deploy.conf import Conf
from pocqueue.deploy.engine import Plan, Step
from pocqueue.deploy.facts.account import account_address
from pocqueue.deploy.host_key import fingerprint_of
from pocqueue.deploy.journal import STILL_THERE
from pocqueue.deploy.lock import local_lock
from pocqueue.deploy.runner import deploy, dry_run, rollback, run_all, status
from pocqueue.deploy.words import Command, Secret
from tests.deploy.confs import PASSWORD, conf
from tests.deploy.server import Fault, Server, serving
from tests.deploy.steps_of_tests import HasFile, tree, with_make_script, with_scripts
from tests.support.waiting import until


@asynccontextmanager
async def serving_with_sudo(folder: Path) -> AsyncIterator[Server]:
    """Run a server within the block that has nothing but the system's programs, and a sudo that asks nothing."""
    async with serving(folder) as server:
        bin_dir = folder / "bin"
        bin_dir.mkdir()
        sudo = bin_dir / "sudo"
        sudo.write_text('#!/bin/sh\nshift\nexec "$@"\n')
        sudo.chmod(0o755)
        server.env["PATH"] = f"{bin_dir}:/usr/sbin:/usr/bin:/sbin:/bin"
        yield server


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server of the test's own."""
    async with serving_with_sudo(tmp_path) as server:
        yield server


STEPS: list[Step] = [HasFile("a", 1), HasFile("b", 1, is_final=True)]


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps for tests instead of ours, and no look at a whole server."""
    with_make_script(monkeypatch)

    async def no_checks(*_args: Any) -> tuple[()]:
        return ()

    monkeypatch.setattr(begin, "all_steps", lambda _conf, **_options: STEPS)
    monkeypatch.setattr(runner, "look_at_server", no_checks)


def node(server: Server, folder: Path, **changes: str | None) -> Conf:
    """Return the conf of a server."""
    nodes = folder / "nodes"
    nodes.mkdir(exist_ok=True)
    where = {"SERVER_IP": "127.0.0.1", "SSH_PORT": str(server.port), "SSH_KEY": str(server.key)}
    return conf(nodes, **where | changes)


class Run:
    """Runs with answers, and what came of them."""

    def __init__(self, server: Server, *answers: str, **options: Any) -> None:
        self.questions: list[str] = []
        self.console = io.StringIO()
        self._answers = list(answers)
        options.setdefault("ask", self._ask)
        # No node is made here that could be verified.
        options.setdefault("last", 1)
        self.options = Options(
            console=self.console,
            retry_delays_s=(0, 0.05, 0.2),
            state_dir=str(server.root / "state"),
            **options,
        )

    async def _ask(self, question: str, *, is_hidden: bool = False) -> str:
        assert is_hidden == ("password" in question)
        self.questions.append(question)
        return self._answers.pop(0)

    @property
    def text(self) -> str:
        """What the console has."""
        return self.console.getvalue()

    async def __call__(self, *confs: Conf, work: Any = deploy) -> int:
        return await run_all(confs, self.options, work)


async def test_a_run_asks_and_does_what_it_says(server: Server, tmp_path: Path) -> None:
    """The host key once, then whether to begin; the second run changes nothing."""
    one = node(server, tmp_path)
    run = Run(server, "yes", "yes")
    assert await run(one) == 0
    assert fingerprint_of(server.host_key) in run.questions[0]
    assert "proceed" in run.questions[1]
    assert "CANNOT BE UNDONE: file b" in run.text
    assert "******** (21 chars)" in run.text
    assert (server.root / "runs").read_text() == "a\nb\n"
    assert "completed successfully" not in run.text
    # Nothing has a secret; all that is private is so.
    log = one.logs / "quick-newton_latest.log"
    assert log.read_text().count("[OK] file b: there") == 1
    for path in [*one.folder.rglob("*"), *one.logs.rglob("*")]:
        assert PASSWORD not in path.read_text(), path
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077 or path.name == ".gitignore", path
    assert (one.folder / ".gitignore").read_text() == "*\n"
    before = tree(server.root)
    again = Run(server, ask=None, is_confirmed=True)
    assert await again(one) == 0
    assert "[EXEC]" not in again.text
    assert "[OK] file" not in again.text
    # The lock's own file has the name of the run.
    (server.root / "state" / "lock.who").unlink()
    after = Run(server, ask=None, is_confirmed=True)
    assert await after(one, work=status) == 0
    assert await after(one, work=dry_run) == 0
    assert "Nothing was changed." in after.text
    assert before != tree(server.root)  # lock.who is away
    assert not (server.root / "state" / "lock.who").exists()


async def test_what_is_so_is_read_once(server: Server, tmp_path: Path) -> None:
    """By all steps together, under the lock that keeps other runs away; once more where a question stood, as that may take days."""
    one = node(server, tmp_path, SSH_HOST_KEY=fingerprint_of(server.host_key))
    assert await Run(server, is_confirmed=True)(one) == 0
    for run, num_looks in ((Run(server, is_confirmed=True), 1), (Run(server, "yes"), 2)):
        server.commands.clear()
        assert await run(one) == 0
        assert "[EXEC]" not in run.text
        assert server.commands.count("ls") == num_looks
        [lock] = [n for n, line in enumerate(server.commands) if "lock.who" in line]
        assert server.commands.index("ls", lock) > lock


@pytest.mark.parametrize("answers", [("yes", "no"), ("yes", "y"), ("yes", "YES"), ("yes", "")])
async def test_only_yes_begins(answers: tuple[str, ...], server: Server, tmp_path: Path) -> None:
    """Anything else ends it well, with nothing done."""
    run = Run(server, *answers)
    assert await run(node(server, tmp_path)) == 0
    assert "Deployment cancelled by user" in run.text
    assert not list(server.root.iterdir())


async def test_nobody_confirms_a_key_who_is_not_there(server: Server, tmp_path: Path) -> None:
    """With --yes it has to be pinned or known; a pinned one is enough."""
    for options in ({"ask": None}, {"is_confirmed": True}):
        run = Run(server, **options)
        assert await run(node(server, tmp_path)) == 1
        assert f"SSH_HOST_KEY={fingerprint_of(server.host_key)}" in run.text
        assert not run.questions
    refused = Run(server, "no")
    assert await refused(node(server, tmp_path)) == 1
    assert not list(server.root.iterdir())
    nobody = Run(server, ask=None)
    pinned = node(server, tmp_path, SSH_HOST_KEY=fingerprint_of(server.host_key))
    assert await nobody(pinned) == 2
    assert "--yes" in nobody.text
    assert not list(server.root.iterdir())
    assert await Run(server, ask=None, is_confirmed=True)(pinned) == 0


async def test_a_disk_s_serial_is_typed_again(server: Server, tmp_path: Path) -> None:
    """Also with --yes; another one stops the run, and without a terminal it is refused."""
    pinned = node(server, tmp_path, SSH_HOST_KEY=fingerprint_of(server.host_key))
    run = Run(server, "other", is_confirmed=True, format_serial="7f3a")
    assert await run(pinned) == 0
    assert "will be lost" in run.questions[0]
    assert "nothing was done" in run.text
    nobody = Run(server, ask=None, is_confirmed=True, format_serial="7f3a")
    assert await nobody(pinned) == 2
    assert not list(server.root.iterdir())
    assert await Run(server, "7f3a", is_confirmed=True, format_serial="7f3a")(pinned) == 0


class Destroys(HasFile):
    """A step by which a disk's data is lost."""

    @override
    def plan(self, facts: bool) -> Plan:
        return replace(super().plan(facts), destroys="/dev/vdc 1.8T X serial 7f3a, 1,979 bytes")


async def test_a_disk_is_shown_before_its_serial_is_typed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Path, size and model: a serial alone tells nobody which disk it is."""
    monkeypatch.setattr(begin, "all_steps", lambda _conf, **_options: [Destroys("a", 1)])
    pinned = node(server, tmp_path, SSH_HOST_KEY=fingerprint_of(server.host_key))
    run = Run(server, "no", is_confirmed=True, format_serial="7f3a")
    assert await run(pinned) == 0
    assert "all data of /dev/vdc 1.8T X serial 7f3a, 1,979 bytes will be lost" in run.questions[0]
    assert not (server.root / "runs").exists()


async def test_a_failure_says_how_to_go_on(server: Server, tmp_path: Path) -> None:
    """The step, the last lines, the command; exit code 1, and no success."""
    pinned = node(server, tmp_path, SSH_HOST_KEY=fingerprint_of(server.host_key))
    server.fault(Fault("make", instead=9, prints=b"disk\x1b[2J is full\n[OK] all done\n"))
    run = Run(server, is_confirmed=True)
    assert await run(pinned) == 1
    lines = [line.split("] ", 1)[1] for line in run.text.splitlines()]
    assert lines[-5:-1] == [
        "[ERROR] file a: ended with exit code 9.",
        "[ERROR]   | disk is full",
        "[ERROR]   | [OK] all done",
        f"[ERROR] STOP. What is done stays done; when this is mended, go on with: pocqueue deploy run {pinned.path}",
    ]
    assert not any(line.startswith("[OK] file") for line in lines)


async def test_one_that_fails_does_not_hold_up_the_others(server: Server, tmp_path: Path) -> None:
    """Lines have the node's name; the code is 1. Both at once are two runs on one server otherwise: the second gets 3."""
    pin = fingerprint_of(server.host_key)
    one = node(server, tmp_path, SSH_HOST_KEY=pin)
    other = node(server, tmp_path, KEY_NAME="other", SSH_HOST_KEY="SHA256:" + "A" * 43)
    run = Run(server, is_confirmed=True)
    assert await run(one, other) == 1
    assert "quick-newton [" in run.text
    assert any(line.startswith("other [") and "[ERROR]" in line for line in run.text.splitlines())
    assert (server.root / "runs").read_text() == "a\nb\n"


async def test_eight_servers_go_through_all_phases_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run waits for another one's: each phase ends on any of them only when it has begun on all, by a command that runs there."""
    phases = range(1, verify.PHASE)
    meets = 'echo "$1" >> begun; until [ -e "go-$1" ]; do sleep 0.02; done; touch "$1"\n'
    with_scripts(monkeypatch, {"make": meets})
    steps: list[Step] = [HasFile(f"{phase}", phase, by_job=phase % 2 == 0) for phase in phases]
    monkeypatch.setattr(begin, "all_steps", lambda _conf, **_options: steps)
    before, after = asyncio.Barrier(8), asyncio.Barrier(8)

    async def look(*_args: Any) -> tuple[()]:
        await before.wait()
        return ()

    async def look_again(*_args: Any, **_options: Any) -> None:
        await after.wait()

    monkeypatch.setattr(runner, "look_at_server", look)
    monkeypatch.setattr(verify, "verify_node", look_again)
    async with AsyncExitStack() as stack:
        servers, confs = [], []
        for number in range(8):
            folder = tmp_path / f"{number}"
            folder.mkdir()
            server = await stack.enter_async_context(serving_with_sudo(folder))
            pin = fingerprint_of(server.host_key)
            changes = {"KEY_NAME": f"node{number}", "SSH_HOST_KEY": pin}
            servers.append(server)
            one = node(server, folder, **changes)
            # For the report: no wallet is made here.
            one.folder.mkdir(parents=True)
            (one.folder / "warm_address.txt").write_text(account_address(one.account_pubkey))
            confs.append(one)
        run = Run(servers[0], is_confirmed=True, last=verify.PHASE)
        # Of each server's own root, where its commands begin: they are on one machine here.
        run.options = replace(run.options, state_dir="state")
        running = asyncio.create_task(run(*confs))
        begun = [server.root / "begun" for server in servers]

        def has_begun(phase: str) -> bool:
            return running.done() or all(
                path.exists() and phase in path.read_text().split() for path in begun
            )

        for phase in map(str, phases):
            await until(partial(has_begun, phase))
            assert not running.done(), run.text
            for server in servers:
                (server.root / f"go-{phase}").touch()
        assert await running == 0, run.text
    assert run.text.count("Deployment completed successfully") == 8


async def test_a_server_or_a_folder_in_use_is_left_alone(server: Server, tmp_path: Path) -> None:
    """Exit code 3, and who has it."""
    pin = fingerprint_of(server.host_key)
    one = node(server, tmp_path, SSH_HOST_KEY=pin)
    one.folder.mkdir(parents=True)
    with local_lock(one.folder):
        run = Run(server, is_confirmed=True)
        assert await run(one) == 3
    hold = asyncio.Event()
    server.fault(Fault("make", wait=hold))
    first, second = Run(server, is_confirmed=True), Run(server, is_confirmed=True)
    running = asyncio.create_task(first(one))
    await until(lambda: "[EXEC]" in first.text)
    other = node(server, tmp_path, KEY_NAME="other", SSH_HOST_KEY=pin)
    assert await second(other) == 3
    assert "process" in second.text
    assert not (server.root / "runs").exists()
    hold.set()
    assert await running == 0


async def test_a_question_holds_up_no_other_server(server: Server, tmp_path: Path) -> None:
    """It stands until the other one is done."""
    one = node(server, tmp_path)
    other = node(server, tmp_path, KEY_NAME="other", SSH_HOST_KEY=fingerprint_of(server.host_key))
    run = Run(server, ask=None)

    async def ask(question: str, *, is_hidden: bool = False) -> str:
        assert "is SHA256:" in question
        assert not is_hidden
        await until(lambda: "other [" in run.text and "Nothing was changed." in run.text)
        return "yes"

    run.options = replace(run.options, ask=ask)
    assert await run(one, other, work=dry_run) == 0
    assert run.text.count("Nothing was changed.") == 2


async def test_a_log_that_cannot_be_written_stops_its_server(
    server: Server, tmp_path: Path
) -> None:
    """With a sentence."""
    (tmp_path / "logs").write_text("")
    run = Run(server, is_confirmed=True)
    assert await run(node(server, tmp_path)) == 1
    assert "[ERROR] The log " in run.text
    assert not list(server.root.iterdir())


async def test_what_a_conf_names_is_looked_at_before_a_connection(
    server: Server, tmp_path: Path
) -> None:
    """The password, which is asked for, and the profile; no line says before that all is well."""
    pin = fingerprint_of(server.host_key)
    silent = node(server, tmp_path, SSH_HOST_KEY=pin, KEYRING_PASSWORD=None)
    (tmp_path / "nodes" / "own.json").write_text("{}")
    broken = node(server, tmp_path, SSH_HOST_KEY=pin, NODE_CONFIG_PROFILE="own.json")
    for one, answers, sentence in (
        (silent, None, "KEYRING_PASSWORD is not known"),
        (silent, ("it's short",), "allowed: no ' and no"),
        (silent, (PASSWORD, PASSWORD[:-1]), "the second time"),
        (broken, (), "is no list of nodes"),
    ):
        run = Run(server, *(answers or ()), **({"ask": None} if answers is None else {}))
        assert await run(one, work=status) == 2
        assert sentence in run.text
        assert "[OK]" not in run.text
        assert not server.commands
    run = Run(server, PASSWORD, PASSWORD, "yes")
    assert await run(silent) == 0
    assert f"******** ({len(PASSWORD)} chars)" in run.text
    assert PASSWORD not in run.text
    # What is taken back needs none.
    assert await Run(server, "yes")(silent, work=rollback) == 0


async def test_what_was_added_is_taken_back(server: Server, tmp_path: Path) -> None:
    """The last first, after a yes; what could not be stays to be taken back, and nothing is taken back twice."""
    pinned = node(server, tmp_path, SSH_HOST_KEY=fingerprint_of(server.host_key))
    assert await Run(server, is_confirmed=True)(pinned) == 0
    no = Run(server, "no")
    assert await no(pinned, work=rollback) == 0
    assert "remove it" in no.text
    assert (server.root / "runs").read_text() == "a\nb\n"
    server.fault(Fault("unmake b", instead=STILL_THERE, prints=b"b was changed since\n"))
    server.fault(Fault("unmake a", instead=9))
    failed = Run(server, "yes")
    assert await failed(pinned, work=rollback) == 1
    assert "[OK] file" not in failed.text
    assert "[WARN] file b: not taken back (remove it): b was changed since" in failed.text
    assert f"go on with: pocqueue deploy rollback {pinned.path}" in failed.text
    server.fault(Fault("unmake b", instead=STILL_THERE))
    assert await Run(server, "yes")(pinned, work=rollback) == 1
    assert (server.root / "runs").read_text() == "a\nb\nnot a\n"
    assert await Run(server, "yes")(pinned, work=rollback) == 0
    assert (server.root / "runs").read_text() == "a\nb\nnot a\nnot b\n"
    nothing = Run(server)
    assert await nothing(pinned, work=rollback) == 0
    assert "[SKIP]" in nothing.text


async def test_sudo_that_asks_is_told(server: Server, tmp_path: Path) -> None:
    """The command to type, without a password; with the right one it goes on, with a wrong one it does not."""
    bin_dir = Path(server.env["PATH"].partition(":")[0])
    (bin_dir / "id").write_text('#!/bin/sh\n[ "$1" = -u ] && echo 1000 || echo tester\n')
    (bin_dir / "sudo").write_text(
        '#!/bin/sh\n[ "$1" != -n ] || exit 1\nread -r p\n[ "$p" = right ] || exit 1\nshift 3\nexec "$@"\n'
    )
    for name in ("id", "sudo"):
        (bin_dir / name).chmod(0o755)
    pinned = node(server, tmp_path, SSH_HOST_KEY=fingerprint_of(server.host_key))
    run = Run(server, is_confirmed=True)
    assert await run(pinned) == 1
    assert "--ask-sudo" in run.text
    wrong = Run(server, is_confirmed=True, sudo_password=Secret("SUDO", "wrong one"))
    assert await wrong(pinned) == 1
    assert "not taken" in wrong.text
    right = Run(server, is_confirmed=True, sudo_password=Secret("SUDO", "right"))
    assert await right(pinned) == 0
    assert "right" not in "".join(server.commands)


class AsRoot(HasFile):
    """A step whose command runs as root."""

    @override
    def plan(self, facts: bool) -> Plan:
        plan = super().plan(facts)
        return replace(plan, actions=(Command((self.file, "1", "0"), script="make", sudo=True),))


async def test_sudo_that_denies_one_command_is_told(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to allow; what was done stays, what comes after is not begun."""
    monkeypatch.setattr(
        begin, "all_steps", lambda _conf, **_options: [HasFile("a", 1), AsRoot("b", 1)]
    )
    bin_dir = Path(server.env["PATH"].partition(":")[0])
    (bin_dir / "id").write_text('#!/bin/sh\n[ "$1" = -u ] && echo 1000 || echo tester\n')
    (bin_dir / "id").chmod(0o755)
    # In sudo's words, the script and all.
    (bin_dir / "sudo").write_text(
        '#!/bin/sh\nshift\ncase "$*" in *" make "*)\n'
        "echo \"Sorry, user tester is not allowed to execute '$*' as root on host.\" >&2; exit 1 ;; esac\n"
        'exec "$@"\n'
    )
    pinned = node(server, tmp_path, SSH_HOST_KEY=fingerprint_of(server.host_key))
    run = Run(server, is_confirmed=True)
    assert await run(pinned) == 1
    assert "[ERROR] file b: ended with exit code 1." in run.text
    assert "echo 'ubuntu ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/pocqueue" in run.text
    assert (server.root / "runs").read_text() == "a\n"


class Optional(HasFile):
    """A step without which a run goes on."""

    is_optional = True


async def test_a_run_goes_on_without_what_is_optional(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a warning, and no word of success for it; a later phase does not ask for it either."""
    steps = [Optional("a", 1, makes=False), HasFile("b", 2)]
    monkeypatch.setattr(begin, "all_steps", lambda _conf, **_options: steps)
    pinned = node(server, tmp_path, SSH_HOST_KEY=fingerprint_of(server.host_key))
    run = Run(server, is_confirmed=True, last=2)
    assert await run(pinned) == 0
    assert "[OK] file a" not in run.text
    assert "[OK] file b" in run.text
    assert "[WARN] file a: was done, but is not as it should be: missing." in run.text
    assert await Run(server, is_confirmed=True, first=2, last=2)(pinned) == 0


async def test_secrets_that_git_keeps_are_told(server: Server, tmp_path: Path) -> None:
    """By name: the folders are ignored, but what was added before is kept, and goes with every push."""
    one = node(server, tmp_path)
    one.path.write_text("KEYRING_PASSWORD=x")
    for words in (("init", "-q"), ("add", "-f", "nodes/node1.conf")):
        git = await asyncio.create_subprocess_exec("git", "-C", str(tmp_path), *words)
        assert await git.wait() == 0
    run = Run(server, "yes", "yes")
    assert await run(one) == 0
    assert f"[WARN] git keeps {one.path}, which has secrets" in run.text
    listed = await asyncio.create_subprocess_exec(
        *("git", "-C", str(tmp_path), "status", "--porcelain", "--", "nodes", "logs"),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await listed.communicate()
    assert b"quick-newton" not in said
