"""Whom a node follows: one peer at a time, and another one beside it as soon as that one does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from random import SystemRandom
from typing import Any, NamedTuple, TypeVar

from pocqueue.pouw.errors import BadEncoding, LinkError, PouwError, SlotError
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.p2p.service import PeerInfo

#: A node asks somebody where it stands this often, even if nobody has anything new for it.
_LOOK_S = 10.0
#: How often it is looked at whether a peer still answers.
_SILENT_LOOK_S = 0.25

_T = TypeVar("_T")
_random = SystemRandom()


class Outcome(NamedTuple):
    """What came of following a peer."""

    rest_s: float  #: for so long it is left alone
    has_more: bool = False  #: it is to be followed again then
    has_failed: bool = False  #: somebody else may give what it has not given


class Following:
    """Follows peers that may have what is not here, chosen at random among those that were wished for. Of the event loop.

    Args:
        core: of the node.
        follow: takes in what a peer has, with `Core.ask`.
    """

    def __init__(self, core: Core, follow: Callable[[PeerInfo], Awaitable[Outcome]]) -> None:
        self._core, self._follow = core, follow
        self._wished: dict[bytes, PeerInfo] = {}
        #: Someone may be ready who was not.
        self._is_wished = asyncio.Event()
        #: When a peer may be followed again, by the monotonic clock.
        self._rests: dict[bytes, float] = {}
        self._followed: set[bytes] = set()
        self._look_at_s = time.monotonic() + _LOOK_S

    def wish(self, peer: PeerInfo) -> None:
        """Follow this peer soon."""
        self._wished[peer.account] = peer
        self._is_wished.set()

    def wish_now(self, peer: PeerInfo) -> None:
        """The same, though it had nothing new just now: what it has could not be taken then."""
        self._rests.pop(peer.account, None)
        self.wish(peer)

    async def run(self) -> None:
        """Follow those whom a wish names, and anybody now and then."""
        async with asyncio.TaskGroup() as group:
            while True:
                peer = await self._next()
                task = group.create_task(self._follow_to_end(peer))
                self._followed.add(peer.account)
                task.add_done_callback(functools.partial(self._ended, peer.account))
                while not task.done() and not self._core.is_silent(peer):
                    await asyncio.wait([task], timeout=_SILENT_LOOK_S)
                if not task.done():
                    self._wish_another()

    async def _follow_to_end(self, peer: PeerInfo) -> None:
        came = await self._follow(peer)
        self._rests[peer.account] = time.monotonic() + came.rest_s
        if came.has_more:
            self.wish(peer)
        if came.has_failed:
            self._wish_another()

    def _ended(self, who: bytes, _: asyncio.Task[None]) -> None:
        self._followed.discard(who)
        self._is_wished.set()

    def _wish_another(self) -> None:
        """Follow somebody else soon, if there is one who is not known to have nothing."""
        now_s = time.monotonic()
        others = [
            peer
            for peer in self._core.network.peers
            if peer.account not in self._followed
            and self._rests.get(peer.account, now_s) <= now_s
            and not self._core.is_silent(peer)
        ]
        if others:
            self.wish(_random.choice(others))

    async def _next(self) -> PeerInfo:
        """Wait for a peer that is to be followed."""
        while True:
            now_s, peers = time.monotonic(), self._core.network.peers
            if now_s >= self._look_at_s:
                self._look_at_s = now_s + _LOOK_S
                self._wished |= {peer.account: peer for peer in peers and [_random.choice(peers)]}
            linked = {peer.account for peer in peers}
            self._wished = {at: peer for at, peer in self._wished.items() if at in linked}
            self._rests = {at: end_s for at, end_s in self._rests.items() if end_s > now_s}
            waiting = [at for at in self._wished if at not in self._followed]
            ready = [at for at in waiting if at not in self._rests]
            if ready:
                return self._wished.pop(_random.choice(ready))
            ends_s = [self._rests[at] for at in waiting]
            self._is_wished.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self._look_at_s, *ends_s, now_s + _LOOK_S) - now_s):
                    await self._is_wished.wait()


async def of_one(
    core: Core, peers: Iterable[PeerInfo], get: Callable[[PeerInfo], Coroutine[Any, Any, _T]]
) -> _T:
    """Get something of one of some peers: of each once the one before has failed, or beside it if that is silent.

    Args:
        core: of the node.
        peers: in this order.
        get: gets it of one, by `Core.ask`.

    Raises:
        LinkError, BadEncoding, SlotError: that of the last one that failed, if all have.
    """
    failure: PouwError = LinkError("nobody has a link")
    left, getting = iter(peers), set[asyncio.Task[_T]]()
    try:
        while (peer := next(left, None)) is not None or getting:
            if peer is not None:
                getting.add(asyncio.create_task(get(peer)))
            done = set[asyncio.Task[_T]]()
            while not done and not (peer is not None and core.is_silent(peer)):
                done, getting = await asyncio.wait(
                    getting, timeout=_SILENT_LOOK_S, return_when=asyncio.FIRST_COMPLETED
                )
            for one in done:
                exc = one.exception()
                if exc is None:
                    return one.result()
                if not isinstance(exc, LinkError | BadEncoding | SlotError):
                    raise exc
                failure = exc
    finally:
        for one in getting:
            one.cancel()
        await asyncio.gather(*getting, return_exceptions=True)
    raise failure
