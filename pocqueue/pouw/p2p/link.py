"""One peer: its frames in and out, its pings, its requests and ours."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from pocqueue.pouw.errors import BadEncoding, LinkError, PeerFault
from pocqueue.pouw.p2p.channel import Channel, SlowReader
from pocqueue.pouw.p2p.frames import (
    ANNOUNCED,
    LIMITS,
    PATIENT,
    PUSHED,
    REQUEST_ID_BYTES,
    REQUESTS,
    UNASKED,
    Kind,
    answer_to,
    is_answer,
)
from pocqueue.pouw.p2p.handshake import reason_of
from pocqueue.pouw.p2p.limits import FLOOD_POINTS, Rates
from pocqueue.pouw.p2p.messages import Ping, Reason
from pocqueue.pouw.p2p.service import NetworkConfig, PeerInfo
from pocqueue.pouw.wire.codec import decode, encode

#: Requests of ours that a peer has not answered; more wait here.
MAX_ASKED = 8
#: Requests of a peer that are served at once; more are refused. Above `MAX_ASKED`: ours may cross.
MAX_SERVED = 16
#: What a peer sent and nobody has looked at yet; above it, nothing more is read.
_MAX_INBOX_BYTES = 4 * 1024 * 1024
#: A peer that sends too much is read so much more slowly, a frame.
_FLOOD_PAUSE_S = 0.01

_REQUEST_ID = struct.Struct(">I")
_GOSSIP = frozenset({Kind.ANNOUNCE, Kind.WANT, *ANNOUNCED, *PUSHED})

logger = logging.getLogger(__name__)


class LinkOwner(Protocol):
    """Who decides what a peer's frames mean."""

    async def on_message(self, link: Link, kind: Kind, body: bytes) -> None:
        """Take gossip; the next one comes when this returns, but for a WANT, which has a line of its own.

        Raises:
            PeerFault: it is held against the peer.
        """

    async def on_request(self, link: Link, kind: Kind, body: bytes) -> bytes:
        """Return an answer; LinkError refuses."""

    def on_fault(self, link: Link, fault: PeerFault) -> None:
        """Hold something against the peer."""

    def on_end(self, link: Link, reason: str) -> None:
        """Count on the link no more; the reason fits behind a colon. Called once."""


