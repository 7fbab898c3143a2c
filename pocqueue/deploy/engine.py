"""Takes a server through steps: what is done already is skipped, what is not is planned, done, and looked at again.

A step has three methods: `look` reads, `is_done` and `plan` decide. Whether it is done is always the server's answer, before
and after: no note of ours and no exit code says so. A dry run stops at the plan, so that it shows what the run then does.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pocqueue.deploy.conf import Conf
from pocqueue.deploy.connection import Connection
from pocqueue.deploy.errors import OutcomeUnknown, StepFailed
from pocqueue.deploy.facts.parts import UnexpectedAnswer
from pocqueue.deploy.journal import Journal, Undo
from pocqueue.deploy.log import Level, LimitedOutput, Log, load_output
from pocqueue.deploy.memory import Memory
from pocqueue.deploy.remote_job import STATE_DIR, EndedMeanwhile, Job, run_job
from pocqueue.deploy.result import Result
from pocqueue.deploy.words import Command, Secret
from pocqueue.files import replace_file


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that goes to the server as a whole."""

    #: What it is called here, for people.
    local: str
    #: Its path there; the login's own.
    remote: str
    content: tuple[str | Secret, ...] = field(repr=False)
    mode: int

    def shown(self) -> str:
        """Return it as a line for people."""
        return f"Upload: {self.local} -> {self.remote}"


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of the node's folder here."""

    path: str
    #: Secrets and all.
    content: str = field(repr=False)
    mode: int

    def shown(self) -> str:
        """Return it as a line for people."""
        return f"Local: {self.path}"


@dataclass(frozen=True, slots=True)
class Download:
    """A private file of the server that comes into the node's folder; nothing of it is shown."""

    #: Its path there, for people.
    remote: str
    #: Prints it in base64, and changes nothing.
    command: Command
    path: str
    #: SHA-256 of it; another one is not taken.
    hash_hex: str

    def shown(self) -> str:
        """Return it as a line for people."""
        return f"Download: {self.remote} -> {self.path}"


Action = Command | Job | Upload | LocalFile | Download


@dataclass(frozen=True, slots=True)
class Plan:
    """What a step is going to do.

    Attributes:
        what: one line for people.
        actions: in their order.
        undo: how it is taken back; remembered before the first action.
        is_final: cannot be taken back, and is never tried a second time by itself.
        destroys: what is lost by it, as it was named when the operator was asked; empty: nothing.
        diff: of files, unified.
        notes: what is remembered before the first action, by names of the journal.
        wait_s: seconds that it may take, after the last action, until it is so.
        every_s: seconds between two looks meanwhile, after the first ones, which come sooner.
    """

    what: str
    actions: tuple[Action, ...]
    undo: tuple[Undo, ...] = ()
    is_final: bool = False
    destroys: str = ""
    diff: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    wait_s: float = 0.0
    every_s: float = 5.0


class NotYet(Exception):
    """What a step looks at is not there before another step is done; says until when."""


@dataclass(frozen=True, slots=True)
class Host:
    """A server that is worked on."""

    conf: Conf
    connection: Connection
    out: Log
    journal: Journal
    #: Folder of ours there.
    state_dir: str = STATE_DIR
    #: What steps have read; empty again after each change.
    memory: Memory = field(default_factory=Memory)
    #: What may be lost: the operator was told of exactly these.
    confirmed: set[str] = field(default_factory=set)
    #: Names of checks that may fail: the operator knows better.
    ignored: tuple[str, ...] = ()
    #: Of jobs, by name, the last start whose end was there to be seen at the last look.
    jobs: dict[str, str] = field(default_factory=dict)

    async def look(self, command: Command, *, anew: bool = False) -> Result:
        """Return the answer of a command that changes nothing: it runs once between two changes.

        Args:
            command: of facts.
            anew: it runs in any case: time alone may have changed its answer.

        Raises:
            DeployError: as of `Connection.look`.
        """
        return await self.memory.look(command, self.connection.look, anew=anew)


