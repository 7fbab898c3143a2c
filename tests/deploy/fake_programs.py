"""The programs of a server that are faked (`fakes/`), from a test's side: what they are to do, and what they were asked.

A test that uses `fakes` fails if one of them ever saw a secret among its words or variables.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from typing_extensions import override

FOLDER = Path(__file__).parent / "fakes"
#: Of the network's repository.
URL = "https://github.com/gonka-ai/gonka.git"
_SHARED = tempfile.TemporaryDirectory(prefix="fakes-")
#: As a shell lists what it exports.
_VARIABLE = re.compile(r"^(?:export|declare -x) ([A-Za-z_]\w*)", re.MULTILINE)


@dataclass(frozen=True)
class Call:
    """One call of a fake.

    Attributes:
        program: its name.
        words: that it was given.
        stdin_hash: SHA-256 of what it read; empty: it reads nothing.
        variables: names of those in its environment.
    """

    program: str
    words: tuple[str, ...]
    stdin_hash: str
    variables: frozenset[str]

    @override
    def __str__(self) -> str:
        return " ".join((self.program, *self.words))


@dataclass(frozen=True)
class Fakes:
    """What the fakes of one server share.

    Attributes:
        folder: of it.
    """

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        """Return the variables that a command needs to find the fakes, and them their folder."""
        return {"PATH": f"{FOLDER}:{os.environ['PATH']}", "FAKES": str(self.folder)}

    def set(self, name: str, value: str = "") -> None:
        """Have the fakes do something; each says at its head what it knows."""
        path = self.folder / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)

    def unset(self, name: str) -> None:
        """Have them do as usual."""
        (self.folder / "set" / name).unlink(missing_ok=True)

    def answer(self, url: str, body: str, status: int = 200) -> None:
        """Have `curl` get an answer."""
        self.set(f"http/{re.sub('[^A-Za-z0-9.]', '_', url)}", f"{status}\n{body}")

    def answers(self, url: str, *bodies: str) -> None:
        """Have `curl` get one answer after the other, the last one for ever."""
        name = f"http/{re.sub('[^A-Za-z0-9.]', '_', url)}"
        self.unset(name)
        for number, body in enumerate(bodies):
            self.set(f"{name}/{number:03}", f"200\n{body}")

    def no_answer(self, url: str) -> None:
        """Have `curl` reach nobody."""
        self.unset(f"http/{re.sub('[^A-Za-z0-9.]', '_', url)}")

    def secret(self, value: str) -> None:
        """Have them fail where they see this text."""
        with (self.folder / "secrets").open("a") as file:
            file.write(f"{value}\n")

    def state(self, name: str) -> str:
        """Return what they wrote down; empty: nothing."""
        path = self.folder / "state" / name
        return path.read_text() if path.exists() else ""

    def calls(self, program: str = "") -> list[Call]:
        """Return the calls so far, in their order.

        Args:
            program: of this one alone.
        """
        folder = self.folder / "journal"
        paths = (
            [path for path in folder.iterdir() if "." not in path.name] if folder.exists() else []
        )
        # Numbers of processes begin anew at some time, and the clock of files has steps of a few ms.
        paths.sort(
            key=lambda path: (
                path.stat().st_mtime_ns,
                int(path.name.rstrip("-").rpartition("-")[2]),
            )
        )
        found = map(_call, paths)
        return [call for call in found if program in ("", call.program)]

    def run(
        self, *argv: str, text: str = "", cwd: Path | None = None, env: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with them, as a server does.

        Args:
            argv: program and words.
            text: what it reads.
            cwd: its folder.
            env: more variables.
        """
        return subprocess.run(
            argv,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd=cwd or self.folder,
            env={"HOME": str(self.folder / "home"), **self.env, **env},
        )

    def own_upstream(self) -> Path:
        """Have a repository of the network's that the test may change; return its folder."""
        self.unset("upstream")
        self.run("git", "version")
        return self.folder / "state" / "upstream"

    def has_clone(self, folder: Path) -> None:
        """Have the network's repository cloned there, as git does it."""
        shutil.copytree(_clone(), folder, symlinks=True)

    def leaks(self) -> str:
        """Return the calls that had a secret among their words or variables."""
        path = self.folder / "leaked"
        return path.read_text() if path.exists() else ""


def _call(path: Path) -> Call:
    num_words, *rest = path.read_text().split("\0")
    words, variables = rest[: int(num_words)], rest[int(num_words)]
    read = path.with_name(f"{path.name}.input")
    return Call(
        path.name.rstrip("-").rpartition("-")[0],
        tuple(words),
        sha256(read.read_bytes()).hexdigest() if read.exists() else "",
        frozenset(_VARIABLE.findall(variables)),
    )


def hash_of(text: str) -> str:
    """Return what `Call.stdin_hash` is for a text."""
    return sha256(text.encode()).hexdigest()


@cache
def _upstream() -> Path:
    """Return the network's repository, which all tests of this process clone and none changes."""
    return Fakes(Path(_SHARED.name)).own_upstream()


@cache
def _clone() -> Path:
    fakes = Fakes(Path(_SHARED.name))
    done = fakes.run("git", "clone", "-q", "--template=", URL, "clone")
    assert done.returncode == 0, done.stderr
    return fakes.folder / "clone"


@contextmanager
def fake_programs(folder: Path) -> Iterator[Fakes]:
    """Make the folder of a server's fakes; at the end of the block fail if one of them saw a secret."""
    folder.mkdir(parents=True, exist_ok=True)
    found = Fakes(folder)
    found.set("upstream", f"{_upstream()}\n")
    yield found
    assert not found.leaks(), f"a secret was among words or variables of: {found.leaks()}"
