"""A file comes from several peers at once: lies are held against who told them, and nothing is asked for twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pocqueue.pouw.data.manifest import chunks, manifest_of
from pocqueue.pouw.data.store import DataStore
from pocqueue.pouw.errors import DataError, LinkError, PeerFault
from pocqueue.pouw.flow import fetch as fetch_module
from pocqueue.pouw.flow.fetch import Fetch
from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.service import PeerInfo
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.data import CHUNK_BYTES, MAX_DATA_BYTES, Manifest
from pocqueue.pouw.wire.requests import Chunk, ChunkRequest
from tests.pouw.flow.nodes import until
from tests.pouw.flow.parts import PEER
from tests.pouw.support import account
from tests.support.waiting import PATIENCE_S

DATA = b"".join(bytes([number]) * CHUNK_BYTES for number in range(1, 10)) + b"end"
MANIFEST = manifest_of(DATA)
PIECES = list(chunks(DATA))

Peer = Callable[[ChunkRequest], bytes]


def honest(request: ChunkRequest) -> bytes:
    """Answer as whoever has the file."""
    assert request.data.hex() == MANIFEST.name[2:]
    return encode(MANIFEST if request.index is None else Chunk(PIECES[request.index]))


def away(_request: ChunkRequest) -> bytes:
    """Answer nothing."""
    raise LinkError("it does not answer")


def liar(request: ChunkRequest) -> bytes:
    """Answer with another chunk than that which was asked for."""
    return honest(request) if request.index is None else encode(Chunk(b"lie"))


@dataclass
class Links:
    """Links to made-up peers by name."""

    answers: dict[str, Peer]
    charged: list[tuple[str, int]] = field(default_factory=list)
    asked: Counter[tuple[str, int | None]] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    most_busy: int = 0

    @property
    def peers(self) -> list[PeerInfo]:
        """See `Network.peers`."""
        return [replace(PEER, account=account(name), node_id=name) for name in self.answers]

    async def request(
        self, account: bytes, kind: Kind, body: bytes, timeout_s: float = 10.0
    ) -> bytes:
        """See `Network.request`."""
        assert kind is Kind.CHUNK
        assert timeout_s > 0
        name = self._name(account)
        request = decode(body, ChunkRequest)
        self.asked[name, request.index] += 1
        self.busy[name] += 1
        self.most_busy = max(self.most_busy, self.busy[name])
        await asyncio.sleep(0)  # others have their turn, as over a wire
        self.busy[name] -= 1
        return self.answers[name](request)

    def charge(self, account: bytes, points: int, reason: str) -> None:
        """See `Network.charge`."""
        assert reason
        self.charged.append((self._name(account), points))

    def _name(self, who: bytes) -> str:
        return next(name for name in self.answers if account(name) == who)


async def _fetched(links: Links, store: DataStore) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await Fetch(links, store, MANIFEST.name).run()
    path = store.path(MANIFEST.name)
    assert path is not None
    assert path.read_bytes() == DATA


async def test_chunks_come_from_all_who_have_them(tmp_path: Path) -> None:
    """Each is asked for once, and no peer for more than two at a time."""
    links = Links({"a": honest, "b": honest, "c": honest})
    with DataStore(tmp_path, MAX_DATA_BYTES) as store:
        await _fetched(links, store)
    indices = [index for _, index in links.asked.elements()]
    assert sorted(index for index in indices if index is not None) == [*range(10)]
    assert len({name for name, index in links.asked if index is not None}) == 3
    assert links.most_busy <= 2
    assert links.charged == []


async def test_wrong_bytes_are_held_against_whoever_sends_them(tmp_path: Path) -> None:
    """It is asked for nothing more, and others for what it lied about."""
    links = Links({"liar": liar, "honest": honest})
    with DataStore(tmp_path, MAX_DATA_BYTES) as store:
        await _fetched(links, store)
    # Two are under way when the first comes to light.
    assert links.charged
    assert set(links.charged) == {("liar", 50)}
    assert (
        links.asked.total() - sum(links.asked["honest", index] for index in (None, *range(10))) <= 3
    )


def _other_manifest(_request: ChunkRequest) -> bytes:
    return encode(manifest_of(b"other"))


def _torn_manifest(_request: ChunkRequest) -> bytes:
    return encode(Manifest(len(DATA), MANIFEST.chunks[:-1]))


def _no_manifest(_request: ChunkRequest) -> bytes:
    return b"\xc1"


def _no_chunk(request: ChunkRequest) -> bytes:
    return honest(request) if request.index is None else b"\xc1"


@pytest.mark.parametrize("lie", [_other_manifest, _torn_manifest, _no_manifest, _no_chunk])
async def test_what_is_no_answer_is_a_lie_as_well(tmp_path: Path, lie: Peer) -> None:
    """A manifest of other data, of too few chunks, and bytes that are nothing."""
    links = Links({"liar": lie})
    with DataStore(tmp_path, MAX_DATA_BYTES) as store:
        fetching = asyncio.create_task(_fetched(links, store))
        await until(lambda: bool(links.charged), "a charge")
        links.answers["late"] = honest
        await fetching
    assert set(links.charged) == {("liar", 50)}


async def test_a_peer_without_an_answer_is_no_liar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It rests longer each time, and is asked again; a fault of its link is told."""
    monkeypatch.setattr(fetch_module, "_LOOK_S", 0.001)
    answers = [away, away, honest]

    def soon(request: ChunkRequest) -> bytes:
        return (answers.pop(0) if len(answers) > 1 else answers[0])(request)

    def broken(_request: ChunkRequest) -> bytes:
        raise PeerFault(20, "an answer that nobody asked for")

    links = Links({"soon": soon})
    with DataStore(tmp_path, MAX_DATA_BYTES) as store:
        await _fetched(links, store)
    assert links.asked["soon", None] == 3
    assert links.charged == []
    links = Links({"broken": broken})
    with DataStore(None, MAX_DATA_BYTES) as store:
        fetching = asyncio.create_task(_fetched(links, store))
        await until(lambda: bool(links.charged), "a charge")
        links.answers["late"] = honest
        await fetching
    assert set(links.charged) == {("broken", 20)}


