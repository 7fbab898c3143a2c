"""The middle of a gateway: its sockets by node, what it has heard of them, and the store behind a thread.

Promises:
- The database is the truth. What is kept here (which socket is whose, who was heard since the last flush) is lost
  with the process, and made anew when the nodes come back.
- No socket ends because Redis or the database is away: what was heard is written down when it is back, a result
  is taken in again and again until it is kept, and only then acknowledged.
- A message to a node is bounded in size and time: who does not read is cut off.

Everything but `db` belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
import uuid
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, ParamSpec, Self, TypeVar

from typing_extensions import override

from pocqueue.closing import AsyncClosing
from pocqueue.errors import StoreError
from pocqueue.hosts.errors import DatabaseUnavailable, DatabaseUnfit, LeaseLost, UnknownJob
from pocqueue.hosts.gateway.beats import Beats
from pocqueue.hosts.gateway.changes import Changes
from pocqueue.hosts.gateway.job_message import job_message, sleep_job
from pocqueue.hosts.gateway.limits import RateLimits
from pocqueue.hosts.gateway.messenger import Messenger, What
from pocqueue.hosts.gateway.metrics import Metrics
from pocqueue.hosts.gateway.store_threads import StoreThreads
from pocqueue.hosts.gateway.timings import GatewayTimings
from pocqueue.hosts.leases import LEASE_MS
from pocqueue.hosts.records import Beat, Node
from pocqueue.hosts.store import HostStore
from pocqueue.hosts.wire import CloseCode, Drain, JobCancel, JobRef, Message, Replaced, RotateKey
from pocqueue.rounds.relays import BEAT_S, Relays
from pocqueue.web.failure_limit import FailureLimit

logger = logging.getLogger(__name__)

#: Calls of sockets that are nobody's yet that wait for the store's threads: heartbeats and results wait behind them.
MAX_ENTERING: Final = 64

P = ParamSpec("P")
T = TypeVar("T")

#: Tries are so many times rarer as long as a person has to mend the database first.
_UNFIT_FACTOR: Final = 10


class Connection:
    """A node's socket as the hub sees it; `socket.AgentSocket` is one. There are thousands of them."""

    __slots__ = ("delivered", "id", "node")

    id: str  #: that no other socket has
    node: Node
    #: Attempts that were sent on it and have not ended, by job and number.
    delivered: set[tuple[str, int]]

    async def send(self, message: Message) -> bool:
        """Send a message; False: it cannot be sent any more."""
        raise NotImplementedError

    async def answers(self) -> bool:
        """Say whether its machine answers a ping."""
        raise NotImplementedError

    async def close(self, code: CloseCode) -> None:
        """End it."""
        raise NotImplementedError


@dataclass(slots=True)
class _Heard:
    """Of one node, since the last flush."""

    socket: str
    at_ms: int
    jobs: tuple[str, ...] = ()
    polls: bool = False


