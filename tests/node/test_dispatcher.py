"""The dispatcher against real receivers: order, retries, refusals, and what it does when it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pocqueue.node.dispatcher import Dispatcher, pause_left
from pocqueue.node.keys import SigningKey
from pocqueue.node.messages import NewMessage
from pocqueue.node.metrics import NodeMetrics
from pocqueue.node.outbox import KEEP_ENDED_S, Outbox
from pocqueue.poc.backoff import Backoff
from pocqueue.poc.callback import MAX_RETRY_AFTER_S, Kind
from tests.support.artifacts import artifact_of, artifacts_in
from tests.support.callback_receiver import Receiver, answering, receiving
from tests.support.node import messages_in
from tests.support.tls import make_certificate
from tests.support.waiting import Clock, until

KEY = SigningKey.generate()


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "outbox") as outbox:
        yield outbox


class Post:
    """A dispatcher that runs, and what it reported."""

    def __init__(self, outbox: Outbox, **options: Any) -> None:
        self.outbox = outbox
        self.metrics = NodeMetrics()
        timings: dict[str, Any] = {
            "backoff": Backoff(0.001, 0.004),
            "refusal_backoff": Backoff(0.001, 0.004),
            # No test is over by these: a machine may be busy for long.
            "request_timeout_s": 60,
            "stop_timeout_s": 60,
            "disk_pause_s": 0.01,
        }
        self.dispatcher = Dispatcher(outbox, KEY, self.metrics, **(timings | options))
        self._pages = 0

    def write(self, url: str, *numbers: int, kind: Kind = "generated") -> None:
        """Put messages into the outbox as one page and tell the dispatcher."""
        self.outbox.open_session("s", "delegation", "{}")
        session = self.outbox.session("s")
        assert session is not None
        self._pages += 1
        messages = [NewMessage(f"{kind} {n}", kind, url, {"n": n}, [n]) for n in numbers]
        position = f"page {self._pages} {time.monotonic_ns()}"
        assert self.outbox.accept("s", session.cursor, position, messages)
        self.dispatcher.notify()

    @property
    def taken(self) -> int:
        return int(
            self.metrics.registry.get_sample_value("pocqueue_node_delivery_seconds_count") or 0
        )

    @property
    def waiting(self) -> int:
        return self.outbox.counts().waiting

    @property
    def refused(self) -> int:
        return self.outbox.counts().refused


@contextlib.asynccontextmanager
async def posting(outbox: Outbox, **options: Any) -> AsyncIterator[Post]:
    post = Post(outbox, **options)
    async with post.dispatcher:
        post.dispatcher.start()
        yield post


def numbers(receiver: Receiver) -> list[int]:
    return [body["n"] for body in receiver.accepted]


async def test_messages_go_out_in_order(outbox: Outbox, receiver: Receiver) -> None:
    """Each once, to the path of its kind, as JSON; then the outbox is empty."""
    async with posting(outbox) as post:
        post.write(receiver.url, *range(20))
        post.write(receiver.url + "/", 20, kind="validated")
        await until(lambda: post.taken == 21)
    assert [n for n in numbers(receiver) if n < 20] == list(range(20))
    paths = {body["n"]: path for path, body in receiver.received}
    assert paths[0] == "/v1/poc-batches/generated"
    assert paths[20] == "/v1/poc-batches/validated"
    assert receiver.content_types == {"application/json"}
    assert outbox.counts().waiting == 0


async def test_messages_of_an_earlier_run_are_sent(outbox: Outbox, receiver: Receiver) -> None:
    """Without being told."""
    Post(outbox).write(receiver.url, 1, 2)
    async with posting(outbox) as post:
        await until(lambda: not post.waiting)
    assert numbers(receiver) == [1, 2]


async def test_trouble_is_waited_out_in_order(
    outbox: Outbox, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing overtakes a message whose receiver says to try again."""
    receiver.statuses = iter([500, 503, 408, 425, 429, 200, 502])
    caplog.set_level(logging.INFO)
    async with posting(outbox) as post:
        post.write(receiver.url, 1, 2, 3)
        await until(lambda: post.taken == 3)
    assert [body["n"] for _, body in receiver.received] == [1] * 6 + [2] * 2 + [3]
    assert "taken at try 6" in caplog.text


