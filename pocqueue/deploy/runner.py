"""A whole run on one server or on several: questions, locks, steps, and the code that the command leaves with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from pocqueue.deploy import report, verify
from pocqueue.deploy.begin import Options, begun, is_confirmed, is_wanted, steps_of
from pocqueue.deploy.conf import Conf
from pocqueue.deploy.engine import PHASES, Host, run_steps
from pocqueue.deploy.errors import DeployError, StepFailed
from pocqueue.deploy.folder import make_folders
from pocqueue.deploy.grant import warm_address
from pocqueue.deploy.journal import STILL_THERE, Undo
from pocqueue.deploy.lock import local_lock, server_lock, who_we_are
from pocqueue.deploy.log import Log, local_now
from pocqueue.deploy.look import look_at_server, show_checks
from pocqueue.deploy.planning import plan_steps
from pocqueue.deploy.standing import Standing
from pocqueue.deploy.words import Redactor

#: Commands that people type, by the functions that do their work.
_COMMANDS = {
    name: {
        "dry_run": "run --dry-run",
        "verified": "verify",
        "repair": "repair --reset-chain-data",
    }.get(name, name)
    for name in ("dry_run", "status", "rollback", "check", "verified", "repair")
} | {"StackRun": "stack"}


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
    command = _COMMANDS.get(getattr(work, "__name__", type(work).__name__), "run")
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


async def deploy(conf: Conf, out: Log, options: Options) -> None:
    """Take a server through the phases.

    Raises:
        DeployError: why it stopped.
    """
    make_folders(conf)
    with local_lock(conf.folder):
        async with begun(conf, out, options) as host:
            steps = steps_of(host.conf, options)
            out.check("Checking the server...")
            show_checks(out, await look_at_server(host, options.outside), options.ignored)
            for line in report.parameters(host.conf):
                out.info(line)
            async with AsyncExitStack() as stack:

                async def lock() -> None:
                    who = who_we_are(local_now())
                    held = server_lock(host.connection, who, state_dir=options.state_dir)
                    await stack.enter_async_context(held)
                    # What was read before may be another run's past.
                    host.memory.clear()

                if not options.has_question:
                    # Nobody else changes what is planned until it is done: it is read once.
                    await lock()
                if not await is_wanted(host, options, await plan_steps(host, steps)):
                    return
                if options.has_question:
                    # It may have stood for days: all is read again, at once.
                    await lock()
                    await plan_steps(host, steps)
                await run_steps(
                    host,
                    steps,
                    first=options.first,
                    last=options.last,
                    now=lambda: f"{local_now():%Y-%m-%d %H:%M:%S}",
                )
                if options.last >= verify.PHASE:
                    await verify.verify_node(host, options.outside, growth_s=options.growth_s)
    if options.last < verify.PHASE:
        out.info(
            f"Done up to phase {options.last}, {PHASES[options.last].lower()}. It is no verified node before phase {verify.PHASE}."
        )
    else:
        backup = str(host.journal.get("keys_backup") or "")
        report.success(out, conf, warm_address(conf), backup)


async def verified(conf: Conf, out: Log, options: Options) -> None:
    """Say whether a node does what a verified node does; the server stays as it is.

    Raises:
        DeployError: it does not, or cannot be looked at.
    """
    make_folders(conf)
    with local_lock(conf.folder):
        async with begun(conf, out, options) as host:
            await verify.verify_node(host, options.outside, growth_s=options.growth_s)
    out.ok(f"Every required check passed; {report.near(conf.folder)}/verification.txt has them all")


async def dry_run(conf: Conf, out: Log, options: Options) -> None:
    """Say what a run would do; the server stays as it is.

    Raises:
        DeployError: it cannot be looked at.
    """
    async with begun(conf, out, options) as host:
        for line in report.plan_lines(await plan_steps(host, steps_of(host.conf, options))):
            out.info(line)


async def status(conf: Conf, out: Log, options: Options) -> None:
    """Say how every step stands; the server stays as it is.

    Raises:
        DeployError: it cannot be looked at.
    """
    async with begun(conf, out, options) as host:
        for item in await plan_steps(host, steps_of(host.conf, options)):
            if item.state == "skip":
                out.ok(f"{item.step.name}: {item.told}")
            else:
                out.info(
                    f"{item.step.name}: {'not yet' if item.state == 'change' else item.state}: {item.told}"
                )
        out.info(report.last_verification(conf))


async def rollback(conf: Conf, out: Log, options: Options) -> None:
    """Take back what runs have added, the last first: lines and keys of ours, a mount; never what is in a filesystem, nor it.

    Raises:
        DeployError: why it stopped, or that something still stands; what was not taken back stays in the journal.
    """
    make_folders(conf)
    with local_lock(conf.folder):
        async with begun(conf, out, options, is_whole=False) as host:
            undos = host.journal.undos[::-1]
            for undo in undos:
                out.info(f"To be taken back: {undo.step}: {undo.what}")
            for what in report.staying(conf, host.journal):
                out.info(f"Stays as it is: {what}")
            if not undos:
                out.skip("Nothing was added that could be taken back")
                return
            if not await is_confirmed(host, options, "do you want to take this back?"):
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
    async with begun(conf, out, options) as host:
        out.check("Checking the server...")
        show_checks(out, await look_at_server(host, options.outside), options.ignored)