class Step(Protocol):
    """One thing that is so on a server afterwards."""

    @property
    def phase(self) -> int:
        """Return the phase that it belongs to."""

    @property
    def name(self) -> str:
        """Return what it is called, such as ``format volume``."""

    async def look(self, host: Host) -> Any:
        """Return what is so, by commands that change nothing.

        Raises:
            NotYet: that cannot be seen before another step is done.
        """

    def told(self, facts: Any) -> str:
        """Say in a few words what is so."""

    def is_done(self, facts: Any) -> bool:
        """Say whether it is as it should be."""

    def plan(self, facts: Any) -> Plan:
        """Return what is to be done.

        Raises:
            DeployError: it must not be done, for this reason.
        """


@runtime_checkable
class Warns(Protocol):
    """A step that may be done and still have something that a person should look at."""

    def warning(self, facts: Any) -> str:
        """Return that; empty: nothing."""


PHASES = {
    0: "VALIDATION",
    1: "SERVER PREPARATION",
    2: "GONKA AND MODELS",
    3: "CONFIGURATION",
    4: "BASIC SERVICES",
    5: "BLOCKCHAIN CONFIGURATION",
    6: "ALL SERVICES",
    7: "VERIFICATION",
}

#: Of all steps: those that are no part of a run, too.
TITLES = PHASES | {8: "POCQUEUE"}


def _by_phase(steps: Sequence[Step]) -> Iterator[tuple[int, list[Step]]]:
    for phase, found in groupby(steps, lambda step: step.phase):
        yield phase, list(found)


async def run_steps(
    host: Host,
    steps: Sequence[Step],
    *,
    first: int = 0,
    last: int = 99,
    now: Callable[[], str],
) -> None:
    """Do what is not done yet.

    Args:
        host: the server, locked for this run.
        steps: in order.
        first: phase to begin with; those before it have to be done.
        last: phase to end with.
        now: the time, as it is written down.

    Raises:
        DeployError: the first step that could not be done, or a step of an earlier phase that is not done.
    """
    for phase, found in _by_phase(steps):
        if phase < first:
            await _check_done(host, found, first)
        elif phase <= last:
            section(host.out, phase)
            for step in found:
                await _do_or_warn(host, step, now)


def section(out: Log, phase: int) -> None:
    """Begin a phase in the log."""
    out.standing.begin(phase)
    rule = "=" * 40
    out.info(f"{rule}\nPHASE {phase}: {TITLES[phase]}\n{rule}")


async def _check_done(host: Host, steps: Sequence[Step], first: int) -> None:
    for step in steps:
        if not is_optional(step) and not step.is_done(await _look(host, step)):
            raise StepFailed(
                step.name,
                f"it is not done, so phase {first} cannot begin: run without --phase and --from.",
            )


async def _look(host: Host, step: Step) -> Any:
    try:
        return await step.look(host)
    except NotYet as exc:
        raise StepFailed(step.name, f"cannot be looked at: {exc}.") from None


def is_optional(step: Step) -> bool:
    """Say whether a run goes on where this step fails: one that has a true `is_optional`."""
    return bool(getattr(step, "is_optional", False))


async def _do_or_warn(host: Host, step: Step, now: Callable[[], str]) -> None:
    try:
        await _do(host, step, now)
    except (StepFailed, UnexpectedAnswer) as exc:
        if not is_optional(step):
            raise
        tail = exc.tail if isinstance(exc, StepFailed) else ()
        host.out.warn(
            "\n".join([f"{exc} The run goes on without it.", *(f"  | {line}" for line in tail)])
        )