@dataclass(eq=False)
class Hub(AsyncClosing):
    """One gateway's hub. A context manager within the event loop that it belongs to."""

    relay: str  #: this gateway's name
    store: HostStore
    messenger: Messenger
    relays: Relays | None = None  #: where it says that it is there; None: nowhere
    limits: RateLimits = field(default_factory=RateLimits)
    failures: FailureLimit = field(default_factory=FailureLimit)  #: of wrong tokens and signatures
    metrics: Metrics = field(default_factory=Metrics)
    timings: GatewayTimings = field(default_factory=GatewayTimings)
    #: Names by which agents may call this gateway; None: any.
    origins: frozenset[str] | None = None

    def __post_init__(self) -> None:
        self._threads = StoreThreads(self.store.database)
        self._name, self._numbers = uuid.uuid4().hex, itertools.count()
        self._connections: dict[str, Connection] = {}
        self._heard: dict[str, _Heard] = {}
        self._loads: dict[tuple[str, str], float] = {}
        self._joining: weakref.WeakValueDictionary[str, asyncio.Lock] = (
            weakref.WeakValueDictionary()
        )
        #: Held while the store is called for a socket that is nobody's yet.
        self.entering = asyncio.Semaphore(MAX_ENTERING)
        self._tasks: set[asyncio.Task[None]] = set()
        self._flushing = asyncio.Lock()
        self._away_s: float | None = None  # since when the database is away
        self._quiet_until_s = 0.0  # see `has_heard_all`; both by `time.monotonic`
        self.beats = Beats()  #: that are not answered yet
        self.changes = Changes()  #: of wallets, for pages that are open
        self.num_sockets = 0  #: open ones, of nodes and of nobody yet
        self.loop: asyncio.AbstractEventLoop | None = None  #: once it runs

    @override
    async def __aenter__(self) -> Self:
        """Begin; waits for a database that is away."""
        self.loop = asyncio.get_running_loop()
        await self.patiently(self.store.presence.relay_started, self.relay)
        self.spawn(self._flush_for_ever())
        self.spawn(self._keep_loads_for_ever())
        if self.relays is not None:
            self.spawn(self._beat_for_ever(self.relays))
        return self

    @override
    async def close(self) -> None:
        """Write down what was heard, and end."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.flush()
        if self.relays is not None:
            try:
                await asyncio.to_thread(self.relays.leave, self.relay)
            except StoreError as exc:
                logger.debug("It is not said in Redis that this gateway ends: %s", exc)
        await asyncio.to_thread(self._threads.close)

    async def db(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the store in its thread."""
        return await self._threads.call(call, *args, **kwargs)

    async def patiently(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the store until its database is there."""
        while True:
            try:
                return await self.db(call, *args, **kwargs)
            except DatabaseUnavailable as exc:
                self._note_away(exc)
                await asyncio.sleep(self.timings.retry_s)
            except DatabaseUnfit as exc:
                self._note_away(exc)
                await asyncio.sleep(_UNFIT_FACTOR * self.timings.retry_s)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something for as long as the hub does, at most."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("A part of the gateway failed: %s", exc, exc_info=exc)

    @property
    def num_connections(self) -> int:
        """Nodes that have a socket here."""
        return len(self._connections)

    @property
    def num_tasks(self) -> int:
        """What it is at now."""
        return len(self._tasks)

    # Sockets

    def new_id(self) -> str:
        """Return an id for a socket that no other has, here or at another gateway."""
        return f"{self._name}.{next(self._numbers)}"

    def joining(self, node_id: str) -> asyncio.Lock:
        """Return the lock under which sockets become a node's."""
        return self._joining.setdefault(node_id, asyncio.Lock())

    def has(self, node_id: str) -> bool:
        """Say whether a node has a socket here."""
        return node_id in self._connections

    async def is_free(self, node_id: str, connection: Connection) -> bool:
        """Say whether a socket may be a node's: it has no other one here, or one whose machine does not answer."""
        old = self._connections.get(node_id)
        return old is None or old is connection or not await old.answers()

    async def join(self, connection: Connection, before: tuple[str, str] | None) -> None:
        """Make a socket its node's, as the database has it already. To be called under `joining`.

        Args:
            before: what it replaces, see `store.nodes.Resumed`.
        """
        node = connection.node
        if before is not None and before[0] != self.relay:
            self.messenger.tell(before[0], What.REPLACED, node.id, before[1])
        old = self._connections.get(node.id)
        # At once, so that whatever is decided about the node finds it: the older one may take its time to end.
        self._connections[node.id] = connection
        if old is not None and old is not connection:
            self.spawn(self._replace(old))
        self.changes.tell(node.wallet)

    async def leave(self, connection: Connection) -> None:
        """Note that a socket has ended."""
        node_id = connection.node.id
        if self._connections.get(node_id) is not connection:
            return
        del self._connections[node_id]
        heard = self._heard.pop(node_id, None)
        if heard is not None and heard.jobs:
            beat = Beat(node_id, heard.socket, heard.at_ms, heard.jobs)
            await self.patiently(self.store.presence.heard, [beat])
        await self.patiently(self.store.presence.disconnected, node_id, connection.id)
        # Agents without a key do not come back, and what they had goes to others.
        self.messenger.look()
        self.changes.tell(connection.node.wallet)

    def heard(self, connection: Connection, jobs: tuple[JobRef, ...] = ()) -> None:
        """Note that a node spoke, and which jobs it named; one that has a newer socket has not."""
        if self._connections.get(connection.node.id) is not connection:
            return
        self.spoke(connection.node.id, connection.id, jobs)

    def spoke(
        self, node_id: str, socket: str, jobs: tuple[JobRef, ...] = (), *, polls: bool = False
    ) -> None:
        """Note that a node spoke on its connection, by the id of that, and which jobs it named; see `Beat`."""
        now_ms = self.store.now_ms()
        known = self._heard.get(node_id)
        if known is None or known.socket != socket:
            known = self._heard[node_id] = _Heard(socket, now_ms)
        known.at_ms, known.polls = now_ms, polls
        if jobs:
            known.jobs = tuple(job.id for job in jobs)

    def load(self, node_id: str, uuid: str, percent: float) -> None:
        """Note how busy a GPU is; the newest figure of a minute is kept."""
        self._loads[node_id, uuid] = percent

    # What happens elsewhere

    async def tell(self, what: What, node_id: str, job_id: str = "", n: int = 0) -> str:
        """Tell a node of this gateway; return a word about it for Flower."""
        connection = self._connections.get(node_id)
        if connection is None:
            # A job's lease runs out, or its node comes back before that and gets it then.
            return "not connected"
        self.changes.tell(connection.node.wallet)
        if what is What.DRAIN:
            return "sent" if await connection.send(Drain()) else "not sent"
        if what is What.END:
            await connection.close(CloseCode.BANNED)
            return "closed"
        if what is What.REPLACED:
            if connection.id != job_id:
                return "it has come back"
            await self._replace(connection)
            return "closed"
        if what in {What.ROTATE, What.CANCEL} and connection.node.protocol == 1:
            return "an agent of protocol 1 cannot be told"
        if what is What.ROTATE:
            return "sent" if await connection.send(RotateKey()) else "not sent"
        if what is What.CANCEL:
            return "sent" if await connection.send(JobCancel(id=job_id, attempt=n)) else "not sent"
        return await self.deliver(connection, job_id, n)

    async def deliver(self, connection: Connection, job_id: str, n: int) -> str:
        """Send an attempt of a job to its node, once a socket; return a word about it."""
        try:
            job, attempt = await self.db(self.store.leases.sent, job_id, n)
        except UnknownJob:
            return "unknown"
        except LeaseLost:
            return "over"
        if attempt.node_id != connection.node.id:
            return "another node's"
        if (job_id, n) in connection.delivered:
            return "sent before"
        connection.delivered.add((job_id, n))
        self.changes.tell(connection.node.wallet)
        self.metrics.dispatch.observe((self.store.now_ms() - attempt.leased_ms) / 1000)
        return (
            "sent"
            if await connection.send(job_message(job, attempt, connection.node))
            else "not sent"
        )

    async def give_first_job(self, node_id: str) -> None:
        """Give a node that has come its test job, a little later, unless it has done it."""
        await asyncio.sleep(self.timings.first_job_s)
        new = sleep_job(node_id, self.timings.test_job_s)
        made = await self.patiently(self.store.jobs.submit_test, new)
        if made is not None:
            self.messenger.place(made.id)

    # Loops

    async def flush(self) -> bool:
        """Write down what was heard since the last time; what cannot be written now, for whatever reason, is kept.

        Returns:
            Whether it was written; also if there is nothing to write, the database has been asked.
        """
        # Whoever comes second may rely on what the first one takes along.
        async with self._flushing:
            heard, self._heard = self._heard, {}
            beats = [
                Beat(node_id, one.socket, one.at_ms, one.jobs, one.polls)
                for node_id, one in heard.items()
            ]
            is_written = False
            try:
                await self._write(beats)
                is_written = True
            except (DatabaseUnavailable, DatabaseUnfit) as exc:
                self._note_away(exc)
            except Exception:
                logger.exception("What nodes say is kept for later.")
            finally:
                if not is_written:
                    # What came meanwhile is newer.
                    self._heard = heard | self._heard
            return is_written

    async def has_heard_all(self) -> bool:
        """Say whether the database has all that nodes have said, here and, as far as is known here, elsewhere.

        Other gateways get as long as the database was away to write down what they have heard meanwhile, a lease's
        time at most.
        """
        return await self.flush() and time.monotonic() >= self._quiet_until_s

    async def _write(self, beats: list[Beat]) -> None:
        await self.db(self.store.presence.heard, beats)
        for node_id in await self.db(self.store.presence.out_on, self.relay):
            # Whoever decided it has told us, but that message may be lost.
            if (connection := self._connections.get(node_id)) is not None:
                self.spawn(connection.close(CloseCode.BANNED))
        if self._away_s is not None:
            now_s = time.monotonic()
            self._quiet_until_s = now_s + min(LEASE_MS / 1000, now_s - self._away_s)
            self._away_s = None
            logger.info("The hosts database is back.")

    def _note_away(self, exc: DatabaseUnavailable | DatabaseUnfit) -> None:
        """Say once that the database is away, however many wait for it."""
        if self._away_s is None:
            self._away_s = time.monotonic()
            logger.warning("What nodes say is kept for later. %s", exc)

    async def _flush_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.timings.flush_s)
            await self.flush()

    async def _keep_loads_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.timings.loads_s)
            loads, self._loads = self._loads, {}
            # A picture of a day lacks a minute of it if the database is away.
            with contextlib.suppress(DatabaseUnavailable, DatabaseUnfit):
                await self.db(self.store.health.add_loads, loads)

    async def _beat_for_ever(self, relays: Relays) -> None:
        is_away = False
        while True:
            try:
                await asyncio.to_thread(relays.beat, self.relay)
                if is_away:
                    logger.info("Redis is back.")
                is_away = False
            except StoreError as exc:
                if not is_away:
                    logger.warning("Sockets stay; jobs wait. %s", exc)
                is_away = True
            await asyncio.sleep(BEAT_S)

    async def _replace(self, old: Connection) -> None:
        if self._connections.get(old.node.id) is old:
            del self._connections[old.node.id]
        await old.send(Replaced())
        await old.close(CloseCode.REPLACED)
