"""Scripts that read standard input, where the connection breaks in between: nothing of it is taken for all of it."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from pocqueue.deploy.remote_job import Job
from pocqueue.deploy.words import Command, whole
from tests.support.waiting import until

FAKES = Path(__file__).parent / "stack" / "fakes"
NEW = "one\ntwo\n"


def start(command: Command) -> subprocess.Popen[bytes]:
    """Start a command here, which waits for its standard input."""
    return subprocess.Popen(
        command.argv(),
        env=os.environ | {"PATH": f"{FAKES}:{os.environ['PATH']}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run(command: Command, given: bytes) -> int:
    """Run a command here; return its exit code."""
    process = start(command)
    process.communicate(given, timeout=30)
    return process.returncode


@pytest.mark.parametrize(
    ("script", "words", "name"),
    [
        ("stack_change", ("env", "."), "pocqueue.env"),
        ("stack_change", ("unit", ".", "a.service"), "a.service"),
        ("put_file", ("./file", "600"), "file"),
        ("monitoring", ("put", ".", "prometheus.yml"), "prometheus.yml"),
    ],
)
def test_a_file_stays_where_the_new_one_does_not_arrive(
    script: str, words: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    """Nothing of it, or a part; one that an earlier try left behind is in nobody's way."""
    here = tuple(str(tmp_path / w) if w[0] == "." else w for w in words)
    file = tmp_path / name
    file.write_text("good")
    command = Command(here, whole(NEW), script=script)
    for cut in (0, 10, 65, len(command.input()) - 1):
        assert run(command, command.input()[:cut]) == 65
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert file.read_text() == "good"
    (tmp_path / f"{name}.pocqueue-tmp").symlink_to(tmp_path / "elsewhere")
    assert run(command, command.input()) == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert file.read_text() == NEW


def job() -> Job:
    """Return a job, which looks at one that was never there."""
    return Job("5-sync", Command((".", "none", "0", "0"), script="job_look"))


async def test_a_job_whose_script_does_not_arrive_holds_nothing_up(tmp_path: Path) -> None:
    """Its lock is free all the time, and what is not whole never runs."""
    folder = tmp_path / "jobs" / "5-sync"
    command = job().start("ab" * 8, str(tmp_path))
    given = command.input()
    waits = start(command)
    assert waits.stdin is not None
    waits.stdin.write(given[:100])
    waits.stdin.flush()
    await until(lambda: list(folder.glob("cmd.new*")))
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    waits.communicate(timeout=30)
    assert waits.returncode == 65
    assert [path.name for path in folder.iterdir()] == ["lock"]
    assert run(command, b"") == 65
    assert [path.name for path in folder.iterdir()] == ["lock"]


async def test_a_cut_start_is_not_taken_for_the_run_before(tmp_path: Path) -> None:
    """That one ended well, this one never began: what is there has the mark of that one."""
    marks = ("ab" * 8, "cd" * 8)
    first = job().start(marks[0], str(tmp_path))
    second = job().start(marks[1], str(tmp_path), known=marks[0])
    look = job().look(0, str(tmp_path))

    def state() -> str:
        return subprocess.run(look.argv(), capture_output=True, text=True, check=True).stdout

    def has_ended(mark: str) -> bool:
        head = state().split("\n")[0].split()
        return head[:2] == ["ended", "0"] and head[3] == mark

    assert run(first, first.input()) == 0
    await until(lambda: has_ended(marks[0]))
    assert run(second, second.input()[:-1]) == 65
    assert has_ended(marks[0])
    assert run(second, second.input()) == 0
    await until(lambda: has_ended(marks[1]))
