"""Sessions as their readers see them, on a real Redis: pages, cursors, the drain, waiting, limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, strategies as st

from pocqueue.errors import InvalidRound, SessionsFull, StoreUnavailable, UnknownSession
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.records import SessionLimits
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.sessions.reader import Page, SessionReader, parse_cursor
from pocqueue.rounds.spec import RoundState
from pocqueue.rounds.store import START, Keys
from tests.support.factories import make_spec
from tests.support.rounds import assign, commit, keys_of, pass_deadline, redis_ms
from tests.support.waiting import until


@pytest.fixture
async def reader(backend: Backend) -> AsyncIterator[SessionReader]:
    """A reader of the shared server."""
    async with SessionReader(backend.url) as reader:
        yield reader


def make_session(backend: Backend, num_batches: int = 0, **changes: object) -> str:
    """Start a session, and commit batches of one valid nonce each: 0, 10, 20 …"""
    session_id = backend.store.create(make_spec(**{"customer": "main"} | changes))
    if num_batches:
        out = assign(backend.store, session_id, 10 * num_batches)
        for i in range(num_batches):
            commit(backend.store, session_id, out.range_id, 10 * i, 10 * i + 10, [10 * i])
    return session_id


def nonces_of(page: Page) -> list[int]:
    """Return the nonces of a page."""
    return [nonce for batch in json.loads(page.batches_json()) for nonce in batch["nonces"]]


def blocked(backend: Backend) -> int:
    """Return how many clients wait at Redis."""
    return int(backend.client.info("clients")["blocked_clients"])


# Pages


async def test_a_page_is_what_the_store_has(backend: Backend, reader: SessionReader) -> None:
    """The same batches as `read_proofs` gives, as objects and as JSON."""
    session_id = make_session(backend, 3)
    page = await reader.read(session_id)
    entries = backend.store.iter_proofs(backend.store.status(session_id))
    assert json.loads(page.batches_json()) == [page.spec.body(entry.proofs) for entry in entries]
    assert (page.total, page.num_batches, page.before) == (3, 3, START)
    assert (page.state, page.drained, page.word) == (RoundState.ACTIVE, False, "generating")
    assert page.spec == backend.store.status(session_id).spec


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.text(';|,"{}\\', min_size=1))
def test_whatever_is_in_the_texts_the_json_is_right(public_key: str, block_hash: str) -> None:
    """Signs that the batches are put together with may be in what is put in."""
    spec = make_spec().model_copy(update={"public_key": public_key, "block_hash": block_hash})
    page = Page(
        "id",
        spec,
        RoundState.ACTIVE,
        "",
        True,
        2,
        START,
        "1-1",
        2,
        False,
        "[1]\x1f[0.5]\x1e[2, 3]\x1f[0.1, 1e-07]",
    )
    fixed = {
        "public_key": public_key,
        "block_hash": block_hash,
        "block_height": 7,
        "node_id": 0,
    }
    assert json.loads(page.batches_json()) == [
        fixed | {"nonces": [1], "dist": [0.5]},
        fixed | {"nonces": [2, 3], "dist": [0.1, 1e-07]},
    ]


async def test_pages_follow_each_other(backend: Backend, reader: SessionReader) -> None:
    """By a limit, also where more are read at once than the script reads in one go."""
    session_id = make_session(backend, 300)
    cursor, found = START, []
    for size in (1, 127, 128, 200):
        page = await reader.read(session_id, cursor, size)
        assert page.before == cursor
        found += nonces_of(page)
        cursor = page.cursor
    assert found == [10 * i for i in range(300)]
    empty = await reader.read(session_id, cursor)
    assert (empty.num_batches, empty.cursor, empty.batches_json()) == (0, cursor, "[]")


@pytest.mark.parametrize("room", [1, 50, 2000])
async def test_a_page_is_bounded_by_its_size(backend: Backend, room: int) -> None:
    """At least one batch, however large, and all of them in the end."""
    session_id = make_session(backend, 150)
    backend.store.close(session_id, RoundState.STOPPED, "")
    cursor, found, drained = START, [], False
    async with SessionReader(backend.url, max_page_bytes=room) as reader:
        while not drained:
            page = await reader.read(session_id, cursor)
            assert len(page.packed) <= room + page.num_batches * 2 or page.num_batches == 1
            found += nonces_of(page)
            cursor, drained = page.cursor, page.drained
    assert found == [10 * i for i in range(150)]


async def test_the_last_page_says_so(backend: Backend, reader: SessionReader) -> None:
    """Drained is the page behind which nothing is and nothing will be, not one before."""
    session_id = make_session(backend, 3)
    assert not (await reader.read(session_id)).drained
    backend.store.close(session_id, RoundState.STOPPED, "stopped")
    assert not (await reader.read(session_id, START, 2)).drained
    assert (await reader.read(session_id, START, 3)).drained
    page = await reader.read(session_id, START, 4)
    assert (page.drained, page.word, page.reason) == (True, "stopped", "stopped")


async def test_a_session_over_its_deadline_is_closed(
    backend: Backend, reader: SessionReader
) -> None:
    """By whoever reads it, so that nothing can come behind the last page any more."""
    session_id = make_session(backend, 1)
    out = assign(backend.store, session_id, 10)
    pass_deadline(backend, session_id)
    page = await reader.read(session_id)
    assert (page.state, page.drained, page.word) == (RoundState.EXPIRED, True, "expired")
    assert nonces_of(page) == [0]
    assert backend.store.active_ids() == []
    later = str(redis_ms(backend) + 60_000)
    backend.client.hset(Keys.of_round(session_id, "round"), "deadline_ms", later)
    assert commit(backend.store, session_id, out.range_id, 10, 20, [10]).outcome == "closed"


@pytest.mark.parametrize("session_id", ["unknown", "", "\x00", "é", "x" * 65])
async def test_an_unknown_session(reader: SessionReader, session_id: str) -> None:
    """Whatever its id looks like."""
    with pytest.raises(UnknownSession, match="not found"):
        await reader.read(session_id)


@pytest.mark.parametrize("text", ["x", "1", "1-", "-1", "1-1-1", " 1-1", "1-1\n", f"{2**63}-0"])
def test_a_bad_cursor_is_refused(text: str) -> None:
    """By name."""
    with pytest.raises(InvalidRound, match=r"^cursor is "):
        parse_cursor(text)


def test_good_cursors() -> None:
    """Empty is the start."""
    assert parse_cursor("") == START
    assert parse_cursor("1800000000000-5") == "1800000000000-5"


# The drain


async def test_the_drain_moves_by_confirmation_only(
    backend: Backend, reader: SessionReader
) -> None:
    """A page that nobody confirmed is read again; one that was is not."""
    session_id = make_session(backend, 4)
    page = await reader.read(session_id, None, 2)
    again = await reader.read(session_id, None, 2)
    assert nonces_of(page) == nonces_of(again) == [0, 10]
    assert await reader.confirm_drain(session_id, page.before, page.cursor)
    rest = await reader.read(session_id, None, 2)
    assert (rest.before, nonces_of(rest)) == (page.cursor, [20, 30])
    # The other answer that began where the first did comes too late.
    assert not await reader.confirm_drain(session_id, again.before, again.cursor)
    assert not await reader.confirm_drain(session_id, START, rest.cursor)
    assert nonces_of(await reader.read(session_id, None)) == [20, 30]


async def test_of_many_answers_one_is_confirmed(backend: Backend, reader: SessionReader) -> None:
    """Polls of the same session at the same time hand a batch out once."""
    session_id = make_session(backend, 2)
    page = await reader.read(session_id, None)
    confirmed = await asyncio.gather(
        *(reader.confirm_drain(session_id, page.before, page.cursor) for _ in range(20))
    )
    assert sum(confirmed) == 1


async def test_a_drain_goes_with_its_round(backend: Backend, reader: SessionReader) -> None:
    """Nothing of a session stays for ever, and a session that is gone is not drained."""
    session_id = make_session(backend, 1)
    page = await reader.read(session_id, None)
    await reader.confirm_drain(session_id, page.before, page.cursor)
    left_ms = keys_of(backend, session_id)[Keys.of_round(session_id, "drain")]
    assert 3600_000 < left_ms <= 3600_000 + 30_000
    assert not await reader.confirm_drain("gone", START, "1-1")
    assert keys_of(backend, "gone") == {}


# Waiting


async def test_a_wait_ends_with_a_batch(backend: Backend, reader: SessionReader) -> None:
    """At once where there is one, else with the first that is committed."""
    session_id = make_session(backend, 1)
    async with asyncio.timeout(50):
        await reader.wait(session_id, START, 60)
        page = await reader.read(session_id)
        waiting = asyncio.create_task(reader.wait(session_id, page.cursor, 60))
        await until(lambda: blocked(backend) > 0)
        out = assign(backend.store, session_id, 10)
        commit(backend.store, session_id, out.range_id, 10, 20, [10])
        await waiting
    assert nonces_of(await reader.read(session_id, page.cursor)) == [10]


async def test_waits_beyond_the_connections_go_on(backend: Backend) -> None:
    """They look now and then, hear of the batch all the same, and hold up no reader."""
    session_id = make_session(backend)
    async with asyncio.timeout(50), SessionReader(backend.url, max_waits=2) as reader:
        waits = [asyncio.create_task(reader.wait(session_id, START, 60)) for _ in range(10)]
        await until(lambda: blocked(backend) >= 2)
        assert blocked(backend) == 2
        assert not (await reader.read(session_id)).num_batches
        out = assign(backend.store, session_id, 10)
        commit(backend.store, session_id, out.range_id, 0, 10, [0])
        await asyncio.gather(*waits)


async def test_a_wait_ends_when_nobody_listens(backend: Backend, reader: SessionReader) -> None:
    """Or when the process is to end."""
    session_id = make_session(backend)

    def gone() -> bool:
        return True

    async with asyncio.timeout(50):
        await reader.wait(session_id, START, 60, gone)
        waiting = asyncio.create_task(reader.wait(session_id, START, 60))
        await asyncio.sleep(0)
        reader.end_waits()
        await waiting


async def test_redis_away(own_backend: Backend, own_redis: RedisServer) -> None:
    """Our own error, from each question, and none of it stays when it is back."""
    session_id = make_session(own_backend, 1)
    async with SessionReader(own_backend.url) as reader:
        await reader.ping()
        own_redis.stop()
        for question in (
            reader.ping(),
            reader.read(session_id),
            reader.wait(session_id, START, 60),
            reader.confirm_drain(session_id, START, "1-1"),
        ):
            with pytest.raises(StoreUnavailable):
                await question
        own_redis.ensure()
        assert nonces_of(await reader.read(session_id)) == [0]


# Limits


def test_sessions_are_counted_by_their_deadline(backend: Backend) -> None:
    """Those that are over count no more, closed or not; others' rounds never count."""
    store, limits = backend.store, SessionLimits(in_all=3, of_customer=2)
    backend.store.create(make_spec())
    spec = make_spec(customer="one")
    first = store.create(spec, limits=limits)
    store.create(spec, limits=limits)
    with pytest.raises(SessionsFull) as caught:
        store.create(spec, limits=limits)
    assert caught.value.limit == 2
    assert 29 < caught.value.retry_after_s <= 30
    other = make_spec(customer="two words", window_s=20)
    store.create(other, limits=limits)
    with pytest.raises(SessionsFull) as caught:
        store.create(other, limits=limits)
    assert caught.value.limit == 3
    assert 19 < caught.value.retry_after_s <= 20
    store.close(first, RoundState.STOPPED, "")
    store.create(spec, limits=limits)
    # Nobody closes these; their time alone makes room, and they leave nothing behind.
    over = f"{redis_ms(store) - 1} one"
    ids = list(backend.client.hgetall(Keys.SESSIONS))
    backend.client.hset(Keys.SESSIONS, mapping=dict.fromkeys(ids, over))
    last = store.create(spec, limits=limits)
    assert list(backend.client.hgetall(Keys.SESSIONS)) == [last]


