"""A whole run on one server or on several: questions, locks, steps, and the code that the command leaves with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TextIO

from pocqueue.deploy import report, rules
from pocqueue.deploy.conf import Conf
from pocqueue.deploy.connection import RETRY_DELAYS_S
from pocqueue.deploy.engine import PHASES, Host, Planned, Step, plan_steps, run_steps, section
from pocqueue.deploy.errors import BadUsage, DeployError, HostKeyUnknown, StepFailed
from pocqueue.deploy.folder import make_folders
from pocqueue.deploy.journal import STILL_THERE, Undo
from pocqueue.deploy.lock import local_lock, server_lock, who_we_are
from pocqueue.deploy.log import Log, local_now
from pocqueue.deploy.look import look_at_server, show_checks
from pocqueue.deploy.node_files import node_files
from pocqueue.deploy.remote_job import STATE_DIR
from pocqueue.deploy.session import opened
from pocqueue.deploy.standing import Standing
from pocqueue.deploy.steps import all_steps
from pocqueue.deploy.words import Redactor, Secret


class Ask(Protocol):
    """Asks a person, and returns what was typed."""

    async def __call__(self, question: str, *, is_hidden: bool = False) -> str:
        """Ask; what is typed may be hidden."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a run is to be.

    Attributes:
        ask: a person; None: nobody is there.
        is_confirmed: the question whether to begin is answered already.
        first: phase to begin with.
        last: phase to end with.
        format_serial: of the disk whose old data may go; empty: none.
        sudo_password: of the login, where sudo asks.
        console: for the log; standard output by default.
        ignored: names of checks that may fail.
        words_stay: those of the warm wallet stay on the server.
        retry_delays_s: as of `Connection`.
        state_dir: folder of ours on the server.
        watch: gets how far the run on each server is; None: nobody looks at that.
        asking: held while a question stands: of several servers one asks at a time.
    """

    ask: Ask | None = None
    is_confirmed: bool = False
    first: int = 0
    last: int = max(PHASES)
    format_serial: str = ""
    sudo_password: Secret | None = None
    console: TextIO | None = None
    ignored: tuple[str, ...] = ()
    words_stay: bool = False
    retry_delays_s: Sequence[float] = field(default=RETRY_DELAYS_S)
    state_dir: str = STATE_DIR
    watch: Callable[[Standing], None] | None = None
    asking: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    async def asked(self, question: str, *, is_hidden: bool = False) -> str:
        """Return a person's answer, who has to be there."""
        assert self.ask is not None
        async with self.asking:
            return await self.ask(question, is_hidden=is_hidden)


#: Commands that people type, by the functions that do their work.
_COMMANDS = {
    name: name.replace("dry_run", "run --dry-run")
    for name in ("dry_run", "status", "rollback", "check")
}


async def run_all(
    confs: Sequence[Conf], options: Options, work: Callable[[Conf, Log, Options], Awaitable[None]]
) -> int:
    """Do something with several servers side by side; one that fails does not hold up the others.

    Args:
        confs: of the servers.
        options: for all.
        work: `deploy`, `dry_run` or `status`.

    Returns:
        The code to leave with: of several confs 1 if one failed.
    """
    ends = await asyncio.gather(
        *(_one(conf, options, work, len(confs) > 1) for conf in confs), return_exceptions=True
    )
    codes = []
    for end in ends:
        # Only now: what nobody has thought of on one server ends no work half-way on another.
        if isinstance(end, BaseException):
            raise end
        codes.append(end)
    return codes[0] if len(codes) == 1 else int(any(codes))


async def _one(
    conf: Conf,
    options: Options,
    work: Callable[[Conf, Log, Options], Awaitable[None]],
    has_others: bool,
) -> int:
    secrets = [*conf.secrets, *([options.sudo_password] if options.sudo_password else [])]
    command = _COMMANDS.get(getattr(work, "__name__", ""), "run")
    standing = Standing(conf.key_name)
    if options.watch is not None:
        options.watch(standing)

    def log(folder: Path | None) -> Log:
        prefix = f"{conf.key_name} " if has_others else ""
        return Log(
            Redactor(secrets),
            folder=folder,
            name=conf.key_name,
            prefix=prefix,
            console=options.console,
            standing=standing,
            is_watched=options.watch is not None,
        )

    try:
        out = log(conf.logs)
    except DeployError as exc:
        with log(None) as out:
            report.failure(out, conf, exc, command)
        return exc.exit_code
    with out:
        try:
            await work(conf, out, options)
        except DeployError as exc:
            report.failure(out, conf, exc, command)
            return exc.exit_code
        except asyncio.CancelledError:
            out.error("Stopped by Ctrl-C; a job that runs on the server goes on there.")
            raise
        finally:
            standing.is_over = True
    return 0


