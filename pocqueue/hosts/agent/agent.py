"""The agent as a whole: its parts are made here, and it connects again and again until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import platform
import random
import signal
from collections.abc import Callable
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, WebSocketException

from pocqueue import __version__
from pocqueue.hosts.agent.connection import Connection, Introduction
from pocqueue.hosts.agent.errors import AgentRefused, GpuFactsUnavailable, SandboxUnavailable
from pocqueue.hosts.agent.gpu_facts import GpuFacts, NvmlFacts
from pocqueue.hosts.agent.identity import Identity
from pocqueue.hosts.agent.jobs import Jobs
from pocqueue.hosts.agent.kernel_log import KMSG, KernelLog
from pocqueue.hosts.agent.messages import GpuLoad, HostInfo, TestRow
from pocqueue.hosts.agent.options import MEMORY_SHARE, Options, SandboxName
from pocqueue.hosts.agent.sandbox.base import Sandbox
from pocqueue.hosts.agent.sandbox.choose import choose
from pocqueue.hosts.agent.sandbox.none import NoSandbox
from pocqueue.hosts.agent.self_test.machine import memory_bytes
from pocqueue.hosts.agent.self_test.run import Report, run_self_test
from pocqueue.hosts.agent.self_test.xids import is_program
from pocqueue.hosts.agent.spool import SPOOL_NAME, Spool
from pocqueue.hosts.agent.terms import Terms
from pocqueue.hosts.protocol import MAX_MESSAGE_BYTES, CloseCode

_log = logging.getLogger(__name__)

#: Seconds before the second attempt to connect, and the most before any: drawn from 0 to these.
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
#: Seconds between two self-tests.
SELF_TEST_S = 7 * 86_400.0

#: Seconds for a handshake.
_OPEN_S = 20.0
_BUSY_S = 600.0
_FINAL = {
    CloseCode.REFUSED: "it does not take this machine",
    CloseCode.BANNED: "this node was banned, or its owner has revoked it",
    CloseCode.REPLACED: "another agent has connected as this node, with a copy of its key; one of the two is to stop",
}


def wait_s(failures: int, draw: Callable[[], float] = random.random) -> float:
    """Return how long to wait before the next attempt: full jitter, so that thousands do not come back at once.

    Args:
        failures: attempts in a row that failed, from 1 on.
        draw: returns a number from 0 to 1.
    """
    return draw() * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (min(failures, 10) - 1))


def open_sandbox(name: SandboxName, state_dir: Path) -> Sandbox:
    """Return the sandbox that there is; `NoSandbox` says why there is none."""
    owner = hashlib.sha256(str(state_dir).encode()).hexdigest()[:12]
    try:
        return choose(name, owner)
    except SandboxUnavailable as exc:
        return NoSandbox(str(exc))


class Agent:
    """An agent. Made by `open_agent`; `run` it once."""

    def __init__(
        self,
        options: Options,
        identity: Identity,
        spool: Spool,
        sandbox: Sandbox,
        facts: GpuFacts,
        log_path: Path = KMSG,
    ) -> None:
        self._log_path = log_path
        self._options = options
        self._identity = identity
        self._facts = facts
        self._sandbox = sandbox
        self._report = Report((), ())
        self._stop = asyncio.Event()
        self._socket: ClientConnection | None = None
        self.jobs = Jobs(spool, sandbox, self._terms())

    def stop(self) -> None:
        """Let it finish what it has, within bounds, and end."""
        self._stop.set()

    async def run(self) -> None:
        """Test this machine, then serve until `stop` is called.

        Raises:
            AgentRefused: the server does not take this agent, and would not the next time.
        """
        with KernelLog(self._log_path) as log:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(log.news)  # the first test sees these
            await self._test(self._options.matrix_s)
            testing = {
                asyncio.create_task(self._test_weekly()),
                asyncio.create_task(self._test_after_errors(log)),
            }
            try:
                await self._serve()
            finally:
                for task in testing:
                    task.cancel()
                await asyncio.gather(*testing, return_exceptions=True)
                await self.jobs.abandon()

    async def _serve(self) -> None:
        failures = 0
        while not self._stop.is_set():
            connection = None
            try:
                async with connect(
                    self._options.endpoint,
                    max_size=MAX_MESSAGE_BYTES,
                    compression=None,
                    ping_interval=None,  # heartbeats are answered
                    open_timeout=_OPEN_S,
                    close_timeout=2,
                    user_agent_header=f"pocqueue-agent/{__version__}",
                ) as socket:
                    self._socket = socket
                    connection = Connection(
                        socket,
                        self._identity,
                        self._options.token,
                        self.jobs,
                        self._introduction(),
                        self_test=lambda: self._report.rows,
                        loads=self._loads,
                        heartbeat_s=self._options.heartbeat_s,
                    )
                    await self._use(connection)
            except (OSError, EOFError, TimeoutError, WebSocketException) as exc:
                failures = self._judge(exc, connection, failures)
            if self._stop.is_set():
                break
            pause_s = wait_s(failures)
            _log.info("Next attempt to connect in %.1f s.", pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause_s)
            if not self._stop.is_set():
                await self._look_again()
        # Without a connection: what ends within the time is kept, and sent by the next agent.
        await self.jobs.finish(self._options.stop_s)

    async def _use(self, connection: Connection) -> None:
        """Run a connection until its socket ends, or until we are told to stop."""
        running = asyncio.create_task(connection.run())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({running, stopping}, return_when="FIRST_COMPLETED")
            if not running.done() and connection.registered.is_set():
                _log.info("Told to stop: running jobs have %g s to end.", self._options.stop_s)
                await connection.announce_draining()
                await self.jobs.finish(self._options.stop_s)
                await connection.leave()
        finally:
            stopping.cancel()
            if not running.done():
                running.cancel()
            try:
                await running
            except asyncio.CancelledError:
                pass
            except ExceptionGroup as group:
                # The tasks of a connection fail together; the first says why.
                raise group.exceptions[0] from None

    def _judge(self, exc: Exception, connection: Connection | None, failures: int) -> int:
        """Return how many attempts failed in a row, with this one.

        Raises:
            AgentRefused: the server does not want this agent back.
        """
        if isinstance(exc, ConnectionClosed) and exc.rcvd is not None:
            for code, what in _FINAL.items():
                if exc.rcvd.code == code:
                    said = f" ({exc.rcvd.reason})" if exc.rcvd.reason else ""
                    raise AgentRefused(
                        f"{self._identity.origin} has closed the connection{said}: {what}."
                    )
        what = str(exc) or type(exc).__name__
        if isinstance(exc, InvalidHandshake):
            what += "; is that the endpoint that the server's page shows?"
        if not self._stop.is_set():
            _log.warning("No connection to %s: %s", self._options.endpoint, what)
        if isinstance(exc, ConnectionClosed) and exc.rcvd and exc.rcvd.code == CloseCode.TOO_FAST:
            return 10
        was_good = connection is not None and connection.registered.is_set()
        return 1 if was_good else failures + 1

    async def _test(self, matrix_s: float) -> None:
        _log.info("Self-test …")
        self._report = await run_self_test(
            self._facts,
            self._sandbox,
            self._identity.folder,
            self._options.endpoint,
            matrix_s=matrix_s,
            log_path=self._log_path,
        )
        for row in self._report.rows:
            if row.state in {"fail", "warn"}:
                said = "; ".join(filter(None, (row.measured, row.remedy))).removesuffix(".")
                _log.warning("Self-test, %s: %s.", _row_name(row), said)
        if self._report.has_sandbox:
            self.jobs.sandbox = self._sandbox
        else:
            # Never without one, and never in a weaker one than the owner has.
            [why] = [row.remedy for row in self._report.rows if row.name == "sandbox"]
            self.jobs.sandbox = NoSandbox(why)
        self.jobs.terms = self._terms()

    async def _test_weekly(self) -> None:
        pause_s = SELF_TEST_S
        while True:
            await asyncio.sleep(pause_s)
            # Jobs are not to be slowed down.
            pause_s = _BUSY_S if self.jobs.running else SELF_TEST_S
            if not self.jobs.running:
                await self._test(self._options.matrix_s)
                await self._come_back()

    async def _test_after_errors(self, log: KernelLog) -> None:
        """Test as soon as the kernel's log tells of a broken GPU, whatever runs; so without a load of our own."""
        with contextlib.suppress(OSError):  # the self-test says that it cannot be read
            while True:
                await asyncio.sleep(self._options.heartbeat_s)
                news = await asyncio.to_thread(log.news)
                if self._report.gpus and not all(is_program(one) for one in news):
                    await self._test(0)
                    await self._come_back()

    async def _look_again(self) -> None:
        """Test once more if there are other GPUs than the last test has found: put in, taken out, a driver loaded."""
        if await asyncio.to_thread(self._uuids) != {gpu.uuid for gpu in self._report.gpus}:
            await self._test(0)  # whatever runs is not to be slowed down

    def _uuids(self) -> set[str]:
        try:
            return {gpu.uuid for gpu in self._facts.read().gpus}
        except GpuFactsUnavailable:
            return set()

    async def _come_back(self) -> None:
        """Connect anew, which is how a server is told of other GPUs."""
        if self._socket is not None:
            await self._socket.close()

    def _terms(self) -> Terms:
        options = self._options
        memory_mib = options.memory_mib or int(MEMORY_SHARE * memory_bytes()) >> 20
        return Terms(
            frozenset(options.programs), memory_mib, self._report.healthy(), options.containers
        )

    def _introduction(self) -> Introduction:
        sandbox = self.jobs.sandbox
        return Introduction(
            host_info=HostInfo(
                hostname=self._options.hostname,
                os=_os_name(),
                gpus=self._report.host_gpus(),
            ),
            isolation=sandbox.name,
            kinds=self.jobs.terms.kinds(sandbox),
            agent_version=__version__,
        )

    def _loads(self) -> list[GpuLoad]:
        if not self._report.gpus:
            return []
        try:
            gpus = self._facts.read().gpus
        except GpuFactsUnavailable:
            return []
        return [
            GpuLoad(
                uuid=gpu.uuid,
                load=gpu.load,
                memory_mib=gpu.vram_mib - gpu.free_mib,
                temperature=gpu.temperature,
            )
            for gpu in gpus
        ]


def _row_name(row: TestRow) -> str:
    return row.name if row.gpu is None else f"{row.name} of {row.gpu}"


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


async def run_agent(options: Options) -> None:
    """Run an agent until SIGTERM or SIGINT; a second one ends it without waiting for its jobs.

    Raises:
        AgentError: something that its owner has to mend.
    """
    identity = Identity.open(options.state_dir, options.endpoint)
    with Spool(identity.folder / SPOOL_NAME) as spool:
        if options.new_key:
            identity.make_next_key()
        sandbox = open_sandbox(options.sandbox, identity.folder)
        # The spool's lock is held: whatever is left is a dead agent's.
        await asyncio.to_thread(sandbox.clean)
        agent = Agent(options, identity, spool, sandbox, NvmlFacts())
        loop, running = asyncio.get_running_loop(), asyncio.create_task(agent.run())
        was_told = False

        def told() -> None:
            nonlocal was_told
            if was_told:
                running.cancel()
            was_told = True
            agent.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told)
        with contextlib.suppress(asyncio.CancelledError):
            await running
