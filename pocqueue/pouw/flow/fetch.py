"""The fetching of one file of data: a chunk here, a chunk there, from whichever peers have them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection
from random import SystemRandom
from typing import Protocol

from pocqueue.poc.backoff import Backoff
from pocqueue.pouw.data.store import DataStore
from pocqueue.pouw.errors import BadEncoding, DataError, LinkError, PeerFault
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.data import Manifest, hash_of
from pocqueue.pouw.wire.requests import Chunk, ChunkRequest

#: Chunks of a file that are asked for at a time, and of them of one peer. A link has room for eight requests of all kinds.
_AT_ONCE, _OF_PEER = 4, 2
_ANSWER_S = 15.0
#: How often peers are looked at that are new, or have rested.
_LOOK_S = 0.25
#: A peer that has no answer is left alone for so long.
_RESTS = Backoff(first_s=0.5, longest_s=10.0)
#: For what is not what its hash says.
_POINTS = 50

_random = SystemRandom()


class Links(Protocol):
    """What of `p2p.network.Network` is used here."""

    @property
    def peers(self) -> list[PeerInfo]:
        """All that have a link now."""

    async def request(
        self, account: bytes, kind: Kind, body: bytes, timeout_s: float = 10.0
    ) -> bytes:
        """See `Network.request`."""

    def charge(self, account: bytes, points: int, reason: str) -> None:
        """See `Network.charge`."""


class Fetch:
    """One file on its way.

    Args:
        links: of the node; peers that come later are asked as well.
        store: where its chunks go; those that are there already are not asked for.
        name: of the data.
        needed: says which data make no room for it, once its size is known; None: all others do.
    """

    def __init__(
        self,
        links: Links,
        store: DataStore,
        name: str,
        needed: Callable[[], Collection[str]] | None = None,
    ) -> None:
        self._links, self._store = links, store
        self._name, self._needed = name, needed
        self._busy: Counter[bytes] = Counter()
        #: How often in a row a peer had no answer, and until when it rests, by the monotonic clock.
        self._rests: dict[bytes, tuple[int, float]] = {}
        #: Who sent what is not what its hash says: asked for nothing more of this file.
        self._liars: set[bytes] = set()
        #: How many chunks of it came.
        self.num_chunks = 0

    async def run(self) -> None:
        """Return when the file is here, however long that takes.

        Raises:
            DataError: there is no room for it, or no longer.
            NodeDataError: the disk is in trouble.
        """
        manifest = self._store.manifest(self._name)
        while manifest is None:
            manifest = await self._manifest()
        needed = () if self._needed is None else self._needed()
        left = list(await asyncio.to_thread(self._store.begin, manifest, needed))
        _random.shuffle(left)  # so that several who fetch it have something for each other
        asked: dict[asyncio.Task[bool], int] = {}
        try:
            while left or asked:
                while left and len(asked) < _AT_ONCE and (peer := self._peer()) is not None:
                    index = left.pop()
                    asked[asyncio.create_task(self._chunk(peer, index))] = index
                if not asked:
                    await asyncio.sleep(_LOOK_S)
                    continue
                done, _ = await asyncio.wait(
                    asked, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED
                )
                for one in done:
                    index = asked.pop(one)
                    if not one.result():
                        left.append(index)
        finally:
            for one in asked:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _manifest(self) -> Manifest | None:
        """Ask a peer for the manifest; None: it has none for us."""
        peer = self._peer()
        if peer is None:
            await asyncio.sleep(_LOOK_S)
            return None
        answer = await self._ask(peer, None)
        if answer is None:
            return None
        try:
            manifest = decode(answer, Manifest)
        except BadEncoding as exc:
            self._lied(peer, str(exc))
            return None
        if not manifest.is_whole or manifest.name != self._name:
            self._lied(peer, f"a manifest is not the one of {self._name}")
            return None
        return manifest

    async def _chunk(self, peer: PeerInfo, index: int) -> bool:
        """Ask a peer for a chunk; True: it is here."""
        answer = await self._ask(peer, index)
        if answer is None:
            return False
        try:
            chunk = decode(answer, Chunk).chunk
        except BadEncoding as exc:
            self._lied(peer, str(exc))
            return False
        if not await asyncio.to_thread(self._store.write, self._name, index, chunk):
            if self._store.manifest(self._name) is None:
                raise DataError("they made way for data that come before them.")
            self._lied(peer, f"chunk {index} of data {self._name} is not what its hash says")
            return False
        self.num_chunks += 1
        return True

    async def _ask(self, peer: PeerInfo, index: int | None) -> bytes | None:
        request = encode(ChunkRequest(hash_of(self._name), index))
        try:
            answer = await self._links.request(peer.account, Kind.CHUNK, request, _ANSWER_S)
        except LinkError as exc:
            failures = self._rests.get(peer.account, (0, 0.0))[0]
            until_s = time.monotonic() + _RESTS.pause_s(failures)
            self._rests[peer.account] = (failures + 1, until_s)
            if isinstance(exc, PeerFault):
                self._links.charge(peer.account, exc.points, str(exc))
            return None
        finally:
            self._busy[peer.account] -= 1
        self._rests.pop(peer.account, None)
        return answer

    def _lied(self, peer: PeerInfo, reason: str) -> None:
        self._liars.add(peer.account)
        self._links.charge(peer.account, _POINTS, reason)

    def _peer(self) -> PeerInfo | None:
        """Return who is asked next, and busy until it was: one of those that have least to do for us; None: nobody is
        to be asked now."""
        now_s = time.monotonic()
        ready = [
            peer
            for peer in self._links.peers
            if peer.account not in self._liars
            and self._busy[peer.account] < _OF_PEER
            and self._rests.get(peer.account, (0, 0.0))[1] <= now_s
        ]
        if not ready:
            return None
        chosen = min(ready, key=lambda peer: (self._busy[peer.account], _random.random()))
        self._busy[chosen.account] += 1
        return chosen
