"""Delivery of callbacks: real Redis, real HTTP receiver, every proof once."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import ssl
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pocqueue.errors import StoreUnavailable
from pocqueue.poc.backoff import Backoff
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.callbacks import Callbacks, CallbackTimings
from pocqueue.rounds.records import RoundStatus
from pocqueue.rounds.spec import RoundState
from pocqueue.rounds.store import Keys
from tests.support.callback_receiver import answering
from tests.support.rounds import find, redis_ms, round_with_proofs
from tests.support.tls import make_certificate
from tests.support.waiting import until, wait_until
from workers import boot, delivery, io
from workers.delivery import PostSize


class Receiver:
    """A callback receiver on loopback that refuses the first requests."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.refused: list[dict[str, Any]] = []
        #: Requests to answer with 503 before it takes anything.
        self.failures = 0
        #: Most nonces in a body; 413 for more.
        self.limit = 1000
        #: 422 for a body with one of these.
        self.unwanted: set[int] = set()
        #: Called with each request, before it is answered.
        self.on_request: Callable[[], object] = lambda: None
        self.url = ""

    @property
    def nonces(self) -> list[int]:
        """Every nonce that was taken, in order."""
        return [nonce for body in self.bodies for nonce in body["nonces"]]

    async def answer(self, request: web.Request) -> web.Response:
        if request.path == "/away/generated":
            return web.Response(status=307, headers={"Location": f"{self.url}/generated"})
        body = await request.json()
        self.on_request()
        if self.failures > 0:
            self.failures -= 1
            self.refused.append(body)
            return web.Response(status=503)
        if len(body["nonces"]) > self.limit:
            self.refused.append(body)
            return web.Response(status=413)
        if self.unwanted & set(body["nonces"]):
            self.refused.append(body)
            return web.Response(status=422)
        self.bodies.append(body)
        return web.Response()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that listens."""
    receiver = Receiver()
    async with answering(receiver.answer) as url:
        receiver.url = f"{url}/hook"
        yield receiver


@pytest.fixture
def backend(backend: Backend) -> Backend:
    """The same, with callbacks that are due again soon after a failure, and after a refusal when a test says so."""
    timings = CallbackTimings(first_ms=20, refusals=Backoff(600, 600))
    callbacks = Callbacks(backend.client, backend.url, backend.store, timings)
    return dataclasses.replace(backend, callbacks=callbacks)


def _round(backend: Backend, url: str | None, num_valid: int) -> str:
    return round_with_proofs(
        backend, num_valid, callback_url=url, block_height=12, node_id=0, public_key="pk"
    )


async def deliver(
    backend: Backend, round_id: str, token: str, entries_per_post: int = 3, own: str = ""
) -> str:
    """Deliver to a receiver on loopback, with several requests for what a test has to send."""
    return await io.deliver(
        *(backend, round_id, token, own or uuid.uuid4().hex),
        allow_private=True,
        entries_per_post=entries_per_post,
    )


async def claim_and_deliver(backend: Backend, entries_per_post: int = 3) -> str:
    """Wait until a delivery is due, lease it as the scheduler does, and deliver."""
    round_id, token = await _claim(backend)
    return await deliver(backend, round_id, token, entries_per_post)


async def staying(backend: Backend, round_id: str, token: str, stays: Callable[[], bool]) -> str:
    """Deliver, and stay with the round."""
    own = uuid.uuid4().hex
    return await io.deliver(backend, round_id, token, own, allow_private=True, stays=stays)


def _end_pauses(backend: Backend, round_id: str) -> None:
    """Let what was put aside be due now."""
    key = Keys.of_round(round_id, "refused")
    for member in backend.client.zrange(key, 0, -1):
        backend.client.zadd(key, {str(member): 1})
    backend.client.hset(Keys.of_round(round_id, "callback"), "aside_ms", "1")


def _take_over(backend: Backend, round_id: str) -> None:
    """Give the lease to another task, as the scheduler does once it has run out."""
    backend.client.hset(Keys.of_round(round_id, "callback"), "lease", "another")


async def _claim(backend: Backend) -> tuple[str, str]:
    """Wait until a delivery is due, and lease it as the scheduler does."""
    claimed = await asyncio.to_thread(
        wait_until, lambda: backend.callbacks.claim_due(60.0), message="a due delivery"
    )
    return claimed[0]


async def test_all_proofs_are_posted_in_order_and_merged(
    backend: Backend, receiver: Receiver
) -> None:
    """A few batches to a request, in the words of the wire."""
    round_id = _round(backend, receiver.url, 7)
    assert await claim_and_deliver(backend) == "7 nonces delivered, 0 refused"
    assert [body["nonces"] for body in receiver.bodies] == [[0, 1, 2], [3, 4, 5], [6]]
    body = receiver.bodies[2]
    assert body == {
        "public_key": "pk",
        "block_hash": "block-1",
        "block_height": 12,
        "nonces": [6],
        "dist": [0.5],
        "node_id": 0,
    }
    progress = backend.callbacks.progress(round_id)
    assert (progress.delivered, progress.lease) == (7, "")
    assert backend.callbacks.claim_due(60.0) == []


async def test_a_receiver_that_fails_twice_gets_every_nonce_once(
    backend: Backend, receiver: Receiver
) -> None:
    """Each failure ends the task; the next one begins with what nobody confirmed, and half as much of it."""
    round_id = _round(backend, receiver.url, 10)
    receiver.failures = 2
    for attempt, nonces in enumerate(("3 nonces", "1 nonce"), 1):
        assert await claim_and_deliver(backend) == f"{nonces} not taken: HTTP 503"
        assert backend.callbacks.progress(round_id).attempts == attempt
    assert await claim_and_deliver(backend) == "10 nonces delivered, 0 refused"
    assert receiver.nonces == list(range(10))
    assert [body["nonces"] for body in receiver.refused] == [[0, 1, 2], [0]]
    assert backend.callbacks.progress(round_id).attempts == 0


@pytest.mark.parametrize(("was_quick", "then"), [(True, 8), (False, 4)])
def test_a_post_grows_only_where_one_of_twice_the_size_would_be_in_time(
    was_quick: bool, then: int
) -> None:
    """After an outage it is as large as before; to a slow receiver it stays as small as it takes."""
    size = PostSize(8, 4)
    size.taken(was_quick)
    assert size.now == then


async def test_a_certificate_that_expires_and_is_renewed(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for: nothing is passed over, and the reason is there to be seen."""
    trusting = ssl.create_default_context(cafile=str(make_certificate(tmp_path)[0]))
    monkeypatch.setattr(io, "checked_connector", lambda _: aiohttp.TCPConnector(ssl=trusting))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*make_certificate(tmp_path, days_left=-1))
    receiver = Receiver()
    async with answering(receiver.answer, tls=tls) as url:
        round_id = _round(backend, url, 7)
        error = "no answer (its certificate is not accepted: certificate has expired)"
        for nonces in ("3 nonces", "1 nonce"):
            assert await claim_and_deliver(backend) == f"{nonces} not taken: {error}"
        assert error in backend.callbacks.progress(round_id).error
        tls.load_cert_chain(*make_certificate(tmp_path))
        assert await claim_and_deliver(backend) == "7 nonces delivered, 0 refused"
    assert receiver.nonces == list(range(7))