def test_asked_twice_a_session_is_made_once(backend: Backend) -> None:
    """Also where it took the last place itself."""
    limits, spec = SessionLimits(1, 1), make_spec(customer="one")
    for _ in range(2):
        assert backend.store.create(spec, "the-id", limits=limits) == "the-id"
    assert len(backend.client.hgetall(Keys.SESSIONS)) == 1


def test_a_race_for_the_last_places(backend: Backend) -> None:
    """Thirty at once for twenty."""
    spec, limits = make_spec(customer="one"), SessionLimits(20, 20)

    def start(_: int) -> bool:
        try:
            backend.store.create(spec, limits=limits)
        except SessionsFull:
            return False
        return True

    with ThreadPoolExecutor(30) as pool:
        assert sum(pool.map(start, range(30))) == 20


def test_a_session_that_ends_frees_its_place(backend: Backend) -> None:
    """Stopped, expired, failed, or gone before anybody closed it."""
    for end in ("stopped", "expired", "gone"):
        session_id = make_session(backend)
        assert backend.client.hexists(Keys.SESSIONS, session_id)
        if end == "stopped":
            backend.store.close(session_id, RoundState.STOPPED, "")
        else:
            pass_deadline(backend, session_id)
            if end == "gone":
                backend.client.delete(Keys.of_round(session_id, "round"))
            backend.store.expire(session_id)
        assert not backend.client.hexists(Keys.SESSIONS, session_id)
