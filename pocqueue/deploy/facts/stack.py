"""pocqueue on a server as it is: versions, the link to the one that runs, variables, unit files, units, and the pool."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pocqueue.deploy.facts.docker import numbers
from pocqueue.deploy.facts.parts import Part, UnexpectedAnswer, pairs, read_parts
from pocqueue.deploy.words import Command

MIN_PYTHON = (3, 11)
#: Name of a version's folder.
#: A folder, or an image.
_VERSION = re.compile(r"[0-9A-Za-z.!+]+-[0-9a-f]{12}|(?:[\w.:/-]+@)?sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class UnitState:
    """A unit as systemd has it.

    Attributes:
        state: ``active``, ``inactive``, ``failed``, ``activating``, ….
        is_enabled: it starts with the machine.
        pid: of its process, as the machine counts; 0: none.
        stack_id: what that process was started with; empty: not known.
    """

    state: str
    is_enabled: bool
    pid: int
    stack_id: str


@dataclass(frozen=True, slots=True)
class PoolEntry:
    """A GPU queue of the pool."""

    queue: str
    pid: int  #: as the worker sees it: in a container another one than outside
    is_live: bool


@dataclass(frozen=True, slots=True)
class StackFacts:
    """All of it.

    Attributes:
        has_account: the user is there, and its folders are whose they have to be, with their modes.
        python: program that can make a venv of 3.11 or newer; empty: none.
        pythons: versions that were found, for people.
        versions: marks of complete venvs, by name.
        current: name of the version that runs; empty: none.
        previous: of the one before it.
        env_hash: SHA-256 of the variables' file; ``-``: there is none.
        env_mode: of it.
        files: SHA-256 of unit files by name; ``-``: there is none.
        units: by name.
        pool: None: it cannot be asked.
    """

    has_account: bool
    python: str
    pythons: str
    versions: Mapping[str, str]
    current: str
    previous: str
    env_hash: str
    env_mode: int
    files: Mapping[str, str]
    units: Mapping[str, UnitState]
    pool: tuple[PoolEntry, ...] | None

    def is_in_pool(self, queue: str, pid: int | None) -> bool:
        """Say whether a queue has a live worker.

        Args:
            queue: its name.
            pid: which process it has to be; None: any.
        """
        return any(e.queue == queue and e.is_live and pid in (None, e.pid) for e in self.pool or ())


def stack_facts(
    opt: str,
    etc: str,
    state: str,
    folder: str,
    files: Iterable[str],
    units: Iterable[str],
    *,
    way: str,
    worker: str = "",
    image: str = "",
) -> Command:
    """Return the command that reads them.

    Args:
        opt: folder of versions.
        etc: folder of the variables.
        state: folder for what outlives a process.
        folder: of unit files, or of compose's.
        files: names of these.
        units: names of units.
        way: ``systemd`` or ``compose``.
        worker: a unit that is to be asked for the pool, too, which takes a second; empty: none.
        image: of compose; empty: none.
    """
    words = (opt, etc, state, folder, " ".join(files), " ".join(units), worker or "-", way, image)
    return Command(words, script="stack_facts", sudo=True, timeout_s=60)


def read_stack(text: str) -> StackFacts:
    """Return what the command said.

    Raises:
        UnexpectedAnswer: something of it is not understood.
    """
    parts = read_parts(text, "account", "pythons", "versions", "links", "env", "files")
    env = pairs("the variables' file", parts["env"].wanted().text)
    links = pairs("links", parts["links"].wanted().text)
    for name in filter(None, links.values()):
        if not _VERSION.fullmatch(name):
            raise UnexpectedAnswer("/opt/pocqueue", name, "a link to a version")
    pythons = pairs("python3", parts["pythons"].wanted().text)
    good = (name for name, version in pythons.items() if numbers("python3", version) >= MIN_PYTHON)
    return StackFacts(
        has_account=parts["account"].exit_code == 0,
        python=next(good, ""),
        pythons=", ".join(dict.fromkeys(pythons.values())) or "none with venv",
        versions=pairs("versions", parts["versions"].wanted().text),
        current=links.get("current", ""),
        previous=links.get("previous", ""),
        env_hash=env.get("hash", "-"),
        env_mode=int(env.get("mode", "0"), 8),
        files=pairs("unit files", parts["files"].wanted().text),
        units={
            name.removeprefix("unit:"): _unit(part)
            for name, part in parts.items()
            if name.startswith("unit:")
        },
        pool=_pool(parts["pool"]) if "pool" in parts and parts["pool"].exit_code == 0 else None,
    )


def _unit(part: Part) -> UnitState:
    said = pairs("systemctl show", part.wanted().text)
    try:
        return UnitState(
            said["ActiveState"],
            said["UnitFileState"] == "enabled",
            int(said["MainPID"]),
            said.get("stack", ""),
        )
    except (KeyError, ValueError):
        raise UnexpectedAnswer("systemctl show", part.text, "the state of a unit") from None


def _pool(part: Part) -> tuple[PoolEntry, ...]:
    try:
        return tuple(
            PoolEntry(
                str(row["queue"]), int(row["pid"]), bool(row["is_live"] and not row["draining"])
            )
            for row in part.json()
        )
    except (KeyError, TypeError, ValueError):
        raise UnexpectedAnswer("pocqueue gpus", part.text, "a list of GPU queues") from None