def _steps(conf: Conf, options: Options) -> tuple[Step, ...]:
    """Return the steps for a server, as a run is to be."""
    return all_steps(conf, garbage_serial=options.format_serial, words_stay=options.words_stay)


async def deploy(conf: Conf, out: Log, options: Options) -> None:
    """Take a server through the phases.

    Raises:
        DeployError: why it stopped.
    """
    make_folders(conf)
    with local_lock(conf.folder):
        async with _begun(conf, out, options) as host:
            steps = _steps(host.conf, options)
            out.check("Checking the server...")
            show_checks(out, await look_at_server(host), options.ignored)
            for line in report.parameters(host.conf):
                out.info(line)
            if not await _is_wanted(host, options, await plan_steps(host, steps)):
                return
            async with server_lock(
                host.connection, who_we_are(local_now()), state_dir=options.state_dir
            ):
                # Much may have happened while the question stood.
                host.memory.clear()
                await run_steps(
                    host,
                    steps,
                    first=options.first,
                    last=options.last,
                    now=lambda: f"{local_now():%Y-%m-%d %H:%M:%S}",
                )
    last = min(options.last, max(PHASES))
    out.info(
        f"Done up to phase {last}, {PHASES[last].lower()}. Later phases are not in this version: the node does not run yet."
    )


async def dry_run(conf: Conf, out: Log, options: Options) -> None:
    """Say what a run would do; the server stays as it is.

    Raises:
        DeployError: it cannot be looked at.
    """
    async with _begun(conf, out, options) as host:
        for line in report.plan_lines(await plan_steps(host, _steps(host.conf, options))):
            out.info(line)


async def status(conf: Conf, out: Log, options: Options) -> None:
    """Say how every step stands; the server stays as it is.

    Raises:
        DeployError: it cannot be looked at.
    """
    async with _begun(conf, out, options) as host:
        for item in await plan_steps(host, _steps(host.conf, options)):
            if item.state == "skip":
                out.ok(f"{item.step.name}: {item.told}")
            else:
                out.info(
                    f"{item.step.name}: {'not yet' if item.state == 'change' else item.state}: {item.told}"
                )


async def rollback(conf: Conf, out: Log, options: Options) -> None:
    """Take back what runs have added, the last first: lines and keys of ours, a mount; never what is in a filesystem, nor it.

    Raises:
        DeployError: why it stopped, or that something still stands; what was not taken back stays in the journal.
    """
    make_folders(conf)
    with local_lock(conf.folder):
        async with _begun(conf, out, options, is_whole=False) as host:
            undos = host.journal.undos[::-1]
            for undo in undos:
                out.info(f"To be taken back: {undo.step}: {undo.what}")
            if noted := host.journal.get("volume"):
                out.info(
                    f"Stays as it is: the filesystem {noted['uuid']} on {noted['device']}, and all in it"
                )
            if not undos:
                out.skip("Nothing was added that could be taken back")
                return
            if not await _is_confirmed(host, options, "do you want to take this back?"):
                return
            who = who_we_are(local_now())
            async with server_lock(host.connection, who, state_dir=options.state_dir):
                left = [undo.step for undo in undos if not await _take_back(host, undo)]
            if left:
                raise StepFailed(
                    "rollback",
                    f"not taken back, and kept in the list: {', '.join(left)}. The warnings say why.",
                )


async def _take_back(host: Host, undo: Undo) -> bool:
    """Say whether it was taken back; where it still stands the journal keeps it.

    Raises:
        StepFailed: the command failed.
    """
    command = undo.command()
    host.out.command(command)
    result = await host.connection.run(command)
    host.out.output(result.stdout)
    host.out.output(result.stderr)
    if result.exit_code == STILL_THERE:
        why = " ".join(result.stdout.split()) or "it still stands."
        host.out.warn(f"{undo.step}: not taken back ({undo.what}): {why}")
        return False
    if result.exit_code != 0:
        raise StepFailed(
            undo.step,
            f"cannot be taken back: {undo.what}.",
            exit_code_there=result.exit_code,
            tail=result.tail,
        )
    host.journal.drop_undo(undo)
    host.out.ok(f"{undo.step}: {undo.what}")
    return True