async def test_a_failure_in_the_middle_goes_on_from_there(
    backend: Backend, receiver: Receiver
) -> None:
    """What was taken before it is not sent again."""
    round_id = _round(backend, receiver.url, 3)
    await claim_and_deliver(backend)
    find(backend, round_id, 3, 4)
    receiver.failures = 1
    await claim_and_deliver(backend)
    backend.store.close(round_id, RoundState.STOPPED, "")
    assert await claim_and_deliver(backend) == "4 nonces delivered, 0 refused"
    assert receiver.nonces == list(range(7))
    assert backend.callbacks.claim_due(60.0) == []
    assert backend.client.smembers(Keys.CALLBACKS) == set()


async def test_a_body_too_large_for_the_receiver_is_halved(
    backend: Backend, receiver: Receiver
) -> None:
    """Until it takes it; what follows comes in the size that it took."""
    round_id = _round(backend, receiver.url, 11)
    receiver.limit = 3
    assert await claim_and_deliver(backend, entries_per_post=8) == "11 nonces delivered, 0 refused"
    assert [len(body["nonces"]) for body in receiver.refused] == [8, 4]
    assert [len(body["nonces"]) for body in receiver.bodies] == [2, 2, 2, 2, 2, 1]
    assert receiver.nonces == list(range(11))
    progress = backend.callbacks.progress(round_id)
    assert (progress.delivered, progress.attempts, progress.lease) == (11, 0, "")


