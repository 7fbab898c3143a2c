"""Every way in which a run may be interrupted at a step: its connection breaks before, while or after each of its commands, and
it is killed before, while or after it changes something, here or there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from hashlib import sha256
from pathlib import Path
from typing import Literal

import pytest

from pocqueue.deploy import engine
from pocqueue.deploy.connection import Connection
from pocqueue.deploy.engine import Host, Step, run_steps
from pocqueue.deploy.errors import OutcomeUnknown, Unreachable
from pocqueue.deploy.journal import Journal
from pocqueue.deploy.result import Result
from pocqueue.deploy.words import Command
from pocqueue.files import replace_file
from tests.deploy.server import Server, without_mark

How = Literal["", "before", "during", "after"]
#: Of a connection at every command, and of a run at every file here. With the first the run is killed, too, when a change that was
#: begun once more is done.
HOW: tuple[How, ...] = ("before", "during", "after")
#: What has times in it, or names of processes, and what a killed process leaves beside a file of its own.
_VOLATILE = re.compile(
    r"/(\.git|jobs)/|/lock|/state\.json$|/\.lock$|\.pocqueue-verified$|/__pycache__/|/\.[^/]+-cut$"
)
_is_looking: ContextVar[bool] = ContextVar("_is_looking", default=False)


class Killed(Exception):
    """The run is no more; nothing of it may be caught by itself."""


def files(folder: Path, base: Path) -> dict[str, str]:
    """Return what is below a folder, by names; where it lies is of no meaning."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(base))
        if _VOLATILE.search(f"/{name}/") or _VOLATILE.search(f"/{name}"):
            continue
        kind = f"{path.lstat().st_mode:o}"
        if path.is_symlink():
            kind += f" {path.readlink()}"
        elif path.is_file() and path.suffix != ".tar":
            kind += sha256(path.read_bytes()).hexdigest()
        found[name] = kind
    return found


@contextmanager
def interrupted(server: Server, how: Callable[[], How], *, looks: bool) -> Iterator[set[str]]:
    """Have what is done within the block interrupted, each thing once.

    Args:
        server: whose connections break.
        how: called for each thing when it comes for the first time, in their order; empty: it is not.
        looks: also what only looks, which is asked again by itself.

    Returns:
        Names of what was: files here, and lines of commands that change something.
    """
    done: set[str] = set()
    chosen: dict[str, How] = {}
    run, look, write = Connection.run, Connection.look, Connection.write_file

    def choose(what: str) -> How:
        if what not in chosen:
            chosen[what] = how()
        return chosen[what]

    async def dying_run(self: Connection, command: Command) -> Result:
        server.drop_each = choose if looks or not _is_looking.get() else None
        result = await run(self, command)
        if not _is_looking.get():
            die("killed", without_mark(command.line()))
        return result

    async def looking(self: Connection, command: Command) -> Result:
        token = _is_looking.set(True)
        try:
            return await look(self, command)
        finally:
            _is_looking.reset(token)

    async def dying_write(self: Connection, path: str, data: bytes, mode: int) -> None:
        server.drop_each = choose
        await write(self, path, data, mode)
        die("killed", f"upload {path}")

    def dying_replace(path: Path, data: bytes, *, mode: int = 0o600) -> None:
        die("before", str(path))
        if choose(str(path)) == "during" and f"during {path}" not in done:
            path.with_name(f".{path.name}-cut").write_bytes(data[: len(data) // 2])
        die("during", str(path))
        replace_file(path, data, mode=mode)
        die("after", str(path))
        die("killed", str(path))

    def die(when: str, what: str) -> None:
        is_due = choose(what) == ("before" if when == "killed" else when)
        if is_due and (key := f"{when} {what}") not in done:
            done.add(key)
            raise Killed(what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "run", dying_run)
        patch.setattr(Connection, "look", looking)
        patch.setattr(Connection, "write_file", dying_write)
        patch.setattr(engine, "replace_file", dying_replace)
        yield done
    server.drop_each = None
    done |= {what for what in server.dropped if chosen.get(what)}


async def run_on(host: Host, step: Step) -> None:
    """Run a step as people do: again, with what a new run knows, where the last one was interrupted."""
    for _ in range(20):
        journal = Journal.read(host.journal.path, host.conf.server_ip)
        again = Host(host.conf, host.connection, host.out, journal, host.state_dir)
        again.confirmed.update(host.confirmed)
        with suppress(OutcomeUnknown, Unreachable, Killed):
            await run_steps(again, [step], now=lambda: "2026-01-02 03:04:05")
            return
    raise AssertionError(f"{step.name} is interrupted for ever")
