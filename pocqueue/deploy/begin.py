"""How work on a server begins: the password asked for, the host key confirmed, connected; and the questions before a change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, TextIO

from pocqueue.deploy import rules
from pocqueue.deploy.conf import Conf
from pocqueue.deploy.connection import RETRY_DELAYS_S
from pocqueue.deploy.engine import PHASES, Host, Step, section
from pocqueue.deploy.errors import BadUsage, HostKeyUnknown
from pocqueue.deploy.log import Log
from pocqueue.deploy.node_files import node_files
from pocqueue.deploy.outside import FromHere, Outside
from pocqueue.deploy.planning import Planned
from pocqueue.deploy.remote_job import STATE_DIR
from pocqueue.deploy.session import opened
from pocqueue.deploy.standing import Standing
from pocqueue.deploy.steps import all_steps
from pocqueue.deploy.verify import GROWTH_S
from pocqueue.deploy.words import Secret


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
        outside: looks at the server as the world does.
        growth_s: seconds between two looks at a chain that catches up.
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
    outside: Outside = field(default_factory=FromHere)
    growth_s: float = GROWTH_S
    asking: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    @property
    def has_question(self) -> bool:
        """Say whether a question stands before a run begins."""
        return bool(self.format_serial) or not self.is_confirmed

    async def asked(self, question: str, *, is_hidden: bool = False) -> str:
        """Return a person's answer, who has to be there."""
        assert self.ask is not None
        async with self.asking:
            return await self.ask(question, is_hidden=is_hidden)


def steps_of(conf: Conf, options: Options) -> tuple[Step, ...]:
    """Return the steps for a server, as a run is to be.

    Raises:
        DeployError: a file that the conf names cannot be used.
    """
    return all_steps(conf, garbage_serial=options.format_serial, words_stay=options.words_stay)


@asynccontextmanager
async def begun(
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
        steps_of(conf, options)
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
        yield replace(host, ignored=options.ignored)


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


async def is_wanted(host: Host, options: Options, planned: Sequence[Planned]) -> bool:
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
    return await is_confirmed(host, options, "do you want to proceed with deployment?")


async def is_confirmed(host: Host, options: Options, question: str) -> bool:
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
