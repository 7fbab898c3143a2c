"""What is done for pocqueue on a server, in its order: account, version, unit files, link, variables, then unit by unit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from pocqueue.deploy.engine import Host, Plan, Step
from pocqueue.deploy.errors import StepFailed
from pocqueue.deploy.facts.stack import StackFacts, read_stack, stack_facts
from pocqueue.deploy.remote_job import Job
from pocqueue.deploy.stack.units import Unit
from pocqueue.deploy.stack.variables import env_file, revealed
from pocqueue.deploy.stack.wheel import Wheel
from pocqueue.deploy.steps.mounted import looked
from pocqueue.deploy.words import Command, Secret, whole

PHASE = 8
ENV_MODE = 0o640


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are on a server; units have these very paths.

    Args:
        root: before all of them, for tests.
    """

    root: str = ""

    @property
    def opt(self) -> str:
        """Folder of versions."""
        return f"{self.root}/opt/pocqueue"

    @property
    def etc(self) -> str:
        """Folder of the variables."""
        return f"{self.root}/etc/pocqueue"

    @property
    def systemd(self) -> str:
        """Folder of unit files."""
        return f"{self.root}/etc/systemd/system"

    @property
    def state(self) -> str:
        """Folder for what outlives a process."""
        return f"{self.root}/var/lib/pocqueue"

    def files(self, way: str) -> str:
        """Return where unit files are, or compose's."""
        return self.systemd if way == "systemd" else self.opt


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a server is to have.

    Attributes:
        places: where.
        way: ``systemd`` or ``compose``.
        folder: of the version; of compose, its image.
        files: texts of unit files, or of compose's, by name.
        wheel: that it is made of; None: it is there already.
        extras: of it, such as ``[hosts]``; empty: none.
        values: the variables.
        units: in the order in which they are started.
        stack_id: what each of their processes is to be started with.
        live_s: seconds that a worker may take until it is in the pool: it loads its model.
        settle_s: seconds that another unit has to run.
    """

    places: Places
    way: str
    folder: str
    files: dict[str, str]
    wheel: Wheel | None
    extras: str
    values: dict[str, str | Secret] = field(repr=False)
    units: tuple[Unit, ...]
    stack_id: str
    live_s: int = 900
    settle_s: int = 5

    @property
    def env(self) -> tuple[str | Secret, ...]:
        """Return the content of the variables' file."""
        return env_file(self.values, self.stack_id)


async def read_facts(
    host: Host, places: Places, units: tuple[Unit, ...], files: Iterable[str], way: str, image: str
) -> StackFacts:
    """Return what there is.

    Args:
        host: the server.
        places: where.
        units: that are wanted.
        files: names of their files.
        way: ``systemd`` or ``compose``.
        image: of compose.

    Raises:
        StepFailed, UnexpectedAnswer: it cannot be read.
    """
    command = stack_facts(
        *(places.opt, places.etc, places.state, places.files(way), files),
        [unit.name for unit in units],
        way=way,
        worker=next((unit.name for unit in units if unit.queue), ""),
        image=image,
    )
    return read_stack(await looked(host, "pocqueue", command))


def _change(*words: str, stdin: tuple[str | Secret, ...] = (), timeout_s: float = 30.0) -> Command:
    return Command(words, stdin, script="stack_change", sudo=True, timeout_s=timeout_s)


@dataclass(frozen=True, slots=True)
class _OfStack:
    """A step that looks at all of it."""

    wanted: Wanted
    phase: int = PHASE

    async def look(self, host: Host) -> StackFacts:
        """Read all of it."""
        w = self.wanted
        image = w.folder if w.way == "compose" else ""
        return await read_facts(host, w.places, w.units, w.files, w.way, image)


@dataclass(frozen=True, slots=True)
class Account(_OfStack):
    """The user that everything runs as, and its folders."""

    name: str = "account pocqueue"

    def told(self, facts: StackFacts) -> str:
        """Say whether it is there."""
        return "there" if facts.has_account else "missing, or one of its folders"

    def is_done(self, facts: StackFacts) -> bool:
        """Say whether it is there."""
        return facts.has_account

    def plan(self, facts: StackFacts) -> Plan:
        """Make it."""
        p = self.wanted.places
        return Plan(
            f"a user without a login, {p.opt}, {p.etc}, {p.state}",
            (_change("account", p.opt, p.etc, p.state),),
        )


