"""The three places that nonces come from, read with a cursor from beginning to end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable

import pytest
from aiohttp import web
from typing_extensions import override

from pocqueue.delegation.client import DelegationClient
from pocqueue.errors import (
    DelegationError,
    EngineError,
    EngineUnavailable,
    InvalidRound,
    ModelConflict,
    NoLiveGpu,
    StoreReadOnly,
    StoreUnavailable,
    UnknownRound,
)
from pocqueue.node.page_check import first_unsearched
from pocqueue.node.sources import EngineSource, QueueSource, RemoteSource, is_final, is_refused
from pocqueue.poc.nonces import MAX_NONCE
from pocqueue.rounds.backend import Backend
from tests.support.callback_receiver import answering
from tests.support.delegation_server import TOKEN, Work as Gpus, live_gpus
from tests.support.fake_engine import FakeEngine, valid_below
from tests.support.fixtures import SettingsFactory
from tests.support.node import (
    batch,
    big_node,
    host_of,
    legacy_big_node,
    make_request,
    make_round,
    nonces_in,
)
from tests.support.waiting import until


async def test_a_session_on_a_legacy_big_node() -> None:
    """Pages without cursors get names of their own; what is under way has to be let end."""
    async with legacy_big_node() as node:
        source = RemoteSource(DelegationClient(node.url, TOKEN), "s", 3, poll_s=0.01)
        node.pages.append([batch(0)])
        node.pages.append([batch(1)])
        pages = [await source.read(""), await source.read("poll-before")]
        assert [found.proofs.nonces for page in pages for found in page.batches] == [[0], [1]]
        assert len({page.cursor for page in pages}) == 2
        assert not source.must_end
        node.gate.clear()
        reading = asyncio.create_task(source.read("x"))
        await until(lambda: source.must_end)
        node.gate.set()
        assert not (await reading).over
        await source.stop()
        assert (await source.read("x")).over
        await source.close()


async def test_a_session_on_our_big_node(backend: Backend, settings_for: SettingsFactory) -> None:
    """It is asked to wait once it is known to have cursors, and may be cut off then."""
    live_gpus(backend)
    with big_node(settings_for()) as url:
        client = DelegationClient(url, TOKEN)
        started = await client.start(make_round().start_body())
        source = RemoteSource(client, started.session_id, 1, poll_s=5.0)
        first = await source.read("")
        assert first.batches == []
        reading = asyncio.create_task(source.read(first.cursor))
        await asyncio.sleep(0)
        assert not source.must_end
        await asyncio.to_thread(Gpus(backend, started.session_id).batch)
        page = await reading
        assert [found.proofs.nonces for found in page.batches] == [[0, 1]]
        await source.stop()
        assert (await source.read(page.cursor)).over
        await source.close()


async def test_a_cursor_that_stands_still() -> None:
    """Batches without end would be read for ever, or again and again."""

    async def answer(_: web.Request) -> web.Response:
        page = {"batches": [batch(0)], "session_active": True, "cursor": "c"}
        return web.json_response(page)

    async with answering(answer) as url:
        source = RemoteSource(DelegationClient(url, TOKEN), "s", 1, poll_s=0.01)
        page = await source.read("")
        with pytest.raises(DelegationError, match="leaves the cursor at 'c'") as caught:
            await source.read(page.cursor)
        assert is_final(caught.value)
        await source.close()


async def test_a_round_on_the_queues(backend: Backend) -> None:
    """Started, read from any cursor, stopped and read to its end."""
    with pytest.raises(NoLiveGpu):
        QueueSource.start(backend, make_round(), window_s=30.0, any_model=False)
    live_gpus(backend, 2)
    with pytest.raises(ModelConflict):
        QueueSource.start(backend, make_round(params={"dim": 1792}), window_s=30.0, any_model=False)
    with pytest.raises(InvalidRound, match="seq_len is 2000"):
        QueueSource.start(backend, make_round(seq_len=2000), window_s=30.0, any_model=False)
    source = QueueSource.start(
        backend, make_round(params={"dim": 1792}), window_s=30.0, any_model=True
    )
    assert source.gpu_count == 2
    gpus = Gpus(backend, source.session_id)
    gpus.batch()
    first = await source.read("")
    gpus.batch()
    second = await source.read(first.cursor)
    assert [b.proofs.nonces for page in (first, second) for b in page.batches] == [[0, 1], [10, 11]]
    assert [b.proofs.nonces for b in (await source.read("")).batches] == [[0, 1], [10, 11]]
    await source.stop()
    last = await source.read(second.cursor)
    assert (last.over, last.status, last.cursor) == (True, "stopped", second.cursor)
    with pytest.raises(UnknownRound) as caught:
        await QueueSource(backend, "no-such-round", 1).read("")
    assert is_final(caught.value)


async def test_a_search_with_an_engine(settings_for: SettingsFactory) -> None:
    """Its own nonces only, from the cursor on; what a stop or the deadline overtakes does not count."""
    engine = FakeEngine()
    host = host_of(settings_for(), engine)
    host.start()
    node_round = make_round(node_id=1, node_count=3)
    source = EngineSource(host, make_request(node_round))
    found, cursor = [], ""
    for _ in range(3):
        page = await source.read(cursor)
        found += [{"nonces": b.proofs.nonces} for b in page.batches]
        cursor = page.cursor
    assert cursor == "30"
    assert nonces_in(found) == valid_below(1.0, range(1, 91, 3))
    again = EngineSource(host, make_request(node_round), source.session_id)
    assert again.session_id == source.session_id
    await again.read(cursor)
    assert engine.batches[-1] == list(range(91, 121, 3))
    assert (await again.read(str(MAX_NONCE // 3))).over
    engine.on_batch = lambda _: setattr(again, "is_stopped", True)
    page = await again.read("40")
    assert (page.batches, page.over, page.status, page.cursor) == ([], True, "stopped", "40")
    late = EngineSource(host, make_request(node_round, left_s=-1))
    assert (await late.read("40")).status == "expired"
    await host.close()
    assert engine.closed


async def test_what_was_kept_is_not_computed_again(settings_for: SettingsFactory) -> None:
    """As when an engine takes over from a big node: passes are full all the same, and holes are searched."""
    engine = FakeEngine()
    host = host_of(settings_for(), engine)
    host.start()
    source = EngineSource(host, make_request(make_round(node_id=1, node_count=3)))
    kept = set(range(1, 301, 3)) - {7, 10}
    source.kept = kept
    page = await source.read("")
    assert engine.batches == [[7, 10, *range(301, 325, 3)]]
    assert page.cursor == "108"
    kept.add(325)
    await source.read(page.cursor)
    assert engine.batches[1] == list(range(328, 358, 3))
    last = await source.read(str(MAX_NONCE // 3))
    assert (last.over, last.batches) == (True, [])
    await host.close()


class _Kept(set[int]):
    """Notes which threads look into it."""

    def __init__(self, nonces: Iterable[int]) -> None:
        super().__init__(nonces)
        self.threads: set[int] = set()

    @override
    def __contains__(self, nonce: object) -> bool:
        self.threads.add(threading.get_ident())
        return super().__contains__(nonce)


async def test_what_was_kept_is_looked_through_beside_the_event_loop(
    settings_for: SettingsFactory,
) -> None:
    """There may be hundreds of thousands, and others are served meanwhile."""
    host = host_of(settings_for(), FakeEngine())
    host.start()
    source = EngineSource(host, make_request())
    source.kept = kept = _Kept(range(1000))
    assert (await source.read("")).cursor == "1010"
    assert kept.threads
    assert threading.get_ident() not in kept.threads
    await host.close()


@pytest.mark.parametrize(
    ("kept", "index"),
    [
        (range(1, 301, 3), 100),
        (range(1, 3001, 300), 0),
        ([*range(1, 301, 3), 3 * 10**9 + 1], 3 * 50 + 1),
        (range(9 * 10**18 - 300 + 1, 9 * 10**18, 3), 0),
    ],
)
def test_how_far_a_round_is_searched(kept: Iterable[int], index: int) -> None:
    """As far as the nonces reach, unless they are few, or too far for a round to get there."""
    assert first_unsearched(make_round(node_id=1, node_count=3), set(kept)) == index


async def test_an_engine_begins_where_the_round_is_not_searched(
    settings_for: SettingsFactory,
) -> None:
    """And a cursor of its own says more than that."""
    host = host_of(settings_for(), engine := FakeEngine())
    host.start()
    source = EngineSource(host, make_request(make_round(node_id=1, node_count=3)))
    source.first_index = 100
    for cursor, first in (("", 301), ("110", 331), ("0", 1)):
        await source.read(cursor)
        assert engine.batches[-1] == list(range(first, first + 30, 3))
    await host.close()


async def test_an_engine_that_fails(settings_for: SettingsFactory) -> None:
    """Whatever a runtime raises is an error of the engine; one that is not there says why."""

    def fail(_: int) -> None:
        raise MemoryError

    host = host_of(settings_for(), FakeEngine(on_batch=fail))
    host.start()
    source = EngineSource(host, make_request())
    with pytest.raises(EngineError, match="The engine failed on a batch: MemoryError") as caught:
        await source.read("")
    assert is_final(caught.value)
    with pytest.raises(InvalidRound, match="seq_len") as refused:
        await host.values(make_round(seq_len=10**6), [1])
    assert is_final(refused.value)
    await host.close()


@pytest.mark.parametrize(
    ("error", "final", "refused"),
    [
        (DelegationError("away", is_final=False), False, False),
        (DelegationError("gone", is_final=True, status=404), True, False),
        (DelegationError("token", is_final=True, status=401), False, True),
        (DelegationError("token", is_final=True, status=403), False, True),
        (StoreUnavailable("away"), False, False),
        (StoreReadOnly("full"), False, False),
        (UnknownRound("r"), True, False),
        (EngineError("failed"), True, False),
        (EngineUnavailable("server away"), False, False),
    ],
)
def test_what_is_final(error: Exception, final: bool, refused: bool) -> None:
    """Outages are waited out, and so is a token that somebody is about to mend."""
    assert is_final(error) is final
    assert is_refused(error) is refused
