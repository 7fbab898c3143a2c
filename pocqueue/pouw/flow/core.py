"""What all loops of a node share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pocqueue.pouw.chain.chain import Chain
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.mempool import Mempool
from pocqueue.pouw.config import NodeConfig
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.errors import PouwError
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.network import Network
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.security import SecuritySystem

if TYPE_CHECKING:
    from pocqueue.node.keys import SigningKey
    from pocqueue.pouw.slots.history import Lane, SlotHistory
    from pocqueue.pouw.training.trainer import Trainer

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Until a loop that failed begins again.
_PAUSE_S = 1.0
#: A peer that has not answered for so long is not waited for alone.
_SILENT_S = 2.0

_log = logging.getLogger(__name__)


class Bell:
    """Wakes everybody who waits for something to happen once more."""

    def __init__(self) -> None:
        self._next = asyncio.Event()
        self._also = list[asyncio.Event]()

    def ring(self) -> None:
        """Wake those who wait now."""
        rung, self._next = self._next, asyncio.Event()
        rung.set()
        for event in self._also:
            event.set()

    @contextlib.contextmanager
    def sets(self, event: asyncio.Event) -> Iterator[None]:
        """Set an event with each ring within the block: so one waiter hears several bells, and misses none."""
        self._also.append(event)
        try:
            yield
        finally:
            self._also.remove(event)

    async def heard(self, timeout_s: float | None = None) -> bool:
        """Wait for the next ring; False: none came in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._next.wait()
        except TimeoutError:
            return False
        return True


@dataclass
class Counts:
    """What a node has done since it was started."""

    blocks_mined: int = 0
    rewards: int = 0  #: µPAI
    network_messages: int = 0


@dataclass(eq=False)
class Core:
    """The parts of a node that its loops work on."""

    config: NodeConfig
    genesis: Genesis
    key: SigningKey
    account: bytes
    chain: Chain
    mempool: Mempool
    trainer: Trainer
    security: SecuritySystem | None
    network: Network
    counts: Counts = field(default_factory=Counts)
    #: It has had everything of one of its peers.
    is_current: asyncio.Event = field(default_factory=asyncio.Event)
    #: The tip or the anchor is another one.
    chain_changed: Bell = field(default_factory=Bell)
    #: There is a transaction more.
    mempool_changed: Bell = field(default_factory=Bell)
    #: Says whether a task's data are here, and why they are no good or will not come; see `flow.datasets`.
    has_data: Callable[[bytes], bool] = lambda _task: True
    data_problem: Callable[[bytes], str | None] = lambda _task: None
    #: Says, in the slots' thread, whether the noise of a private task's message was shown to this node; see `flow.noise`.
    is_shown: Callable[[SlotHistory, int, Lane], bool] = lambda _history, _slot, _lane: True
    #: Who was asked for what has not come, and since when, by the monotonic clock.
    _asked: dict[object, tuple[bytes, float]] = field(default_factory=dict, init=False)
    # One: the chain is not for two threads at a time.
    thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="chain")
    )

    @property
    def name(self) -> str:
        """Return what goes before each line of the log."""
        return f"[{self.config.node_id}]"

    @property
    def retrains(self) -> bool:
        """It does a winner's training over before it takes a block."""
        return self.config.role is not NodeRole.PEER

    async def in_chain(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Do something with chain or mempool in their thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.thread, lambda: work(*args, **kwargs))

    async def ask(
        self, peer: PeerInfo, kind: Kind, body: bytes = b"", timeout_s: float = 10.0
    ) -> bytes:
        """Return a peer's answer; see `Network.request`."""
        request = object()
        self._asked[request] = peer.account, time.monotonic()
        try:
            return await self.network.request(peer.account, kind, body, timeout_s)
        finally:
            del self._asked[request]

    def is_silent(self, peer: PeerInfo) -> bool:
        """Say whether a peer has let something that it was asked wait for so long that others should be asked as well."""
        long_ago_s = time.monotonic() - _SILENT_S
        return any(who == peer.account and at < long_ago_s for who, at in self._asked.values())

    def alert(
        self, kind: str, detail: str, *, source: bytes = b"", slot: int = 0, evidence: bytes = b""
    ) -> None:
        """Tell whoever watches over security, if anybody does."""
        if self.security is not None:
            self.security.tell(
                kind,
                source_peer=source.hex(),
                detail=detail,
                height=self.chain.tip.height,
                slot=slot,
                evidence=evidence.hex(),
            )


async def wait_for(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Wait until an event is set; False: it was not in time."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


def now_ms() -> int:
    """Return the time in ms since 1970."""
    return time.time_ns() // 1_000_000


class Tasks:
    """What a node does beside other things: each is awaited by somebody, and what it raises is logged."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Let something go on until it ends or all are closed."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def keep(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Let a loop go on until all are closed; one that fails is logged, and begins again after a pause."""
        self.start(self._kept(run))

    async def close(self) -> None:
        """End what still goes on."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _kept(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await run()
            except Exception as exc:  # noqa: BLE001 - whatever it is, the others go on
                # A loop of several tasks raises what they did in a group.
                known, rest = _split(exc)
                for one in known:
                    _log.error("%s It goes on in %g s: %s", self._name, _PAUSE_S, one)
                if rest is not None:
                    _log.error(
                        "%s A part of the node failed and begins again", self._name, exc_info=rest
                    )
            await asyncio.sleep(_PAUSE_S)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            _log.error("%s A part of the node failed: %s", self._name, exc, exc_info=exc)


def _split(exc: Exception) -> tuple[list[PouwError], Exception | None]:
    """Return what of an exception, which may be a group, a sentence says, and the rest; None: all of it."""
    if isinstance(exc, PouwError):
        return [exc], None
    if not isinstance(exc, ExceptionGroup):
        return [], exc
    known, rest = exc.split(PouwError)
    found: list[PouwError] = []
    for one in known.exceptions if known is not None else ():
        found += _split(one)[0]
    return found, rest