@dataclass(frozen=True, slots=True)
class Version(_OfStack):
    """The venv of the version is complete."""

    name: str = "pocqueue's version"

    @property
    def mark(self) -> str:
        """Return what a complete one is marked with."""
        wheel = self.wanted.wheel
        return f"{wheel.hash_hex}{self.wanted.extras}" if wheel else ""

    def told(self, facts: StackFacts) -> str:
        """Say which are there."""
        folder = self.wanted.folder
        return f"{self.wanted.places.opt}/{folder}{'' if folder in facts.versions else ': missing'}"

    def is_done(self, facts: StackFacts) -> bool:
        """Say whether it is there with all that its roles need."""
        found = facts.versions.get(self.wanted.folder)
        return found is not None and self.mark in ("", found)

    def plan(self, facts: StackFacts) -> Plan:
        """Send the wheel, and install it into a venv of its own.

        Raises:
            StepFailed: there is no wheel, or no Python for it.
        """
        wheel, opt = self.wanted.wheel, self.wanted.places.opt
        if wheel is None:
            raise StepFailed(
                self.name, f"{opt}/{self.wanted.folder} is gone: give its wheel with --wheel."
            )
        if not facts.python:
            raise StepFailed(
                self.name,
                f"the server has no Python of 3.11 or newer with venv (found: {facts.pythons}). Type on the server, as root: "
                "apt-get install python3.11 python3.11-venv",
            )
        put = _change(
            "wheel", opt, wheel.path.name, wheel.hash_hex, stdin=(wheel.text,), timeout_s=300
        )
        words = (opt, self.wanted.folder, facts.python, wheel.path.name, wheel.hash_hex)
        make = Command(
            (*words, self.wanted.extras, self.mark), script="stack_venv", sudo=True, timeout_s=3600
        )
        return Plan(
            f"{wheel.path.name}{self.wanted.extras} in {opt}/{self.wanted.folder}",
            (put, Job("8-venv", make)),
        )


@dataclass(frozen=True, slots=True)
class Image(_OfStack):
    """The image that compose runs is there."""

    name: str = "pocqueue's image"

    def told(self, facts: StackFacts) -> str:
        """Say whether it is there."""
        return f"{self.wanted.folder}{'' if self.is_done(facts) else ': missing'}"

    def is_done(self, facts: StackFacts) -> bool:
        """Say whether it is there."""
        return self.wanted.folder in facts.versions

    def plan(self, facts: StackFacts) -> Plan:
        """Load it; one that was sent there by hand needs no registry."""
        command = Command((self.wanted.folder,), script="stack_image", sudo=True, timeout_s=1800)
        return Plan(f"docker pull {self.wanted.folder}", (Job("8-image", command),))


@dataclass(frozen=True, slots=True)
class UnitFiles(_OfStack):
    """Unit files, or compose's, are ours; what an operator changes stands in files of its own (`systemctl edit`)."""

    name: str = "unit files"

    def _changed(self, facts: StackFacts) -> list[str]:
        return [
            file
            for file, text in self.wanted.files.items()
            if facts.files.get(file) != hashlib.sha256(text.encode()).hexdigest()
        ]

    def told(self, facts: StackFacts) -> str:
        """Say how many are ours."""
        w, num = self.wanted, len(self.wanted.files)
        return f"{num - len(self._changed(facts))} of {num} in {w.places.files(w.way)}"

    def is_done(self, facts: StackFacts) -> bool:
        """Say whether all are."""
        return not self._changed(facts)

    def plan(self, facts: StackFacts) -> Plan:
        """Keep those that are there, and put ours in their places."""
        w, changed = self.wanted, self._changed(facts)
        folder = w.places.files(w.way)
        puts = [
            command
            for file in changed
            for command in (
                Command(("keep", folder, file), script="node_file", sudo=True),
                _change("unit", folder, file, stdin=whole(w.files[file])),
            )
        ]
        reload = (_change("reload"),) if w.way == "systemd" else ()
        return Plan(f"{', '.join(changed)} in {folder}", (*puts, *reload))


@dataclass(frozen=True, slots=True)
class CurrentVersion(_OfStack):
    """What starts from now on is of this version."""

    name: str = "current version"

    def told(self, facts: StackFacts) -> str:
        """Say which it is."""
        return facts.current or "none"

    def is_done(self, facts: StackFacts) -> bool:
        """Say whether it is the wanted one."""
        return facts.current == self.wanted.folder

    def plan(self, facts: StackFacts) -> Plan:
        """Put the link there; the way back is `deploy stack --rollback`."""
        what = f"{facts.current or 'none'} → {self.wanted.folder}"
        verb = "link" if self.wanted.way == "systemd" else "image"
        return Plan(what, (_change(verb, self.wanted.places.opt, self.wanted.folder),))