async def test_a_task_does_not_end_before_it_has_the_size_that_is_taken(
    backend: Backend, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its time is over: the next one would begin with a post that is too large, and so on for ever."""
    monkeypatch.setattr(delivery, "TASK_S", 0.0)
    _round(backend, receiver.url, 8)
    receiver.limit = 3
    line = await claim_and_deliver(backend, entries_per_post=8)
    assert line == "2 nonces delivered, 0 refused; more to come"
    assert [len(body["nonces"]) for body in receiver.refused] == [8, 4]


async def test_what_the_receiver_refuses_does_not_keep_the_rest_back(
    backend: Backend, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """It is found by halving, put aside and logged, and not tried again before its pause is over."""
    round_id = _round(backend, receiver.url, 9)
    receiver.unwanted = {4, 8}
    assert await claim_and_deliver(backend) == "7 nonces delivered, 2 refused"
    assert receiver.nonces == [0, 1, 2, 3, 5, 6, 7]
    assert [body["nonces"] for body in receiver.refused] == [[3, 4, 5], [4], [8]]
    for nonce in (4, 8):
        assert (
            f"Round {round_id}: the callback receiver refuses 1 nonce, from {nonce} on: HTTP 422"
            in caplog.text
        )
    assert backend.callbacks.claim_due(60.0) == []
    progress = backend.callbacks.progress(round_id)
    assert (progress.delivered, progress.aside, progress.lease) == (7, 2, "")
    # What is new does not wait for that.
    find(backend, round_id, 9, 1)
    assert await claim_and_deliver(backend) == "1 nonce delivered, 0 refused"


async def test_a_receiver_that_was_not_ready_gets_everything(
    backend: Backend, receiver: Receiver
) -> None:
    """What it refused goes out, each once and several together, after the round's end as well."""
    round_id = _round(backend, receiver.url, 12)
    receiver.limit = 0
    assert await claim_and_deliver(backend) == "0 nonces delivered, 12 refused"
    backend.store.close(round_id, RoundState.STOPPED, "")
    receiver.limit = 1000
    _end_pauses(backend, round_id)
    assert await claim_and_deliver(backend) == "12 nonces delivered, 0 refused"
    assert sorted(receiver.nonces) == list(range(12))
    assert [len(body["nonces"]) for body in receiver.bodies] == [1, 2, 3, 3, 3]
    progress = backend.callbacks.progress(round_id)
    assert (progress.delivered, progress.aside, progress.aside_ms) == (12, 0, 0)
    assert backend.callbacks.claim_due(60.0) == []
    assert backend.client.smembers(Keys.CALLBACKS) == set()


async def test_the_tenth_refusal_is_final(
    backend: Backend, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage is none of them. It is said, and the round is done with."""
    round_id = _round(backend, receiver.url, 2)
    receiver.unwanted = {1}
    await claim_and_deliver(backend)
    for tries in range(2, 11):
        _end_pauses(backend, round_id)
        if tries == 5:
            receiver.failures = 1
            assert await claim_and_deliver(backend) == "1 nonce not taken: HTTP 503"
        assert "not sent again" not in caplog.text
        await claim_and_deliver(backend)
        alone = [body for body in receiver.refused if body["nonces"] == [1]]
        assert len(alone) == tries + (tries >= 5)
    assert "refuses 1 nonce, from 1 on: HTTP 422" in caplog.text
    assert "not sent again" in caplog.text
    progress = backend.callbacks.progress(round_id)
    assert (progress.delivered, progress.aside) == (2, 0)
    backend.store.close(round_id, RoundState.STOPPED, "")
    assert backend.callbacks.claim_due(60.0) == []
    assert backend.client.smembers(Keys.CALLBACKS) == set()


async def test_a_receiver_that_refuses_everything_ends_the_task(
    backend: Backend, receiver: Receiver
) -> None:
    """A wrong path, say: each is asked about, alone, and that is it for now."""
    _round(backend, receiver.url, 4)
    receiver.limit = 0
    assert await claim_and_deliver(backend) == "0 nonces delivered, 4 refused"
    assert [body["nonces"] for body in receiver.refused] == [[0, 1, 2], [0], [1], [2], [3]]
    assert receiver.bodies == []
    assert backend.callbacks.claim_due(60.0) == []


# Staying with a round


async def test_a_task_that_stays_sends_what_is_found_at_once(
    backend: Backend, receiver: Receiver
) -> None:
    """Under its lease, which it keeps, until the round is over; nobody has to look for it."""
    round_id = _round(backend, receiver.url, 1)
    _, token = await _claim(backend)
    key = Keys.of_round(round_id, "callback")
    task = asyncio.create_task(
        asyncio.to_thread(asyncio.run, staying(backend, round_id, token, lambda: True))
    )
    for num in range(1, 5):
        await until(lambda num=num: receiver.nonces == list(range(num)))  # type: ignore[misc]
        backend.client.hset(key, "lease_ms", str(redis_ms(backend) + 5000))
        await until(
            lambda: backend.callbacks.progress(round_id).lease_ms > redis_ms(backend) + 9000
        )
        find(backend, round_id, num, 1)
    backend.store.close(round_id, RoundState.STOPPED, "")
    assert await task == "5 nonces delivered, 0 refused"
    assert receiver.nonces == list(range(5))
    assert backend.callbacks.progress(round_id).lease == ""


async def test_what_is_found_just_before_the_end_is_sent_at_once(
    backend: Backend, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a look for proofs and the one at the round, which is over."""
    round_id = _round(backend, receiver.url, 1)
    _, token = await _claim(backend)
    status_of = backend.store.status

    def end_with_a_find(round_id: str) -> RoundStatus:
        if receiver.nonces == [0]:
            find(backend, round_id, 1, 1)
            backend.store.close(round_id, RoundState.STOPPED, "")
        return status_of(round_id)

    monkeypatch.setattr(backend.store, "status", end_with_a_find)
    assert await staying(backend, round_id, token, lambda: True) == "2 nonces delivered, 0 refused"
    assert receiver.nonces == [0, 1]


async def test_a_task_that_stays_ends_with_its_worker(backend: Backend, receiver: Receiver) -> None:
    """And gives the lease up, for another one to go on."""
    round_id = _round(backend, receiver.url, 1)
    _, token = await _claim(backend)
    stays = threading.Event()
    stays.set()
    coming = staying(backend, round_id, token, stays.is_set)
    task = asyncio.create_task(asyncio.to_thread(asyncio.run, coming))
    await until(lambda: receiver.nonces == [0])
    stays.clear()
    assert (await task).startswith("1 nonce delivered, 0 refused")
    find(backend, round_id, 1, 1)
    assert await claim_and_deliver(backend) == "1 nonce delivered, 0 refused"


async def test_a_task_ends_with_its_worker_while_more_is_found(
    backend: Backend, receiver: Receiver
) -> None:
    """It does not wait for a moment without."""
    round_id = _round(backend, receiver.url, 1)
    _, token = await _claim(backend)
    stays = threading.Event()
    stays.set()

    def find_more() -> None:
        stays.clear()
        if (num := len(receiver.nonces) + 1) < 20:
            find(backend, round_id, num, 1)

    receiver.on_request = find_more
    line = await staying(backend, round_id, token, stays.is_set)
    assert line == "1 nonce delivered, 0 refused; more to come"
    receiver.on_request = lambda: None
    assert await claim_and_deliver(backend) == "1 nonce delivered, 0 refused"


async def test_a_task_that_is_delivered_twice_posts_once(
    backend: Backend, receiver: Receiver
) -> None:
    """As the broker does after a broken connection, while the first one is at work."""
    round_id = _round(backend, receiver.url, 2)
    _, token = await _claim(backend)
    task = asyncio.create_task(
        asyncio.to_thread(asyncio.run, staying(backend, round_id, token, lambda: True))
    )
    await until(lambda: receiver.nonces == [0, 1])
    find(backend, round_id, 2, 2)
    assert await deliver(backend, round_id, token) == "another task delivers"
    backend.store.close(round_id, RoundState.STOPPED, "")
    assert await task == "4 nonces delivered, 0 refused"
    assert receiver.nonces == [0, 1, 2, 3]
    assert backend.callbacks.progress(round_id).delivered == 4


async def test_while_redis_takes_no_writes_nothing_is_posted(
    own_backend: Backend, receiver: Receiver
) -> None:
    """What is under way then goes out once more at most, however often the task tries."""
    round_id = _round(own_backend, receiver.url, 2)
    _, token = await _claim(own_backend)
    receiver.on_request = lambda: own_backend.client.config_set("maxmemory", 1)
    for _ in range(4):
        with pytest.raises(StoreUnavailable):
            await deliver(own_backend, round_id, token, own="this run")
    assert receiver.nonces == [0, 1]
    receiver.on_request = lambda: None
    own_backend.client.config_set("maxmemory", 0)
    line = await deliver(own_backend, round_id, token, own="this run")
    assert line == "2 nonces delivered, 0 refused"
    assert own_backend.callbacks.progress(round_id).delivered == 2


async def test_one_place_is_kept_for_those_that_do_not_stay(
    backend: Backend, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more rounds than places all are served."""
    monkeypatch.setattr(boot, "backend", lambda: backend)
    monkeypatch.setattr(io, "_places", threading.Semaphore(1))
    monkeypatch.setenv("POCQUEUE_CALLBACK_PRIVATE", "1")
    # A task makes Celery read its settings, which starts the bundled Redis where they name none.
    monkeypatch.setenv("POCQUEUE_REDIS_URL", backend.url)
    first, second = (_round(backend, receiver.url, 1) for _ in range(2))
    tokens = dict(backend.callbacks.claim_due(60.0))
    ask = partial(asyncio.to_thread, io.deliver_proofs.run)
    task = asyncio.create_task(ask(round_id=first, token=tokens[first]))
    await until(lambda: receiver.nonces == [0])
    assert await ask(round_id=second, token=tokens[second]) == "1 nonce delivered, 0 refused"
    assert not task.done()
    backend.store.close(first, RoundState.STOPPED, "")
    assert await task == "1 nonce delivered, 0 refused"


@pytest.mark.parametrize(
    ("queues", "concurrency", "places"),
    [(["io"], 2, io.TASKS), (["io"], 5, 5), (["io", "hosts"], 2, 2)],
)
def test_an_io_worker_has_many_places(
    queues: list[str], concurrency: int, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is told another number, or has other work."""
    monkeypatch.setattr(io, "_places", None)
    amqp = SimpleNamespace(queues=SimpleNamespace(consume_from=dict.fromkeys(queues)))
    ours = SimpleNamespace(amqp=amqp, conf=SimpleNamespace(worker_concurrency=2))
    worker = SimpleNamespace(app=ours, concurrency=concurrency)
    io._make_room(worker)
    assert worker.concurrency == places


async def test_a_task_that_loses_the_lease_while_it_is_refused_stops(
    backend: Backend, receiver: Receiver
) -> None:
    """Another task decides about the rest."""
    round_id = _round(backend, receiver.url, 3)
    receiver.limit = 0
    _, token = await _claim(backend)
    receiver.on_request = lambda: _take_over(backend, round_id)
    assert await deliver(backend, round_id, token) == "another task took over"
    assert [body["nonces"] for body in receiver.refused] == [[0, 1, 2]]


async def test_a_forgotten_round_has_nothing_to_deliver(backend: Backend) -> None:
    """The message was under way for longer than the round was kept."""
    assert await deliver(backend, "unknown", "token") == "the round is forgotten"


async def test_a_receiver_that_is_gone_costs_no_proof(
    backend: Backend, receiver: Receiver, unused_tcp_port: int
) -> None:
    """Nobody listens: the failure is noted, the cursor stays, and it is due again."""
    round_id = _round(backend, f"http://127.0.0.1:{unused_tcp_port}/hook", 2)
    error = "2 nonces not taken: no answer (ClientConnectorError)"
    assert await claim_and_deliver(backend) == error
    progress = backend.callbacks.progress(round_id)
    assert (progress.delivered, progress.attempts, progress.lease) == (0, 1, "")
    assert progress.error == error
    assert (await _claim(backend))[0] == round_id


async def test_a_task_without_the_lease_sends_nothing(backend: Backend, receiver: Receiver) -> None:
    """A message that was delivered twice, or came after another task took over."""
    round_id = _round(backend, receiver.url, 2)
    assert await deliver(backend, round_id, "stale") == "another task delivers"
    _, token = await _claim(backend)
    assert await deliver(backend, round_id, token) == "2 nonces delivered, 0 refused"
    assert await deliver(backend, round_id, token) == "another task delivers"
    assert receiver.nonces == [0, 1]


async def test_a_task_that_loses_the_lease_on_the_way_stops(
    backend: Backend, receiver: Receiver
) -> None:
    """It was too slow; the other one goes on from what it knows to be confirmed."""
    round_id = _round(backend, receiver.url, 9)
    _, token = await _claim(backend)
    receiver.on_request = lambda: _take_over(backend, round_id)
    assert await deliver(backend, round_id, token) == "another task took over"
    assert receiver.nonces == [0, 1, 2]


async def test_a_round_without_a_url_has_nothing_to_deliver(backend: Backend) -> None:
    """Whoever sent the task was mistaken."""
    round_id = _round(backend, None, 2)
    assert await deliver(backend, round_id, "") == "another task delivers"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost.", "2130706433", "inside.test"])
async def test_an_address_that_is_not_public_ends_the_delivery(
    host: str,
    backend: Backend,
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is sent, nothing is passed over, nothing is tried again; the setting is named."""
    if host == "inside.test":
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    url = receiver.url.replace("127.0.0.1", host)
    round_id = _round(backend, url, 4)
    _, token = await _claim(backend)
    line = await io.deliver(backend, round_id, token, "own", allow_private=False)
    assert line.startswith("callback_url ")
    assert "POCQUEUE_CALLBACK_PRIVATE=1" in line
    assert f"Round {round_id}: no callbacks are sent. {line}" in caplog.text
    progress = backend.callbacks.progress(round_id)
    assert (progress.delivered, progress.lease, progress.error) == (0, "", line)
    assert receiver.bodies == receiver.refused == []
    find(backend, round_id, 4, 1)
    assert backend.callbacks.claim_due(60.0) == []
    assert backend.client.smembers(Keys.CALLBACKS) == set()


async def test_a_redirect_is_not_followed(backend: Backend, receiver: Receiver) -> None:
    """A receiver that may be called could otherwise send us to one that may not."""
    _round(backend, receiver.url.replace("/hook", "/away"), 1)
    assert await claim_and_deliver(backend) == "0 nonces delivered, 1 refused"
    assert receiver.bodies == []