async def test_a_restart_in_the_middle_asks_for_the_rest(tmp_path: Path) -> None:
    """Not for what was here before, nor for the manifest."""
    halfway = asyncio.Event()
    left = [*range(4)]

    def slow(request: ChunkRequest) -> bytes:
        if request.index is not None:
            if not left:
                halfway.set()
                raise LinkError("it is gone")
            left.pop()
        return honest(request)

    with DataStore(tmp_path, MAX_DATA_BYTES) as store:
        fetching = asyncio.create_task(Fetch(Links({"slow": slow}), store, MANIFEST.name).run())
        async with asyncio.timeout(PATIENCE_S):
            await halfway.wait()
        await until(
            lambda: sum(store.chunk(MANIFEST.name, index) is not None for index in range(10)) == 4,
            "four chunks",
        )
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
    links = Links({"other": honest})
    with DataStore(tmp_path, MAX_DATA_BYTES) as store:
        await _fetched(links, store)
    assert links.asked.total() == 6
    assert ("other", None) not in links.asked


async def test_data_that_find_no_room_are_not_fetched(tmp_path: Path) -> None:
    """What is needed stays."""
    (tmp_path / "theirs").write_bytes(DATA + b"!")
    with DataStore(tmp_path, len(DATA) + 1) as store:
        name = store.add(tmp_path / "theirs")
        links = Links({"a": honest})
        with pytest.raises(DataError, match="find no room"):
            await Fetch(links, store, MANIFEST.name, lambda: {name}).run()
        await _fetched(links, store)
        assert store.names == [MANIFEST.name]


async def test_a_file_that_makes_way_on_its_way_is_held_against_nobody(tmp_path: Path) -> None:
    """Whoever sends the next chunk of it does not lie."""
    with DataStore(tmp_path, MAX_DATA_BYTES) as store:

        def gone(request: ChunkRequest) -> bytes:
            if request.index is not None:
                store.remove(MANIFEST.name)
            return honest(request)

        links = Links({"a": gone})
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(DataError, match="made way for data that come before"):
                await Fetch(links, store, MANIFEST.name).run()
    assert links.charged == []