@dataclass(frozen=True, slots=True)
class Variables(_OfStack):
    """The variables are those of the conf file."""

    name: str = "pocqueue.env"

    def told(self, facts: StackFacts) -> str:
        """Say whether they are there."""
        # Not by their hash: all but a secret of them may be known, and a short one is then found by it.
        how = "as wanted" if self._has_wanted(facts) else "others"
        found = "none" if facts.env_hash == "-" else f"mode {facts.env_mode:04o}, {how}"
        return f"{self.wanted.places.etc}/pocqueue.env: {found}"

    def _has_wanted(self, facts: StackFacts) -> bool:
        return facts.env_hash == hashlib.sha256(revealed(self.wanted.env).encode()).hexdigest()

    def is_done(self, facts: StackFacts) -> bool:
        """Say whether they are as wanted, for root and the user alone."""
        return self._has_wanted(facts) and facts.env_mode == ENV_MODE

    def plan(self, facts: StackFacts) -> Plan:
        """Write them."""
        names = ", ".join(self.wanted.values)
        return Plan(
            f"{self.wanted.places.etc}/pocqueue.env, mode 0640: {names}",
            (_change("env", self.wanted.places.etc, stdin=whole(*self.wanted.env)),),
        )


@dataclass(frozen=True, slots=True)
class UnitRuns(_OfStack):
    """A unit runs with this version and these variables; a worker is in the pool, too.

    Args:
        unit: which.
        any_version: it is enough that it runs: Redis is not started anew unless that is asked for.
    """

    unit: Unit = field(kw_only=True)
    any_version: bool = field(default=False, kw_only=True)

    @property
    def name(self) -> str:
        """Return the unit's name."""
        return self.unit.name.removesuffix(".service")

    def told(self, facts: StackFacts) -> str:
        """Say how it does."""
        state = facts.units[self.unit.name]
        is_live = self._is_live(facts)
        told = state.state if state.is_enabled else f"{state.state}, not enabled"
        if state.state == "active" and state.stack_id != self.wanted.stack_id:
            told += ", of an older version or with older variables"
        if self.unit.queue and state.state == "active":
            told += f", {self.unit.queue} {'live' if is_live else 'not in the pool'}"
        return told

    def is_done(self, facts: StackFacts) -> bool:
        """Say whether it runs as it should."""
        state = facts.units[self.unit.name]
        is_ours = self.any_version or state.stack_id == self.wanted.stack_id
        return state.state == "active" and state.is_enabled and is_ours and self._is_live(facts)

    def _is_live(self, facts: StackFacts) -> bool:
        # A process of a container has another number inside.
        pid = None if self.wanted.way == "compose" else facts.units[self.unit.name].pid
        return not self.unit.queue or facts.is_in_pool(self.unit.queue, pid)

    def plan(self, facts: StackFacts) -> Plan:
        """Start it anew, and wait until it works: the next one is not touched before that."""
        p, unit = self.wanted.places, self.unit
        wait_s = self.wanted.live_s if unit.queue else self.wanted.settle_s
        words = (p.opt, p.etc, self.wanted.way, unit.name, unit.queue, str(wait_s))
        command = Command(words, script="stack_unit", sudo=True, timeout_s=wait_s + 300)
        is_there = facts.units[unit.name].state == "active"
        how = "drain it, then start it anew" if is_there and unit.queue else "start it"
        wait = f"; wait until {unit.queue} is live" if unit.queue else ""
        job = f"8-{self.name.replace('@', '-')}"
        return Plan(
            f"{'restart' if is_there and not unit.queue else how}{wait}", (Job(job, command),)
        )


def stack_steps(wanted: Wanted, *, with_redis: bool) -> tuple[Step, ...]:
    """Return the steps in their order.

    Args:
        wanted: what the server is to have.
        with_redis: start a Redis that runs anew, too, as the last one.
    """
    redis = [unit for unit in wanted.units if unit.role == "redis"]
    others = [unit for unit in wanted.units if unit not in redis]
    by_way: tuple[Step, ...] = (
        (Version(wanted), UnitFiles(wanted), CurrentVersion(wanted))
        if wanted.way == "systemd"
        else (Image(wanted), CurrentVersion(wanted), UnitFiles(wanted))
    )
    return (
        Account(wanted),
        *by_way,
        # The link first: what starts between the two is of the new version with the old variables, and is started again.
        Variables(wanted),
        *(UnitRuns(wanted, unit=unit, any_version=True) for unit in redis),
        *(UnitRuns(wanted, unit=unit) for unit in others),
        *(UnitRuns(wanted, unit=unit) for unit in redis if with_redis),
    )