async def check(conf: Conf, out: Log, options: Options) -> None:
    """Look at the conf, at the way to the server, and at the server; all stay as they are.

    Raises:
        DeployError: something is in the way.
    """
    async with _begun(conf, out, options) as host:
        out.check("Checking the server...")
        show_checks(out, await look_at_server(host), options.ignored)


@asynccontextmanager
async def _begun(
    conf: Conf, out: Log, options: Options, *, is_whole: bool = True
) -> AsyncIterator[Host]:
    """Be connected with a server within the block, phase 0 written down.

    Args:
        conf: of the node; the host's has the password, where that was asked for.
        out: log of the run.
        options: of the run.
        is_whole: all that the conf names is needed; what is taken back needs no password.
    """
    section(out, 0)
    if is_whole:
        out.check("Validating parameters...")
        conf = await _with_password(conf, out, options)
        # What is wrong with the files that it names is told before anything is connected, too.
        _steps(conf, options)
        node_files(conf)
        out.ok("All parameters validated")
    for warning in conf.warnings:
        out.warn(warning)

    async def confirm_key(unknown: HostKeyUnknown) -> bool:
        # Nobody who is not there can compare it: it has to be pinned then.
        if options.ask is None or options.is_confirmed:
            return False
        out.warn(
            f"{unknown.server} has the host key {unknown.fingerprint}, which is not known yet."
        )
        answer = await options.asked(
            f"{conf.key_name}: is {unknown.fingerprint} the key that your provider shows for {unknown.server}? (yes/no): "
        )
        return answer.strip() == "yes"

    async with opened(
        conf,
        out,
        confirm_key=confirm_key,
        sudo_password=options.sudo_password,
        retry_delays_s=options.retry_delays_s,
        state_dir=options.state_dir,
    ) as host:
        yield host


async def _with_password(conf: Conf, out: Log, options: Options) -> Conf:
    """Return a conf that has the keyring's password: its own, or one that was typed twice.

    Raises:
        BadUsage: nobody is there to ask, or it is none.
    """
    if conf.keyring_password is not None:
        return conf
    if options.ask is None:
        raise BadUsage(
            "KEYRING_PASSWORD is not known: write it or KEYRING_PASSWORD_FILE into the conf file, or run in a terminal."
        )
    question = f"{conf.key_name}: password of the keyring"
    typed = await options.asked(f"{question}: ", is_hidden=True)
    try:
        secret = Secret("KEYRING_PASSWORD", rules.password(typed))
    except ValueError as exc:
        raise BadUsage(f"KEYRING_PASSWORD is '…'; allowed: {exc}.") from None
    out.redactor.add(secret)
    if await options.asked(f"{question}, again: ", is_hidden=True) != typed:
        raise BadUsage("Another password was typed the second time; nothing was done.")
    return replace(conf, keyring_password=secret)


async def _is_wanted(host: Host, options: Options, planned: Sequence[Planned]) -> bool:
    """Ask whether to begin, and once more for a disk with old data.

    Raises:
        DeployError: nobody is there to ask.
    """
    for item in planned:
        if item.plan and item.plan.is_final:
            host.out.warn(f"CANNOT BE UNDONE: {item.step.name}: {item.told}")
        if item.plan and item.plan.destroys:
            host.confirmed.add(item.plan.destroys)
        if item.state == "stop":
            host.out.warn(item.told)
    name = host.conf.key_name
    if serial := options.format_serial:
        if options.ask is None:
            raise BadUsage("--format-device asks for the serial to be typed: run it in a terminal.")
        shown = [
            item.plan.destroys
            for item in planned
            if item.plan and f"serial {serial}," in item.plan.destroys
        ]
        disk = "; ".join(shown) or f"the disk {serial}"
        question = f"{name}: all data of {disk} will be lost. Type its serial: "
        if (await options.asked(question)).strip() != serial:
            host.out.info("Another serial was typed; nothing was done.")
            return False
    return await _is_confirmed(host, options, "do you want to proceed with deployment?")


async def _is_confirmed(host: Host, options: Options, question: str) -> bool:
    """Ask a question whose only good answer is yes.

    Raises:
        BadUsage: nobody is there to ask.
    """
    if options.is_confirmed:
        host.out.info("Confirmed beforehand. Starting...")
        return True
    if options.ask is None:
        raise BadUsage("Nobody can be asked whether to begin: add --yes, or run it in a terminal.")
    answer = await options.asked(f"{host.conf.key_name}: {question} (yes/no): ")
    if answer.strip() != "yes":
        host.out.info("Deployment cancelled by user")
        return False
    host.out.info("User confirmed deployment. Starting...")
    return True
