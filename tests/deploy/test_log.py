"""The log of a run: the seed's lines, in a file of its own."""

from __future__ import annotations

import io
import re
import stat
from datetime import datetime
from pathlib import Path

import pytest
from typing_extensions import override

from pocqueue.deploy.errors import DeployError
from pocqueue.deploy.log import Level, LimitedOutput, Log
from pocqueue.deploy.words import Command, Redactor, Secret

WHEN = datetime(2025, 12, 24, 14, 30, 15).astimezone()
PASSWORD = "correct horse battery"


def write_some(log: Log) -> None:
    """Write a line of each kind."""
    log.check("Checking SSH connectivity...")
    log.command(Command(("keys", "add"), (Secret("KEYRING_PASSWORD", PASSWORD),), sudo=True))
    log.upload("config.env", "/mnt/ssd/gonka/deploy/join/config.env")
    log.output(f"line one {PASSWORD}\n[2025-01-01 00:00:00] [OK] forged\x1b[2J\n")
    log.output("\n")
    log.ok("done")


LINES = """\
[2025-12-24 14:30:15] [CHECK] Checking SSH connectivity...
[2025-12-24 14:30:15] [EXEC] Remote: sudo -n keys add < ‹KEYRING_PASSWORD›
[2025-12-24 14:30:15] [EXEC] Upload: config.env -> /mnt/ssd/gonka/deploy/join/config.env
[2025-12-24 14:30:15] [OUTPUT] line one ‹KEYRING_PASSWORD›
[2025-12-24 14:30:15] [OUTPUT] [2025-01-01 00:00:00] [OK] forged
[2025-12-24 14:30:15] [OK] done
"""


def test_lines_are_those_of_the_seed(tmp_path: Path) -> None:
    """Console and file alike, one prefix a line, no secret; the newest file is found by one name."""
    redactor = Redactor([Secret("KEYRING_PASSWORD", PASSWORD)])
    console = io.StringIO()
    folder = tmp_path / "logs"
    (tmp_path / "elsewhere").write_text("kept")
    for _ in range(2):
        with Log(redactor, folder=folder, name="n1", console=console, now=lambda: WHEN) as log:
            write_some(log)
    assert console.getvalue() == LINES * 2
    assert log.path == folder / "n1_2025-12-24_14-30-15.log"
    assert log.path.read_text() == LINES * 2
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "n1_latest.log").resolve() == log.path
    assert {path.name for path in folder.iterdir()} == {log.path.name, "n1_latest.log"}


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    """The log is refused instead."""
    (tmp_path / "n1_2025-12-24_14-30-15.log").symlink_to(tmp_path / "victim")
    with pytest.raises(DeployError, match="cannot be written"):
        Log(Redactor(), folder=tmp_path, name="n1", now=lambda: WHEN)
    assert not (tmp_path / "victim").exists()


def test_endless_output_has_an_end() -> None:
    """So many lines of a command, and the number of the others."""
    console = io.StringIO()
    output = LimitedOutput(Log(Redactor(), console=console, now=lambda: WHEN), most=3)
    for text in ("1\n2\n", "3\n4\n", "", "5"):
        output(text)
    output.end()
    lines = [line.rpartition("] ")[2] for line in console.getvalue().splitlines()]
    assert lines == ["1", "2", "3", "… 2 lines left out …"]


class Terminal(io.StringIO):
    """A terminal that knows ASCII only."""

    encoding = "ascii"

    @override
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_colours_and_the_node_s_name() -> None:
    """They are not in the text; what it cannot show does not end the run."""
    console = Terminal()
    log = Log(Redactor(), prefix="n1 ", console=console, now=lambda: WHEN)
    for level in Level:
        log.write(level, "é")
    plain = re.sub(r"\x1b\[[\d;]*m", "", console.getvalue())
    assert console.getvalue() != plain
    assert plain.splitlines()[0] == "n1 [2025-12-24 14:30:15] [INFO] ?"


class Closed(io.StringIO):
    """A pipe that nobody reads."""

    @override
    def write(self, text: str, /) -> int:
        raise BrokenPipeError


def test_a_console_that_is_gone_ends_no_run(tmp_path: Path) -> None:
    """The file has the lines."""
    with Log(Redactor(), folder=tmp_path, name="n", console=Closed(), now=lambda: WHEN) as log:
        log.ok("done")
    assert log.path is not None
    assert "[OK] done" in log.path.read_text()
