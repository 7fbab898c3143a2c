"""The log of a run: ``[YYYY-MM-DD HH:MM:SS] [LEVEL] message``, local time, to the console and into a file of its own.

One line has one prefix, so that what a server prints cannot pass for a line of ours, and everything goes through the
redactor first.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TextIO

from typing_extensions import override

from pocqueue.closing import Closing
from pocqueue.deploy.errors import DeployError
from pocqueue.deploy.standing import Load, Standing
from pocqueue.deploy.words import Command, Redactor


class Level(StrEnum):
    """What a line tells."""

    #: For information.
    INFO = "INFO"
    #: The state of something is looked at.
    CHECK = "CHECK"
    #: A command runs, or a file goes up.
    EXEC = "EXEC"
    #: A line that the server has printed.
    OUTPUT = "OUTPUT"
    #: Seen to be as it should be, after a change.
    OK = "OK"
    #: Was so already.
    SKIP = "SKIP"
    #: To be looked at by a person; the run goes on.
    WARN = "WARN"
    #: The run stops.
    ERROR = "ERROR"


_COLOURS = {
    Level.INFO: "34",
    Level.CHECK: "36",
    Level.EXEC: "35",
    Level.OUTPUT: "2",
    Level.OK: "32",
    Level.SKIP: "33",
    Level.WARN: "1;33",
    Level.ERROR: "1;31",
}


def local_now() -> datetime:
    """Return the local time."""
    return datetime.now().astimezone()


class Log(Closing):
    """The log of one run on one server.

    Args:
        redactor: of everything that is written.
        folder: for the file ``NAME_<time>.log``, with ``NAME_latest.log`` leading to it; None: no file.
        name: of the node.
        prefix: stands before every line on the console, where several servers are worked on.
        console: where people read; standard output by default.
        standing: how far the run is, for whoever watches.
        is_watched: what it says is shown beside the log.
        now: the clock.

    Raises:
        DeployError: the file cannot be made.
    """

    #: The file; None where there is none.
    path: Path | None = None

    def __init__(
        self,
        redactor: Redactor,
        *,
        folder: Path | None = None,
        name: str = "",
        prefix: str = "",
        console: TextIO | None = None,
        standing: Standing | None = None,
        is_watched: bool = False,
        now: Callable[[], datetime] = local_now,
    ) -> None:
        self.redactor = redactor
        self.standing = standing or Standing(name)
        self._is_watched = is_watched
        self._console = console or sys.stdout
        self._prefix = prefix
        self._now = now
        self._file: TextIO | None = None
        if folder is not None:
            self._open(folder, name)

    def _open(self, folder: Path, name: str) -> None:
        path = folder / f"{name}_{self._now():%Y-%m-%d_%H-%M-%S}.log"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Appended to where two runs begin within a second; never through a link that somebody has put there.
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(path, flags, 0o600)
            os.fchmod(fd, 0o600)
            self._file = os.fdopen(fd, "w", encoding="utf-8", buffering=1)
            _link(folder / f"{name}_latest.log", path.name)
        except OSError as exc:
            raise DeployError(
                f"The log {path} cannot be written ({exc.strerror}): mend it, nothing was done."
            ) from None
        self.path = path

    def write(self, level: Level, message: str, *, is_passing: bool = False) -> None:
        """Write a message; each of its lines has the prefix.

        Args:
            level: of it.
            message: of any number of lines.
            is_passing: a live view says so, too: there it is for the file alone.
        """
        stamp = f"{self._now():%Y-%m-%d %H:%M:%S}"
        for text in self.redactor.lines(message):
            if self._file is not None:
                try:
                    self._file.write(f"[{stamp}] [{level}] {text}\n")
                except OSError as exc:
                    # What is done to the server must not end half-way because of this.
                    self._file = None
                    self.write(Level.WARN, f"The log file ends here ({exc.strerror}): {self.path}")
            if is_passing and self._is_watched:
                continue
            mark = f"[{level}]"
            if self._console.isatty():
                mark = f"\x1b[{_COLOURS[level]}m{mark}\x1b[0m"
            line = f"{self._prefix}[{stamp}] {mark} {text}\n"
            encoding = self._console.encoding or "utf-8"
            # A pipe that nobody reads any more ends no step half-way.
            with contextlib.suppress(BrokenPipeError):
                self._console.write(line.encode(encoding, "replace").decode(encoding))
                self._console.flush()

    def info(self, message: str) -> None:
        """Tell something."""
        self.write(Level.INFO, message)

    def check(self, message: str) -> None:
        """Say what is looked at."""
        self.write(Level.CHECK, message)

    def command(self, command: Command) -> None:
        """Say which command runs on the server."""
        self.write(Level.EXEC, f"Remote: {command.shown()}")

    def upload(self, local: str, remote: str) -> None:
        """Say which file goes to the server."""
        self.write(Level.EXEC, f"Upload: {local} -> {remote}")

    def output(self, text: str) -> None:
        """Show what the server has printed; nothing if that is nothing."""
        if text := text.rstrip("\r\n"):
            self.write(Level.OUTPUT, text)

    def ok(self, message: str) -> None:
        """Say that something is as it should be: only after it was looked at."""
        self.write(Level.OK, message)

    def skip(self, message: str) -> None:
        """Say that there was nothing to do."""
        self.write(Level.SKIP, message)

    def warn(self, message: str) -> None:
        """Say what a person should look at."""
        self.write(Level.WARN, message)

    def error(self, message: str) -> None:
        """Say why the run stops."""
        self.write(Level.ERROR, message)

    @override
    def close(self) -> None:
        """Close the file; may be called again."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


class LimitedOutput:
    """The output of one command in a log: so many lines, and how many more there were.

    Args:
        out: the log.
        most: lines.
    """

    def __init__(self, out: Log, most: int = 2_000) -> None:
        self._out = out
        self._left = most
        self._num_left_out = 0

    def __call__(self, text: str) -> None:
        """Show lines of output."""
        if not (text := text.rstrip("\r\n")):
            return
        lines = text.split("\n")
        shown = lines[: self._left]
        self._left -= len(shown)
        self._num_left_out += len(lines) - len(shown)
        self._out.output("\n".join(shown))

    def end(self) -> None:
        """Say how many lines were left out."""
        if self._num_left_out:
            self._out.output(f"… {self._num_left_out:,} lines left out …")


def load_output(out: Log, total_bytes: int, output: Callable[[str], None]) -> Callable[[str], None]:
    """Return what takes the output of a download, and knows the lines that say how much of it is there.

    Args:
        out: the log.
        total_bytes: at its end; 0: it is no download.
        output: for its other lines.
    """
    if not total_bytes:
        return output
    load = out.standing.load = Load(total_bytes)

    def take(text: str) -> None:
        for line in text.split("\n"):
            if load.take(line):
                out.write(Level.OUTPUT, line, is_passing=True)
            else:
                output(line)
        if load.is_due():
            out.write(Level.INFO, ", ".join(filter(None, load.parts())), is_passing=True)

    return take


def _link(path: Path, target: str) -> None:
    """Have `path` lead to a file beside it, whatever it was before."""
    with tempfile.TemporaryDirectory(prefix=".link-", dir=path.parent) as folder:
        new = Path(folder) / "link"
        new.symlink_to(target)
        new.replace(path)