async def test_verdicts_do_not_wait_for_batches(outbox: Outbox, receiver: Receiver) -> None:
    """Nor the other way round, as a chain takes each in a phase of its own; each kind keeps its order."""
    async with posting(outbox) as post:

        async def phase(request: web.Request) -> web.Response:
            kind = request.path.rpartition("/")[2]
            asked.append((kind, (await request.json())["n"]))
            return web.Response(status=200 if kind == taken else 503)

        asked: list[tuple[str, int]] = []
        taken = "validated"
        async with answering(phase) as url:
            post.write(url, 1, 2, 3)
            post.write(url, 4, 5, kind="validated")
            await until(lambda: post.taken == 2)
            taken = "none"
            post.write(url, 6, kind="validated")
            await until(lambda: ("validated", 6) in asked)
            taken = "generated"
            await until(lambda: post.taken == 5)
    assert list(dict.fromkeys(n for kind, n in asked if kind == "generated")) == [1, 2, 3]
    assert list(dict.fromkeys(n for kind, n in asked if kind == "validated")) == [4, 5, 6]


async def test_refused_messages_hold_nobody_back(
    outbox: Outbox, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """They stay in the file with the reason, and are not tried again."""
    receiver.statuses = iter([400, 204, 302, 200])
    async with posting(outbox) as post:
        post.write(receiver.url, 1, 2, 3, 4)
        await until(lambda: post.taken == 1)
    assert numbers(receiver) == [4]
    assert len(receiver.received) == 4
    refused = messages_in(outbox, "s", "refused")
    assert [message.position for message in refused] == [f"generated {n}" for n in (1, 2, 3)]
    errors = [message.error for message in refused]
    assert errors[0] == "HTTP 400, it does not take this batch"
    assert "redirects are not followed" in errors[2]
    assert outbox.counts().waiting == 0
    assert sum("will not be tried again" in line for line in caplog.messages) == 3


async def test_one_receiver_does_not_hold_back_another(outbox: Outbox, receiver: Receiver) -> None:
    """Each URL has its own order; one that hangs gets one message at a time."""
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
        await until(lambda: messages_in(post.outbox, "s")[0].attempts >= 2)
        assert "no answer (ClientConnectorError)" in messages_in(post.outbox, "s")[0].error
        async with receiving(port) as receiver:
            await until(lambda: numbers(receiver) == [1])
            await until(lambda: not post.waiting)


async def test_receiver_that_hangs(outbox: Outbox, receiver: Receiver) -> None:
    """The attempt is given up, and the message sent again."""
    receiver.gate.clear()
    async with posting(outbox, request_timeout_s=0.2) as post:
        post.write(receiver.url, 1)
        await until(lambda: messages_in(post.outbox, "s")[0].attempts >= 1)
        assert "no answer within" in messages_in(post.outbox, "s")[0].error
        receiver.gate.set()
        await until(lambda: not post.waiting)


async def test_pause_that_the_receiver_asks_for(outbox: Outbox) -> None:
    """Retry-After counts where it is longer than our own pause, and its words are kept."""
    async with answering(429, "slow down", {"Retry-After": "120"}) as url, posting(outbox) as post:
        before_s = time.time()
        post.write(url, 1)
        await until(lambda: messages_in(post.outbox, "s")[0].attempts)
    [message] = messages_in(outbox, "s")
    assert before_s + 120 <= message.next_s <= time.time() + 120
    assert message.error == "HTTP 429: 'slow down'"


async def test_held_messages_are_not_sent(outbox: Outbox, receiver: Receiver) -> None:
    """Also those that stood right behind the one under way."""
    receiver.gate.clear()
    async with posting(outbox) as post:
        post.write(receiver.url, 1, 2, 3)
        await until(lambda: receiver.received)
        assert outbox.hold("s") == 3
        receiver.gate.set()
        await until(lambda: post.taken)
    assert len(receiver.received) == 1
    assert [message.position for message in messages_in(outbox, "s", "held")] == [
        "generated 2",
        "generated 3",
    ]


# What is not signed


def unsigned(post: Post, url: str, *pages: list[int], **fields: Any) -> None:
    """Put pages of artifacts into the outbox, a message each."""
    post.outbox.open_session("a", "delegation", "{}")
    for nonces in pages:
        session = post.outbox.session("a")
        assert session is not None
        artifacts = [{"nonce": n, "vector_b64": artifact_of(n)} for n in nonces]
        body = {"block_hash": "b", "artifacts": artifacts} | fields
        position = f"{session.cursor}+"
        message = post.dispatcher.message(position, "generated", url, body, nonces, is_signed=False)
        assert post.outbox.accept("a", session.cursor, position, [message])
    post.dispatcher.notify()


async def test_what_is_not_signed_goes_out_together(outbox: Outbox, receiver: Receiver) -> None:
    """While one post is under way others wait, and the next one has all of them: as they came, and unsigned."""
    receiver.gate.clear()
    async with posting(outbox) as post:
        unsigned(post, receiver.url, [5, 1])
        await until(lambda: receiver.received)
        unsigned(post, receiver.url, *([n] for n in range(100, 150)))
        receiver.gate.set()
        await until(lambda: post.taken == 51)
        assert outbox.counts().waiting == 0
        assert post.metrics.registry.get_sample_value("pocqueue_node_delivered_total") == 51
        assert post.metrics.registry.get_sample_value("pocqueue_node_signed_total") == 0
    assert [len(body["artifacts"]) for body in receiver.accepted] == [2, 50]
    wanted = [(n, artifact_of(n)) for n in (5, 1, *range(100, 150))]
    assert artifacts_in(receiver.accepted) == wanted
    assert all(body.keys() == {"block_hash", "artifacts"} for body in receiver.accepted)


async def test_a_post_is_of_a_bounded_size(outbox: Outbox, receiver: Receiver) -> None:
    """What does not fit goes out with the next one; a message that is larger goes out alone."""
    Post(outbox)
    async with posting(outbox, max_post_bytes=1000) as post:
        receiver.gate.clear()
        unsigned(post, receiver.url, [0])
        await until(lambda: receiver.received)
        unsigned(post, receiver.url, *([n, n + 1, n + 2] for n in range(10, 70, 3)), [*range(100)])
        receiver.gate.set()
        await until(lambda: not post.waiting)
    sizes = [len(json.dumps(body, separators=(",", ":"))) for body in receiver.accepted]
    assert all(500 < size <= 1000 for size in sizes[1:-2])
    assert sizes[-1] > 4000
    assert [nonce for nonce, _ in artifacts_in(receiver.accepted)] == [
        0,
        *range(10, 70),
        *range(100),
    ]


async def test_what_is_refused_together_is_sent_in_parts(
    outbox: Outbox, receiver: Receiver
) -> None:
    """Down to the one that the receiver does not take, which alone is put aside."""

    def bad(body: Any) -> int:
        return 413 if any(one["nonce"] == 13 for one in body["artifacts"]) else 200

    receiver.verdict = bad
    receiver.gate.clear()
    async with posting(outbox, refusal_backoff=Backoff(60, 60)) as post:
        unsigned(post, receiver.url, [0])
        await until(lambda: receiver.received)
        unsigned(post, receiver.url, *([n] for n in range(1, 33)))
        receiver.gate.set()
        await until(lambda: not post.waiting)
        assert post.refused == 1
    assert [nonce for nonce, _ in artifacts_in(receiver.accepted)] == [
        nonce for nonce in range(33) if nonce != 13
    ]
    # By halves: not each of them alone.
    assert len(receiver.received) < 20


async def test_a_refusal_of_what_is_not_signed_is_not_final(
    outbox: Outbox, receiver: Receiver
) -> None:
    """It is tried ten times and holds nobody back meanwhile; then it is the operator's."""

    def asked(nonce: int) -> list[list[int]]:
        return [nonces for nonces in posts if nonce in nonces]

    def refusing(body: Any) -> int:
        posts.append([one["nonce"] for one in body["artifacts"]])
        return 404 if 13 in posts[-1] or (8 in posts[-1] and len(asked(8)) < 4) else 200

    posts: list[list[int]] = []
    receiver.verdict = refusing
    async with posting(outbox, look_s=0.01, refusal_backoff=Backoff(60, 60)) as post:
        unsigned(post, receiver.url, [13], [7])
        await until(lambda: post.taken == 1)
        assert posts == [[13, 7], [13], [7]]
        post.dispatcher.refusal_backoff = Backoff(0.001, 0.001)
        with outbox.transaction() as db:
            db.execute("UPDATE messages SET next_s = 0")
        await until(lambda: [m.attempts for m in messages_in(outbox, "a")] == [10])
        unsigned(post, receiver.url, [8])
        await until(lambda: post.taken == 2)
    assert [nonce for nonce, _ in artifacts_in(receiver.accepted)] == [7, 8]
    assert (len(asked(13)), len(asked(8))) == (11, 4)
    assert [(m.state, m.attempts) for m in messages_in(outbox, "a")] == [("refused", 10)]


async def test_an_outage_is_no_refusal(outbox: Outbox, receiver: Receiver) -> None:
    """However often it was tried meanwhile, there are ten tries for a receiver that refuses."""
    receiver.statuses = iter([503] * 12 + [404] * 9)
    async with posting(outbox, look_s=0.01) as post:
        unsigned(post, receiver.url, [1])
        await until(lambda: post.taken == 1)
    assert len(receiver.received) == 22


async def test_what_was_refused_of_a_fraud_is_not_tried_again(
    outbox: Outbox, receiver: Receiver
) -> None:
    """It was put aside, and stays there."""
    receiver.verdict = lambda _: 404
    async with posting(outbox, look_s=0.01, refusal_backoff=Backoff(60, 60)) as post:
        unsigned(post, receiver.url, [1])
        await until(lambda: post.refused)
        outbox.hold("a")
    with outbox.transaction() as db:
        db.execute("UPDATE messages SET next_s = 0")
    outbox.again(10)
    assert outbox.counts().waiting == 0


async def test_what_is_not_signed_is_delivered_by_any_status_below_400(
    outbox: Outbox, receiver: Receiver
) -> None:
    """As the network counts; for a signed message only 200 does."""
    receiver.statuses = iter([201, 204, 302])
    async with posting(outbox) as post:
        for nonce in (1, 2, 3):
            unsigned(post, receiver.url, [nonce])
            await until(lambda nonce=nonce: post.taken == nonce)  # type: ignore[misc]
        assert (post.waiting, post.refused) == (0, 0)
    assert len(receiver.received) == 3


async def test_answers_to_requests_do_not_mix(outbox: Outbox, receiver: Receiver) -> None:
    """Each has its id; a signed message between two that are not keeps its place."""
    receiver.gate.clear()
    async with posting(outbox) as post:
        unsigned(post, receiver.url, [0])
        await until(lambda: receiver.received)
        unsigned(post, receiver.url, [1], [2])
        unsigned(post, receiver.url, [3], request_id="r")
        post.write(receiver.url, 77)
        unsigned(post, receiver.url, [4])
        receiver.gate.set()
        await until(lambda: not post.waiting)
    assert [[one["nonce"] for one in body.get("artifacts", [])] for body in receiver.accepted] == [
        [0],
        [1, 2],
        [3],
        [],
        [4],
    ]


async def test_an_outage_is_waited_out_together(outbox: Outbox, receiver: Receiver) -> None:
    """What comes meanwhile joins what waits; nothing is sent twice that was taken."""
    receiver.statuses = iter([503] * 5)
    async with posting(outbox) as post:
        for n in range(20):
            unsigned(post, receiver.url, [n])
        await until(lambda: not post.waiting)
    assert [nonce for nonce, _ in artifacts_in(receiver.accepted)] == list(range(20))


async def test_stop_lets_what_is_under_way_end(outbox: Outbox, receiver: Receiver) -> None:
    """Its 200 counts; the next message waits for the next run."""
    receiver.gate.clear()
    async with posting(outbox) as post:
        post.write(receiver.url, 1, 2)
        await until(lambda: receiver.received)
        closing = asyncio.create_task(post.dispatcher.close())
        await asyncio.sleep(0)
        receiver.gate.set()
        await closing
    assert numbers(receiver) == [1]
    assert [message.position for message in messages_in(outbox, "s")] == ["generated 2"]


async def test_stop_cuts_off_what_hangs(outbox: Outbox, receiver: Receiver) -> None:
    """The message stays."""
    receiver.gate.clear()
    async with posting(outbox, stop_timeout_s=0.05) as post:
        post.write(receiver.url, 1)
        await until(lambda: receiver.received)
    assert outbox.counts().waiting == 1


async def test_disk_in_trouble(
    receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that was taken is not sent again while its removal cannot be written."""
    receiver.gate.clear()
    path = tmp_path / "outbox"
    with Outbox(path, busy_timeout_s=0.01) as outbox:
        async with posting(outbox) as post:
            post.write(receiver.url, 1)
            await until(lambda: receiver.received)
            # Another program holds the file, longer than the outbox waits for it.
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
                db.execute("BEGIN IMMEDIATE")
                receiver.gate.set()
                await until(
                    lambda: sum("database is locked" in line for line in caplog.messages) > 2
                )
                db.execute("ROLLBACK")
            await until(lambda: not outbox.counts().waiting)
    assert len(receiver.received) == 1


async def test_certificate_that_expires_and_is_renewed(outbox: Outbox, tmp_path: Path) -> None:
    """Nothing is refused for it; what waits is named, and goes out once the receiver has a new one."""
    cert, key = make_certificate(tmp_path)
    connector = partial(
        aiohttp.TCPConnector, ssl=ssl.create_default_context(cafile=str(cert)), force_close=True
    )
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(cert, key)
    async with receiving(tls=tls) as receiver, posting(outbox, connector=connector) as post:
        post.write(receiver.url, 1)
        await until(lambda: post.taken == 1)
        tls.load_cert_chain(*make_certificate(tmp_path, days_left=-0.01))
        post.write(receiver.url, 2, 3)
        await until(lambda: messages_in(outbox, "s")[0].attempts > 2)
        why = "no answer (its certificate is not accepted: certificate has expired)"
        where = receiver.url.removesuffix("/v1/poc-batches")
        found = outbox.counts()
        assert (found.waiting, found.refused) == (2, 0)
        assert found.last_error == f"Batches wait for {where}: {why}."
        tls.load_cert_chain(*make_certificate(tmp_path))
        await until(lambda: post.taken == 3)
    assert numbers(receiver) == [1, 2, 3]
    assert outbox.counts().last_error is None


async def test_name_that_is_not_found(outbox: Outbox) -> None:
    """Name servers come back, and it is waited for them."""
    async with posting(outbox) as post:
        post.write("http://nowhere.invalid/v1", 1)
        await until(lambda: messages_in(outbox, "s")[0].attempts > 1)
        assert outbox.counts().last_error == (
            "Batches wait for http://nowhere.invalid: no answer (its name is not found)."
        )


async def test_what_a_command_resends_is_noticed(outbox: Outbox, receiver: Receiver) -> None:
    """Without being told, as the command is another process."""
    receiver.statuses = iter([404])
    async with posting(outbox, look_s=0.01) as post:
        post.write(receiver.url, 1)
        await until(lambda: post.refused == 1)
        with Outbox(outbox.path, beside_owner=True) as command:
            command.resend([])
        await until(lambda: post.taken == 1)
    assert numbers(receiver) == [1]


async def test_ended_sessions_are_forgotten_while_nothing_happens(tmp_path: Path) -> None:
    """A round's own token does not stay on the disk of a node that has nothing to do."""
    clock = Clock()
    with Outbox(tmp_path / "outbox", clock=clock) as outbox:
        outbox.open_session("s", "delegation", '{"delegation_auth_token": "secret"}')
        outbox.close_session("s")
        async with posting(outbox, look_s=0.01, forget_s=0.01):
            clock.now_s += KEEP_ENDED_S - 1
            await asyncio.sleep(0)
            assert outbox.session("s")
            clock.now_s += 2
            await until(lambda: outbox.session("s") is None)


@pytest.mark.parametrize("url", ["http://a..b/x", "http://[::1", "http://host:99999/"])
async def test_url_that_is_none(outbox: Outbox, url: str) -> None:
    """It is refused, and does not end the dispatcher."""
    async with posting(outbox) as post:
        post.write(url, 1)
        await until(lambda: post.refused == 1)


async def test_logs_keep_secrets(
    outbox: Outbox, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Path, query and what repeats them stay out; session, host and status are there."""
    caplog.set_level(logging.DEBUG)
    receiver.statuses = iter([404])
    async with posting(outbox) as post:
        post.write(f"{receiver.url}/key-1234", 1)
        async with answering(400, "POST /hook-5678/generated: not you") as url:
            post.write(f"{url}/hook-5678", 2)
            await until(lambda: post.refused == 2)
    lines = [record.getMessage() for record in caplog.records if "dispatcher" in record.name]
    assert any("HTTP 404" in line and "of session s to http://127.0.0.1" in line for line in lines)
    assert not any(secret in line for line in lines for secret in ("1234", "5678", "poc-batches"))


def test_pause_left() -> None:
    """Until its end; one longer than any that is made was begun before the clock was set back."""
    assert pause_left(0.0, 1000.0) == 0
    assert pause_left(1000.0, 1000.0) == 0
    assert pause_left(1002.5, 1000.0) == 2.5
    assert pause_left(1000 + MAX_RETRY_AFTER_S, 1000.0) == MAX_RETRY_AFTER_S
    assert pause_left(5000.0, 1000.0) == 0
