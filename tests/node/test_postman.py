"""The postman against real receivers: order, retries, refusals, and what it does when it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from pocqueue.node import postman as postman_module
from pocqueue.node.outbox import Kind, Letter, NewLetter, Outbox
from pocqueue.node.postman import MAX_RETRY_AFTER_S, Postman, pause_left, retry_after_s
from tests.support.callback_receiver import Receiver, receiving
from tests.support.waiting import until


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "outbox") as outbox:
        yield outbox


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


class Post:
    """A postman that runs, and what it reported."""

    def __init__(self, outbox: Outbox, session: aiohttp.ClientSession | None = None) -> None:
        self.outbox = outbox
        self.delivered: list[tuple[Letter, float]] = []
        self.refused: list[Letter] = []
        self.stop = asyncio.Event()
        self.postman = Postman(
            outbox,
            session=session,
            on_delivered=lambda letter, latency_s: self.delivered.append((letter, latency_s)),
            on_refused=self.refused.append,
            backoff_s=0.001,
            max_backoff_s=0.004,
            request_timeout_s=2,
            stop_timeout_s=1,
        )
        self._pages = 0

    def write(self, url: str, *numbers: int, kind: Kind = "generated") -> None:
        """Put letters into the outbox as one page and tell the postman."""
        self.outbox.open_session("s", "delegation", url, "{}")
        session = self.outbox.session("s")
        assert session is not None
        self._pages += 1
        letters = [NewLetter(f"{kind} {n}", kind, url, {"n": n}, 1) for n in numbers]
        position = f"page {self._pages} {time.monotonic_ns()}"
        assert self.outbox.accept("s", session.cursor, position, letters)
        self.postman.notify()

    @property
    def waiting(self) -> int:
        return self.outbox.counts().waiting


@contextlib.asynccontextmanager
async def posting(
    outbox: Outbox, session: aiohttp.ClientSession | None = None
) -> AsyncIterator[Post]:
    post = Post(outbox, session)
    task = asyncio.create_task(post.postman.run(post.stop))
    try:
        yield post
    finally:
        post.stop.set()
        await asyncio.wait_for(task, 10)


def numbers(receiver: Receiver) -> list[int]:
    return [body["n"] for body in receiver.accepted]


async def test_letters_go_out_in_order(outbox: Outbox, receiver: Receiver) -> None:
    """Each once, to the path of its kind, as JSON; then the outbox is empty."""
    async with posting(outbox) as post:
        post.write(receiver.url, *range(20))
        post.write(receiver.url + "/", 20, kind="validated")
        await until(lambda: len(post.delivered) == 21)
    assert numbers(receiver)[:20] == sorted(numbers(receiver)[:20])
    paths = {body["n"]: path for path, body in receiver.received}
    assert paths[0] == "/v1/poc-batches/generated"
    assert paths[20] == "/v1/poc-batches/validated"
    assert receiver.content_types == {"application/json"}
    assert outbox.counts().waiting == 0
    assert all(latency_s >= 0 for _, latency_s in post.delivered)


async def test_letters_of_an_earlier_run_are_sent(outbox: Outbox, receiver: Receiver) -> None:
    """Without being told."""
    Post(outbox).write(receiver.url, 1, 2)
    async with posting(outbox) as post:
        await until(lambda: not post.waiting)
    assert numbers(receiver) == [1, 2]


async def test_trouble_is_waited_out_in_order(outbox: Outbox, receiver: Receiver) -> None:
    """Nothing overtakes a letter whose receiver says to try again."""
    receiver.statuses = iter([500, 503, 408, 425, 429, 200, 502])
    async with posting(outbox) as post:
        post.write(receiver.url, 1, 2, 3)
        await until(lambda: len(post.delivered) == 3)
    assert [body["n"] for _, body in receiver.received] == [1] * 6 + [2] * 2 + [3]
    assert post.delivered[0][0].attempts == 5


async def test_refused_letters_hold_nobody_back(
    outbox: Outbox, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """They stay in the file with the reason, and are not tried again."""
    receiver.statuses = iter([400, 204, 302, 200])
    async with posting(outbox) as post:
        post.write(receiver.url, 1, 2, 3, 4)
        await until(lambda: len(post.delivered) == 1)
    assert numbers(receiver) == [4]
    assert len(receiver.received) == 4
    assert [letter.position for letter in post.refused] == [f"generated {n}" for n in (1, 2, 3)]
    errors = [letter.error for letter in outbox.letters("s", "refused")]
    assert errors[0] == "HTTP 400, it does not take this batch"
    assert "redirects are not followed" in errors[2]
    assert outbox.counts().waiting == 0
    assert sum("will not be tried again" in line for line in caplog.messages) == 3


async def test_one_receiver_does_not_hold_back_another(outbox: Outbox, receiver: Receiver) -> None:
    """Each URL has its own order; one that hangs gets one letter at a time."""
    receiver.gate.clear()
    async with receiving() as other, posting(outbox) as post:
        post.write(receiver.url, 1, 2)
        await until(lambda: receiver.received)
        post.write(other.url, 3, 4)
        await until(lambda: numbers(other) == [3, 4])
        assert len(receiver.received) == 1
        receiver.gate.set()
        await until(lambda: numbers(receiver) == [1, 2])


async def test_receiver_that_comes_later(outbox: Outbox) -> None:
    """Nobody listens at first."""
    async with receiving() as gone:
        port = int(gone.url.split(":")[2].split("/")[0])
    async with posting(outbox) as post:
        post.write(gone.url, 1)
        await until(lambda: post.outbox.letters("s")[0].attempts >= 2)
        assert "no answer (ClientConnectorError)" in post.outbox.letters("s")[0].error
        async with receiving(port) as receiver:
            await until(lambda: numbers(receiver) == [1])
            await until(lambda: not post.waiting)


async def test_receiver_that_hangs(outbox: Outbox, receiver: Receiver) -> None:
    """The attempt is given up, and the letter sent again."""
    receiver.gate.clear()
    async with posting(outbox) as post:
        post.postman._timeout = aiohttp.ClientTimeout(total=0.05)
        post.write(receiver.url, 1)
        await until(lambda: post.outbox.letters("s")[0].attempts >= 1)
        assert "no answer within" in post.outbox.letters("s")[0].error
        post.postman._timeout = aiohttp.ClientTimeout(total=10)
        receiver.gate.set()
        await until(lambda: not post.waiting)


async def test_pause_that_the_receiver_asks_for(outbox: Outbox) -> None:
    """Retry-After counts where it is longer than our own pause, and its words are kept."""
    async with answering(429, "slow down", {"Retry-After": "120"}) as url, posting(outbox) as post:
        before_s = time.time()
        post.write(url, 1)
        await until(lambda: post.outbox.letters("s")[0].attempts)
    [letter] = outbox.letters("s")
    assert before_s + 120 <= letter.next_s <= time.time() + 120
    assert letter.error == "HTTP 429: 'slow down'"


async def test_held_letters_are_not_sent(outbox: Outbox, receiver: Receiver) -> None:
    """Also those that stood right behind the one under way."""
    receiver.gate.clear()
    async with posting(outbox) as post:
        post.write(receiver.url, 1, 2, 3)
        await until(lambda: receiver.received)
        assert outbox.hold("s") == 3
        receiver.gate.set()
        await until(lambda: post.delivered)
    assert len(receiver.received) == 1
    assert [letter.position for letter in outbox.letters("s", "held")] == [
        "generated 2",
        "generated 3",
    ]


async def test_stop_lets_what_is_under_way_end(outbox: Outbox, receiver: Receiver) -> None:
    """Its 200 counts; the next letter waits for the next run."""
    receiver.gate.clear()
    async with posting(outbox) as post:
        post.write(receiver.url, 1, 2)
        await until(lambda: receiver.received)
        post.stop.set()
        receiver.gate.set()
    assert numbers(receiver) == [1]
    assert [letter.position for letter in outbox.letters("s")] == ["generated 2"]


async def test_stop_cuts_off_what_hangs(outbox: Outbox, receiver: Receiver) -> None:
    """The letter stays."""
    receiver.gate.clear()
    async with posting(outbox) as post:
        post.postman._stop_timeout_s = 0.05
        post.write(receiver.url, 1)
        await until(lambda: receiver.received)
    assert outbox.counts().waiting == 1


async def test_disk_in_trouble(
    outbox: Outbox,
    receiver: Receiver,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A letter that was taken is not sent again while its removal cannot be written."""
    monkeypatch.setattr(postman_module, "DISK_PAUSE_S", 0.01)
    receiver.gate.clear()
    async with posting(outbox) as post:
        post.write(receiver.url, 1)
        await until(lambda: receiver.received)
        # Another program holds the file, longer than the outbox waits for it.
        outbox._db.execute("PRAGMA busy_timeout = 10")
        with contextlib.closing(sqlite3.connect(tmp_path / "outbox", isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            receiver.gate.set()
            await until(lambda: sum("database is locked" in line for line in caplog.messages) > 2)
            db.execute("ROLLBACK")
        await until(lambda: not outbox.counts().waiting)
    assert len(receiver.received) == 1


async def test_connections_are_kept(outbox: Outbox) -> None:
    """Letters of one receiver go over one connection, of a session that is not closed here."""
    peers = set()

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.Response()

    async with serving(answer) as url, aiohttp.ClientSession() as session:
        async with posting(outbox, session) as post:
            post.write(url, *range(10))
            await until(lambda: len(post.delivered) == 10)
        assert not session.closed
    assert len(peers) == 1


@pytest.mark.parametrize("url", ["http://a..b/x", "http://[::1", "http://host:99999/"])
async def test_url_that_is_none(outbox: Outbox, url: str) -> None:
    """It is refused, and does not end the postman."""
    async with posting(outbox) as post:
        post.write(url, 1)
        await until(lambda: post.refused)
    assert outbox.counts().refused == 1


async def test_logs_keep_secrets(
    outbox: Outbox, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Path, query and what repeats them stay out; session, host and status are there."""
    caplog.set_level(logging.DEBUG)
    receiver.statuses = iter([404])
    async with posting(outbox) as post:
        post.write(f"{receiver.url}/key-1234", 1)
        async with answering(400, "POST /hook-5678/generated: not you", {}) as url:
            post.write(f"{url}/hook-5678", 2)
            await until(lambda: len(post.refused) == 2)
    lines = [record.getMessage() for record in caplog.records if "postman" in record.name]
    assert any("HTTP 404" in line and "of session s to http://127.0.0.1" in line for line in lines)
    assert not any(secret in line for line in lines for secret in ("1234", "5678", "poc-batches"))


@pytest.mark.parametrize(
    ("header", "asked_s"),
    [
        (None, 0),
        ("", 0),
        ("7", 7),
        (" 7 ", 7),
        ("-7", 0),
        ("soon", 0),
        ("\u0667", 0),
        ("9" * 400, MAX_RETRY_AFTER_S),
        (formatdate(1030, usegmt=True), 30),
        (formatdate(10, usegmt=True), 0),
        (formatdate(10_000, usegmt=True), MAX_RETRY_AFTER_S),
    ],
)
def test_retry_after(header: str | None, asked_s: float) -> None:
    """Seconds or a date, never negative and never for ever."""
    assert retry_after_s(header, 1000.0) == asked_s


def test_pause_left() -> None:
    """Until its end; one longer than any that is made was begun before the clock was set back."""
    assert pause_left(0.0, 1000.0) == 0
    assert pause_left(1000.0, 1000.0) == 0
    assert pause_left(1002.5, 1000.0) == 2.5
    assert pause_left(1000 + MAX_RETRY_AFTER_S, 1000.0) == MAX_RETRY_AFTER_S
    assert pause_left(5000.0, 1000.0) == 0


async def test_pauses_grow(outbox: Outbox) -> None:
    """From a quarter of a second to half a minute, shortened by up to half."""
    postman = Postman(outbox)
    for attempts, longest_s in ((0, 0.25), (1, 0.5), (5, 8.0), (7, 30.0), (100_000, 30.0)):
        pauses = [postman._backoff(attempts) for _ in range(50)]
        assert longest_s / 2 <= min(pauses) < max(pauses) <= longest_s


@contextlib.asynccontextmanager
async def serving(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def answering(status: int, words: str, headers: dict[str, str]) -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.Response:
        json.loads(await request.read())
        return web.Response(status=status, text=words, headers=headers)

    async with serving(answer) as url:
        yield url
