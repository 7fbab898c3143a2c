"""A step for tests, whose script notes each of its runs, and what tells whether a server was changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from pocqueue.deploy import words
from pocqueue.deploy.engine import Host, NotYet, Plan
from pocqueue.deploy.journal import Undo
from pocqueue.deploy.remote_job import Job
from pocqueue.deploy.words import Command


@dataclass(frozen=True)
class HasFile:
    """A file is there; made by a command that notes each of its runs."""

    file: str
    phase: int = 0
    by_job: bool = False
    is_final: bool = False
    makes: bool = True
    exit_code: int = 0
    needs: str = ""

    @property
    def name(self) -> str:
        return f"file {self.file}"

    async def look(self, host: Host) -> bool:
        names = (await host.look(Command(("ls",)))).stdout.split()
        if self.needs and self.needs not in names:
            raise NotYet(f"until {self.needs} is there")
        return self.file in names

    def told(self, facts: bool) -> str:
        return "there" if facts else "missing"

    def is_done(self, facts: bool) -> bool:
        return facts

    def plan(self, facts: bool) -> Plan:
        command = Command((self.file, str(int(self.makes)), str(self.exit_code)), script="make")
        return Plan(
            f"make {self.file}",
            (Job(f"{self.phase}-{self.file}", command) if self.by_job else command,),
            (Undo(self.name, "remove it", "unmake", (self.file,)),),
            is_final=self.is_final,
            notes={"noted": {"file": self.file}},
        )


def with_scripts(monkeypatch: pytest.MonkeyPatch, ours: Mapping[str, str]) -> None:
    """Have scripts for tests, by name, beside the product's."""
    real = words.script

    def script(name: str) -> str:
        return ours[name] if name in ours else real(name)

    monkeypatch.setattr(words, "script", script)
    monkeypatch.setattr("pocqueue.deploy.remote_job.script", script)


def with_make_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the scripts of that step beside ours."""
    make = 'echo "$1" >> runs; echo "making $1"; [ "$2" = 0 ] || touch "$1"; exit "$3"\n'
    with_scripts(monkeypatch, {"make": make, "unmake": 'echo "not $1" >> runs; rm "$1"\n'})


def tree(root: Path) -> str:
    """Return a hash of all that is below a folder."""
    found = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        found.update(f"{path.relative_to(root)} {path.lstat().st_mode}".encode())
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()