class Link:
    """A connection to a peer whose key is proven.

    Args:
        channel: behind the handshake.
        peer: who it is.
        owner: see `LinkOwner`.
        config: name for logs, and times.
    """

    def __init__(
        self, channel: Channel, peer: PeerInfo, owner: LinkOwner, config: NetworkConfig
    ) -> None:
        self.account = peer.account
        self.outbound = peer.outbound
        self.began_s = time.monotonic()
        self._channel, self._peer, self._owner, self._config = channel, peer, owner, config
        self._rates = Rates()
        # What is given comes in bunches after a delay on the way: half of a burst is left for that.
        self._given = Rates(burst_share=0.5)
        self._unasked, self._pushed = Rates(limits=UNASKED), Rates(0.5, UNASKED)
        # A peer that wants much and reads slowly waits for that alone.
        self._inbox, self._wants = _Inbox(), _Inbox()
        self._heard_s = self.began_s
        self._ping: tuple[bytes, float] = (b"", 0.0)
        self._rtt_s: float | None = None
        self._request_ids = itertools.count(1)
        self._asked: dict[int, tuple[Kind, asyncio.Future[bytes]]] = {}
        self._may_ask = asyncio.Semaphore(MAX_ASKED)
        self._one_at_a_time = asyncio.Lock()
        self._serving: set[asyncio.Task[None]] = set()
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def info(self) -> PeerInfo:
        """The peer as it is now."""
        peer = self._peer
        return PeerInfo(
            peer.account,
            peer.node_id,
            peer.role,
            peer.host,
            peer.port,
            self._rtt_s,
            peer.outbound,
            peer.since,
        )

    async def run(self) -> None:
        """Keep the link until it has ended and everything is sent."""
        loops = [
            asyncio.create_task(self._guarded(loop))
            for loop in (
                self._read,
                partial(self._work, self._inbox),
                partial(self._work, self._wants),
                self._keep_alive,
            )
        ]
        try:
            await self._over
        finally:
            self._end("this node stops")
            tasks = [*loops, *self._serving]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _, answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(LinkError(self._over.result()))
            await self._channel.close()

    def close(self, reason: Reason) -> None:
        """End the link soon, with a goodbye. May be called again."""
        if not self._over.done():
            self._channel.say_goodbye(reason)
            self._end(reason.by_us)

    def send(self, kind: int, *parts: bytes) -> None:
        """Send a frame soon. A peer that does not read what was sent before loses the link."""
        try:
            self._channel.send(kind, *parts)
        except SlowReader:
            self.close(Reason.SLOW)
        except LinkError:
            # The connection is over; why, whoever reads it finds out: the peer's goodbye may be there and not read yet.
            return

    async def send_in_turn(self, kind: int, *parts: bytes) -> None:
        """Send a large frame as soon as little waits for the peer."""
        async with self._one_at_a_time:
            await self._channel.has_room()
            self.send(kind, *parts)

    def may_push(self, kind: Kind) -> bool:
        """Count what goes to the peer without being asked for; False if it is one too many: half of what it takes."""
        return kind in UNASKED and self._pushed.allows(kind, time.monotonic())

    def may_come_unasked(self, kind: Kind) -> bool:
        """Count what the peer sends without being asked for; False if it is one too many."""
        return kind in UNASKED and self._unasked.allows(kind, time.monotonic())

    async def turn_to_give(self, kind: Kind) -> None:
        """Wait until the peer may be given one more of what it wants: so many as it may send of that itself."""
        while True:
            wait_s = self._given.wait_s(kind, time.monotonic())
            if not wait_s:
                return
            await asyncio.sleep(wait_s)

    def fault(self, fault: PeerFault) -> None:
        """Hold something against the peer."""
        self._owner.on_fault(self, fault)

    async def request(self, kind: Kind, body: bytes, timeout_s: float) -> bytes:
        """Return the peer's answer.

        Raises:
            LinkError: it refuses, does not answer in time, or the link is over.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._may_ask.acquire()
                if self._over.done():
                    raise LinkError(self._over.result())
                number = next(self._request_ids) % 2**32
                answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
                # Stays there until the peer answers, however late: so one that answers late is no stranger, and one
                # that never does is not asked without end.
                self._asked[number] = (kind, answer)
                self.send(kind, _REQUEST_ID.pack(number), body)
                return await answer
        except TimeoutError:
            raise LinkError(f"it did not answer {kind.name} within {timeout_s:g} s") from None

    async def _read(self) -> None:
        while True:
            number, body = await self._channel.read()
            now_s = self._heard_s = time.monotonic()
            if is_answer(number):
                self._take_answer(number, body)
                continue
            kind = Kind(number)
            if kind in PATIENT:
                await asyncio.sleep(self._rates.wait_s(kind, now_s))
            elif not self._rates.allows(kind, now_s):
                if self._rates.is_flood(kind, now_s):
                    flood = PeerFault(FLOOD_POINTS, f"flood: it sends too many {kind.name}")
                    self._owner.on_fault(self, flood)
                await asyncio.sleep(_FLOOD_PAUSE_S)
                continue
            if kind in _GOSSIP:
                inbox = self._wants if kind == Kind.WANT else self._inbox
                await inbox.put(kind, body)
            elif kind in REQUESTS:
                self._take_request(kind, body)
            elif kind == Kind.PING:
                self.send(Kind.PONG, body)
            elif kind == Kind.PONG:
                self._take_pong(body, now_s)
            elif kind == Kind.GOODBYE:
                # In its turn: nobody else may have what the peer said before. Nothing comes after it.
                await self._inbox.put(kind, body)
                return
            else:
                raise PeerFault(20, f"it sent {kind.name} after the handshake")

    async def _work(self, inbox: _Inbox) -> None:
        while True:
            kind, body = await inbox.get()
            if kind == Kind.GOODBYE:
                raise LinkError(reason_of(body).by_peer)
            await self._tried(self._owner.on_message(self, kind, body))
            if not inbox.is_empty:
                await asyncio.sleep(0)  # others have their turn, however much this one sends

    async def _keep_alive(self) -> None:
        while True:
            now_s = time.monotonic()
            if now_s - self._heard_s > self._config.dead_s:
                raise LinkError(f"nothing came from it for {self._config.dead_s:g} s")
            self._ping = (secrets.token_bytes(8), now_s)
            self.send(Kind.PING, encode(Ping(self._ping[0])))
            await asyncio.sleep(self._config.ping_s)

    def _take_pong(self, body: bytes, now_s: float) -> None:
        try:
            token = decode(body, Ping).token
        except BadEncoding:
            raise PeerFault(20, "it sent no PONG where one is due") from None
        if token == self._ping[0]:
            self._rtt_s = now_s - self._ping[1]

    def _take_answer(self, number: int, body: bytes) -> None:
        if len(body) < REQUEST_ID_BYTES:
            raise PeerFault(20, "it sent an answer without a number")
        kind, answer = self._asked.pop(_REQUEST_ID.unpack_from(body)[0], (None, None))
        if kind is None or answer is None or number not in (answer_to(kind), Kind.REFUSED):
            raise PeerFault(20, "it answered what it was not asked")
        self._may_ask.release()
        if answer.done():
            return  # too late
        if number == Kind.REFUSED:
            answer.set_exception(LinkError(f"it has no answer to {kind.name}"))
        else:
            answer.set_result(body[REQUEST_ID_BYTES:])

    def _take_request(self, kind: Kind, body: bytes) -> None:
        if len(body) < REQUEST_ID_BYTES:
            raise PeerFault(20, "it sent a request without a number")
        number, body = body[:REQUEST_ID_BYTES], body[REQUEST_ID_BYTES:]
        if len(self._serving) >= MAX_SERVED:
            self.send(Kind.REFUSED, number)
            return
        task = asyncio.create_task(self._guarded(partial(self._serve, kind, number, body)))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, kind: Kind, number: bytes, body: bytes) -> None:
        answer = await self._tried(self._owner.on_request(self, kind, body))
        if answer is not None and len(answer) + len(number) > LIMITS[answer_to(kind)].max_bytes:
            logger.error(
                "[%s] An answer to %s has %d bytes, which nobody takes: it was not sent.",
                *(self._config.node_id, kind.name, len(answer)),
            )
            answer = None
        if answer is None:
            await self.send_in_turn(Kind.REFUSED, number)
        else:
            await self.send_in_turn(answer_to(kind), number, answer)

    async def _tried(self, work: Awaitable[Any]) -> Any:
        """Return what the owner returns; None if it raises. No message of a peer ends more than itself."""
        try:
            return await work
        except PeerFault as fault:
            self._owner.on_fault(self, fault)
        except LinkError:
            pass
        except Exception:
            logger.exception("[%s] A message of a peer was not understood.", self._config.node_id)
        return None

    async def _guarded(self, part: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a part of the link; what it raises ends the link."""
        try:
            await part()
        except SlowReader:
            self.close(Reason.SLOW)
        except PeerFault as fault:
            self._owner.on_fault(self, fault)
            self.close(Reason.FAULT)
        except LinkError as exc:
            self._end(str(exc))
        except Exception:
            logger.exception("[%s] A link failed.", self._config.node_id)
            self._end("this node failed")

    def _end(self, reason: str) -> None:
        if not self._over.done():
            self._over.set_result(reason)
            self._owner.on_end(self, reason)


class _Inbox:
    """Gossip in its order, for one that puts in and one that takes out; the first waits while there is too much."""

    def __init__(self) -> None:
        self._items: deque[tuple[Kind, bytes]] = deque()
        self._bytes = 0
        self._filled, self._drained = asyncio.Event(), asyncio.Event()

    @property
    def is_empty(self) -> bool:
        return not self._items

    async def put(self, kind: Kind, body: bytes) -> None:
        while self._bytes >= _MAX_INBOX_BYTES:
            self._drained.clear()
            await self._drained.wait()
        self._items.append((kind, body))
        self._bytes += len(body) + 100
        self._filled.set()

    async def get(self) -> tuple[Kind, bytes]:
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        kind, body = self._items.popleft()
        self._bytes -= len(body) + 100
        self._drained.set()
        return kind, body