async def _do(host: Host, step: Step, now: Callable[[], str]) -> None:
    begun = time.monotonic()
    host.out.standing.begin(step.phase, step.name)
    host.out.check(f"{step.name}...")
    facts = await _look(host, step)
    if step.is_done(facts):
        host.out.skip(f"{step.name}: {step.told(facts)}")
        _warn(host, step, facts)
        return
    is_last = False
    while True:
        plan = step.plan(facts)
        if plan.destroys and plan.destroys not in host.confirmed:
            raise StepFailed(
                step.name,
                f"{plan.destroys} is not what was named before the run began. Nothing was done; run again and look at it.",
            )
        try:
            await _act(host, step, plan)
        except EndedMeanwhile:
            # Of a run that was cut: it went on while this one looked.
            facts = await _look(host, step)
            if step.is_done(facts):
                break
        except OutcomeUnknown as exc:
            host.memory.clear()
            host.out.warn(f"{exc} Looking at the server...")
            facts = await _look(host, step)
            if step.is_done(facts):
                break
            if plan.is_final or is_last:
                raise
            is_last = True
        else:
            facts = await _settled(host, step, plan)
            if not step.is_done(facts):
                raise StepFailed(
                    step.name, f"was done, but is not as it should be: {step.told(facts)}."
                )
            break
    host.journal.record_step(step.name, time.monotonic() - begun, now())
    host.out.ok(f"{step.name}: {step.told(facts)}")
    _warn(host, step, facts)


def _warn(host: Host, step: Step, facts: Any) -> None:
    if isinstance(step, Warns) and (text := step.warning(facts)):
        host.out.warn(f"{step.name}: {text}")


async def _settled(host: Host, step: Step, plan: Plan) -> Any:
    """Return what is so after a change, as soon as it is as it should be, or when the time for that is up."""
    until, pause_s = time.monotonic() + plan.wait_s, 0.1
    if plan.wait_s:
        host.out.info(f"{step.name}: waiting up to {plan.wait_s:.0f} s...")
    while True:
        host.memory.clear()
        facts = await _look(host, step)
        if step.is_done(facts) or time.monotonic() >= until:
            return facts
        await asyncio.sleep(min(pause_s, plan.every_s))
        pause_s *= 2


async def _act(host: Host, step: Step, plan: Plan) -> None:
    host.memory.clear()
    if plan.notes:
        host.journal.record(**plan.notes)
    for undo in plan.undo:
        host.journal.add_undo(undo)
    for action in plan.actions:
        if isinstance(action, Upload):
            host.out.upload(action.local, action.remote)
            text = "".join(p.reveal() if isinstance(p, Secret) else p for p in action.content)
            await host.connection.write_file(action.remote, text.encode(), action.mode)
            continue
        if isinstance(action, LocalFile):
            host.out.write(Level.EXEC, action.shown())
            _write_here(step, action.path, action.content.encode(), action.mode)
            continue
        if isinstance(action, Download):
            host.out.write(Level.EXEC, action.shown())
            _write_here(step, action.path, await _fetched(host, step, action), 0o600)
            continue
        if isinstance(action, Job):
            host.out.command(action.command)
            output = LimitedOutput(host.out)
            shown = load_output(host.out, action.total_bytes, output)
            end = await run_job(
                host.connection, action, shown, state_dir=host.state_dir, known=host.jobs
            )
            code, tail = end.exit_code, end.tail
        else:
            host.out.command(action)
            result = await host.connection.run(action)
            output = LimitedOutput(host.out)
            output(result.stdout)
            output(result.stderr)
            code, tail = result.exit_code, result.tail
        output.end()
        if code != 0:
            raise StepFailed(
                step.name, f"ended with exit code {code}.", exit_code_there=code, tail=tail
            )


async def _fetched(host: Host, step: Step, file: Download) -> bytes:
    """Return a file of the server's, whole; no error has anything of it.

    Raises:
        StepFailed: it cannot be read, or is another one than was seen before.
    """
    found = await host.connection.look(file.command)
    try:
        content = base64.b64decode(found.stdout, validate=True)
    except binascii.Error:
        content = b""
    if found.exit_code != 0 or hashlib.sha256(content).hexdigest() != file.hash_hex:
        raise StepFailed(
            step.name,
            f"{file.remote} did not arrive as it was seen before; it stays there. Run again.",
            exit_code_there=found.exit_code,
        )
    return content


def _write_here(step: Step, path: str, content: bytes, mode: int) -> None:
    try:
        replace_file(Path(path), content, mode=mode)
    except OSError as exc:
        raise StepFailed(step.name, f"{path} cannot be written ({exc.strerror}).") from None
