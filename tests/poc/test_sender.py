"""The callback queue against a real server: merged posts, retries, refusals, bounds, what closing costs."""

from __future__ import annotations

import asyncio
import logging
import math
import tracemalloc
from dataclasses import asdict
from typing import Any

import pytest
from aiohttp import web

from pocqueue.errors import InvalidRound
from pocqueue.poc.backoff import Backoff
from pocqueue.poc.data import ProofBatch, ValidatedBatch
from pocqueue.poc.sender import CallbackQueue, PoCCallbackSender
from tests.support.callback_receiver import Receiver, answering, receiving
from tests.support.waiting import until

QUICK = Backoff(0.001, 0.004)


def sender_to(url: str, **bounds: Any) -> PoCCallbackSender:
    return PoCCallbackSender(url, r_target=1.0, fraud_threshold=0.01, backoff=QUICK, **bounds)


def proof(number: int, dist: float = 0.5) -> ProofBatch:
    return ProofBatch("pk", "bh", 7, [number, number + 1], [dist, 1.5], 0)


def batch(start: int, stop: int, **changes: Any) -> dict[str, Any]:
    """Return the body of so many valid nonces."""
    nonces = list(range(start, stop))
    body = asdict(ProofBatch("pk", "bh", 7, nonces, [nonce / 1e6 for nonce in nonces], 0))
    return body | {"r_target": 1.0} | changes


def counts(sender: CallbackQueue) -> tuple[int, int, int]:
    return sender.delivered, sender.dropped, sender.waiting


def accepted(receiver: Receiver) -> list[list[int]]:
    return [body["nonces"] for body in receiver.accepted]


async def empty(sender: CallbackQueue) -> None:
    """Wait until nothing waits any more."""
    await until(lambda: not sender.waiting)


async def test_generated_sends_the_valid_nonces(receiver: Receiver) -> None:
    """The body is asdict of the valid part and r_target, as JSON, at /generated below the URL."""
    async with sender_to(receiver.url + "/") as sender:
        await sender.send_generated(proof(3))
        await empty(sender)
        assert counts(sender) == (1, 0, 0)
    body = asdict(proof(3).sub_batch(1.0)) | {"r_target": 1.0}
    assert receiver.received == [("/v1/poc-batches/generated", body)]
    assert receiver.received[0][1]["nonces"] == [3]
    assert receiver.content_types == {"application/json"}


async def test_batch_without_valid_nonces_is_no_call(receiver: Receiver) -> None:
    """Nothing valid, nothing said."""
    async with sender_to(receiver.url) as sender:
        await sender.send_generated(proof(3, dist=1.0))
        await sender.send_generated(ProofBatch.empty())
    assert receiver.received == []


async def test_validated_sends_the_verdict(receiver: Receiver) -> None:
    """Also one without any invalid nonce."""
    verdict = ValidatedBatch(
        **asdict(proof(3)), received_dist=[0.5, 0.5], r_target=1.0, fraud_threshold=0.01
    )
    async with sender_to(receiver.url) as sender:
        await sender.send_validated(verdict)
    [(path, body)] = receiver.received
    assert path == "/v1/poc-batches/validated"
    assert body == asdict(verdict) | {
        "computed_distances": verdict.dist,
        "received_distances": verdict.received_dist,
        "valid": [distance < 1.0 for distance in verdict.dist],
    }


async def test_what_waits_goes_out_together(receiver: Receiver) -> None:
    """While one post is under way, in the order sent; sending does not wait for the receiver."""
    receiver.gate.clear()
    async with sender_to(receiver.url) as sender:
        await sender.send_generated(proof(0))
        await until(lambda: receiver.received)
        for number in range(1, 200):
            await sender.send_generated(proof(number))
        assert counts(sender) == (0, 0, 200)
        receiver.gate.set()
        await empty(sender)
        assert counts(sender) == (200, 0, 0)
    assert accepted(receiver) == [[0], list(range(1, 200))]
    assert receiver.accepted[1]["dist"] == [0.5] * 199


async def test_only_what_belongs_together_is_merged(receiver: Receiver) -> None:
    """Another key, another block, a verdict between: a post each, in order."""
    verdict = ValidatedBatch(
        **asdict(proof(9)), received_dist=[0.5, 0.5], r_target=1.0, fraud_threshold=0.01
    )
    async with sender_to(receiver.url) as sender:
        sender.send("generated", batch(0, 2))
        sender.send("generated", batch(2, 4))
        sender.send("generated", batch(4, 6, public_key="another"))
        await sender.send_validated(verdict)
        await sender.send_validated(verdict)
        sender.send("generated", batch(6, 8))
        await empty(sender)
    assert accepted(receiver) == [[0, 1, 2, 3], [4, 5], [9, 10], [9, 10], [6, 7]]
    assert [body["public_key"] for body in receiver.accepted][1:3] == ["another", "pk"]


async def test_posts_are_bounded_by_bytes(receiver: Receiver) -> None:
    """By default so that servers with the common limit of a mebibyte take them, in as few as that allows."""
    async with sender_to(receiver.url) as sender:
        # Long nonces and distances: over 40 bytes each.
        nonces = list(range(2**62, 2**62 + 100_000))
        dist = [nonce / 2**63 / 3e5 for nonce in nonces]
        sender.send("generated", batch(0, 0) | {"nonces": nonces, "dist": dist})
        await empty(sender)
        assert counts(sender) == (100_000, 0, 0)
    assert [nonce for body in accepted(receiver) for nonce in body] == nonces
    assert [d for body in receiver.accepted for d in body["dist"]] == dist
    assert 5 <= len(receiver.received) <= 7


async def test_a_receiver_with_a_lower_limit_gets_smaller_posts() -> None:
    """Nothing is lost for it."""
    taken: list[int] = []

    async def at_most_100(request: web.Request) -> web.Response:
        nonces = (await request.json())["nonces"]
        if len(nonces) > 100:
            return web.Response(status=413)
        taken.extend(nonces)
        return web.Response()

    async with answering(at_most_100) as url, sender_to(url) as sender:
        sender.send("generated", batch(0, 3000))
        await empty(sender)
        assert counts(sender) == (3000, 0, 0)
    assert taken == list(range(3000))


async def test_it_tries_again_until_it_works(receiver: Receiver) -> None:
    """However long an outage: each nonce arrives once, and those behind it stay behind it."""
    receiver.statuses = iter([503, 429, 500, 408, 425] * 10)
    async with sender_to(receiver.url) as sender:
        for number in range(5):
            await sender.send_generated(proof(number))
        await until(lambda: sender.error)
        assert sender.error in {f"HTTP {status}" for status in (503, 429, 500, 408, 425)}
        await sender.send_generated(proof(5))
        await empty(sender)
        assert counts(sender) == (6, 0, 0)
        assert sender.error is None
    assert len(receiver.received) > 50
    assert [nonce for body in accepted(receiver) for nonce in body] == [0, 1, 2, 3, 4, 5]


async def test_an_outage_is_one_warning(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of them, and not each try."""
    async with sender_to(receiver.url) as sender:
        for number in range(2):
            receiver.statuses = iter([503] * 5)
            await sender.send_generated(proof(number))
            await empty(sender)
    # Its tries are told at INFO, which another test may have turned on.
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert all("HTTP 503; 1 nonce waiting" in record.getMessage() for record in warnings)


@pytest.mark.parametrize("status", [400, 404, 410, 422, 302, 307, 204])
async def test_refusal_is_final(
    receiver: Receiver, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not repeated or followed, logged once, counted, and the next batch goes on."""
    receiver.statuses = iter([status])
    async with sender_to(receiver.url) as sender:
        await sender.send_generated(proof(1))
        await empty(sender)
        await sender.send_generated(proof(2))
        await empty(sender)
        assert counts(sender) == (1, 1, 0)
    assert [body["nonces"] for _, body in receiver.received] == [[1], [2]]
    assert {path for path, _ in receiver.received} == {"/v1/poc-batches/generated"}
    assert caplog.text.count(f"refused, HTTP {status}") == 1


async def test_one_nonce_that_is_refused_costs_few_others() -> None:
    """The posts with it get smaller; the rest arrives, in order."""
    taken: list[int] = []

    async def all_but_one(request: web.Request) -> web.Response:
        nonces = (await request.json())["nonces"]
        if 777 in nonces:
            return web.Response(status=422)
        taken.extend(nonces)
        return web.Response()

    async with answering(all_but_one) as url, sender_to(url) as sender:
        sender.send("generated", batch(0, 5000))
        await empty(sender)
        assert sender.dropped <= 64
        assert sender.delivered == len(taken) == 5000 - sender.dropped
    assert taken == sorted(taken)


async def test_receiver_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """No server is a failure without an exception; what is left when it closes is counted, without secrets."""
    caplog.set_level(logging.DEBUG, logger="pocqueue")
    async with receiving() as receiver:
        port = receiver.url.split(":")[2].split("/")[0]
    url = f"http://user:hunter2@127.0.0.1:{port}/path-token?key=query-token"
    sender = sender_to(url)
    await sender.send_generated(proof(1))
    await until(lambda: sender.error)
    await sender.close(0.01)
    assert counts(sender) == (0, 1, 0)
    assert f"http://127.0.0.1:{port}: 1 nonce dropped, not taken in time" in caplog.text
    assert not any(word in caplog.text for word in ("hunter2", "path-token", "query-token"))


async def test_receiver_that_comes_back() -> None:
    """What was queued while nobody listened arrives when somebody does, also while the queue closes."""
    async with receiving() as receiver:
        url = receiver.url
    sender = sender_to(url)
    await sender.send_generated(proof(1))
    await until(lambda: sender.error)
    closing = asyncio.create_task(sender.close(60))
    await until(lambda: sender.closing)
    async with receiving(port=int(url.split(":")[2].split("/")[0])) as receiver:
        await closing
        assert accepted(receiver) == [[1]]
    assert counts(sender) == (1, 0, 0)


async def test_what_does_not_fit_is_dropped(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory is bounded by nonces; the old ones still arrive in order."""
    receiver.gate.clear()
    async with sender_to(receiver.url, max_waiting=4) as sender:
        for number in range(10):
            await sender.send_generated(proof(number))
        assert counts(sender) == (0, 6, 4)
        receiver.gate.set()
        await empty(sender)
        assert counts(sender) == (4, 6, 0)
    assert [nonce for body in accepted(receiver) for nonce in body] == [0, 1, 2, 3]
    assert caplog.text.count("1 nonce dropped, as 4 wait at most") == 1


async def test_nonces_wait_in_little_memory(receiver: Receiver) -> None:
    """By default five million of them and more may wait, of 16 bytes each."""
    receiver.gate.clear()
    async with sender_to(receiver.url) as sender:
        assert sender.max_waiting >= 5_000_000
        sender.send("generated", batch(0, 1))
        await until(lambda: receiver.received)
        tracemalloc.start()
        try:
            for start in range(1, 100_001, 20):
                sender.send("generated", batch(start, start + 20))
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert sender.waiting == 100_001
        assert held < 20 * sender.waiting
        await sender.close(0)


async def test_close_drops_what_does_not_leave_in_time(receiver: Receiver) -> None:
    """A receiver that hangs cannot hold up the end; what is left is counted."""
    receiver.gate.clear()
    sender = sender_to(receiver.url)
    for number in range(3):
        await sender.send_generated(proof(number))
    await sender.close(0.02)
    assert counts(sender) == (0, 3, 0)


async def test_closing_again_can_be_sooner(receiver: Receiver) -> None:
    """As when a server ends while a round's last callbacks are still tried."""
    receiver.gate.clear()
    sender = sender_to(receiver.url)
    await sender.send_generated(proof(0))
    patient = asyncio.create_task(sender.close(600))
    await until(lambda: sender.closing)
    await sender.close(0.01)
    await patient
    assert counts(sender) == (0, 1, 0)


async def test_closed_sender_takes_nothing_more(receiver: Receiver) -> None:
    """Closing twice is allowed, sending afterwards is counted, and nothing is left open."""
    sender = sender_to(receiver.url)
    await sender.send_generated(proof(0))
    await asyncio.gather(sender.close(), sender.close())
    await sender.send_generated(proof(1))
    await sender.close()
    assert counts(sender) == (1, 1, 0)
    assert len(receiver.received) == 1


async def test_unused_sender_closes() -> None:
    """Nothing was opened, so there is nothing to close."""
    await sender_to("http://127.0.0.1:9").close()


async def test_distances_that_are_not_finite_travel_as_null(receiver: Receiver) -> None:
    """JSON has no NaN; such a nonce is invalid on either side."""
    verdict = ValidatedBatch("pk", "bh", 7, [1, 2], [math.nan, 0.5], 0, [0.5, math.inf], 1.0, 0.01)
    async with sender_to(receiver.url) as sender:
        await sender.send_validated(verdict)
        await empty(sender)
    [(_path, body)] = receiver.received
    assert body["computed_distances"] == body["dist"] == [None, 0.5]
    assert body["received_distances"] == body["received_dist"] == [0.5, None]
    assert body["valid"] == [False, True]
    assert body["n_invalid"] == 2


async def test_what_json_cannot_hold_is_dropped(receiver: Receiver) -> None:
    """Nothing is sent; the batch is counted and the next one goes on."""
    async with sender_to(receiver.url) as sender:
        for r_target in (math.nan, 1.0):
            await sender.send_validated(
                ValidatedBatch("pk", "bh", 7, [1], [0.5], 0, [0.5], r_target, 0.01)
            )
        await empty(sender)
        assert counts(sender) == (1, 1, 0)


@pytest.mark.parametrize(
    "url", ["", "host:80/x", "ftp://host/x", "http://", "http://[::1/x", "http://host:99999/", "/x"]
)
def test_impossible_urls_are_refused(url: str) -> None:
    """The error names the field and says what is allowed."""
    with pytest.raises(InvalidRound, match=r"callback_url is .*http or https"):
        PoCCallbackSender(url, 1.0, 0.01)


def test_refused_url_does_not_show_its_password() -> None:
    """Errors are printed and logged."""
    with pytest.raises(InvalidRound) as caught:
        PoCCallbackSender("ftp://user:hunter2@host/x", 1.0, 0.01)
    assert "hunter2" not in str(caught.value)


# What the artifact wire has of its own.


def artifact_body(*nonces: int, **changes: Any) -> dict[str, Any]:
    """Return the body of so many artifacts."""
    rows = [{"nonce": nonce, "vector_b64": f"{nonce:032d}"} for nonce in nonces]
    return {"public_key": "pk", "artifacts": rows, "encoding": {"dtype": "f16"}} | changes


async def test_artifacts_go_out_together(receiver: Receiver) -> None:
    """In a list of objects, as many as a megabyte takes; each counts once."""
    receiver.gate.clear()
    async with CallbackQueue(receiver.url) as sender:
        sender.send("generated", artifact_body(0))
        await until(lambda: receiver.received)
        for start in range(1, 30_001, 30):
            sender.send("generated", artifact_body(*range(start, start + 30)))
        sender.send("generated", artifact_body(7, public_key="another"))
        receiver.gate.set()
        await empty(sender)
        assert counts(sender) == (30_002, 0, 0)
    sent = [body["artifacts"] for body in receiver.accepted]
    assert sent[0] == artifact_body(0)["artifacts"]
    assert [one for rows in sent[1:-1] for one in rows] == artifact_body(*range(1, 30_001))[
        "artifacts"
    ]
    assert receiver.accepted[-1] == artifact_body(7, public_key="another")
    assert 2 <= len(sent[1:-1]) <= 4


async def test_artifacts_wait_in_little_memory(receiver: Receiver) -> None:
    """A million of them in 130 MB at most."""
    receiver.gate.clear()
    async with CallbackQueue(receiver.url) as sender:
        sender.send("generated", artifact_body(0))
        await until(lambda: receiver.received)
        tracemalloc.start()
        try:
            for start in range(1, 20_001, 20):
                sender.send("generated", artifact_body(*range(start, start + 20)))
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 130 * sender.waiting
        await sender.close(0)


async def test_a_whole_body_is_one_post(receiver: Receiver) -> None:
    """However large, and beside others of its kind; one without nonces counts as one."""
    whole = artifact_body(*range(100), request_id="an id")
    async with CallbackQueue(receiver.url, interval_s=600, max_post_bytes=1000) as sender:
        for body in (whole, artifact_body(1, 2), artifact_body(3, 4)):
            sender.send("generated", body, is_whole=True)
        sender.send("validated", {"n_total": 0, "mismatch_nonces": []})
        assert (sender.num_bodies, sender.waiting) == (4, 105)
    assert receiver.accepted == [
        whole,
        artifact_body(1, 2),
        artifact_body(3, 4),
        {"n_total": 0, "mismatch_nonces": []},
    ]
    assert counts(sender) == (105, 0, 0)


async def test_an_interval_gathers(receiver: Receiver) -> None:
    """Before the first post and between two; closing does not wait for it."""
    sender = CallbackQueue(receiver.url, interval_s=0.001)
    for start in range(3):
        sender.send("generated", artifact_body(start))
    await empty(sender)
    sender.interval_s = 600
    for start in range(3, 6):
        sender.send("generated", artifact_body(start))
    await sender.close(60)
    assert receiver.accepted == [artifact_body(0, 1, 2), artifact_body(3, 4, 5)]


async def test_a_backlog_does_not_wait_for_the_interval(receiver: Receiver) -> None:
    """What one post cannot hold goes out behind it at once, and not an interval later."""
    async with CallbackQueue(receiver.url, interval_s=0.001, max_post_bytes=1000) as sender:
        sender.send("generated", artifact_body(*range(200)))
        await until(lambda: receiver.received)
        sender.interval_s = 1e9
        await empty(sender)
    nonces = [one["nonce"] for body in receiver.accepted for one in body["artifacts"]]
    assert nonces == list(range(200))
    assert len(receiver.accepted) > 10


async def test_refusals_may_be_final_later(receiver: Receiver) -> None:
    """So many in a row; a post that is taken begins the count again."""
    receiver.statuses = iter([404, 404, 200, 404, 404, 404, 200])
    # An outage would be waited for for long; refusals have pauses of their own.
    slow = Backoff(600, 600)
    async with CallbackQueue(
        receiver.url, backoff=slow, refusal_backoff=QUICK, max_refusals=3
    ) as sender:
        for nonce in range(3):
            sender.send("generated", artifact_body(nonce), is_whole=True)
        await empty(sender)
        assert counts(sender) == (2, 1, 0)
    assert receiver.accepted == [artifact_body(0), artifact_body(2)]


async def test_each_body_has_its_tries(receiver: Receiver) -> None:
    """Also those behind one that was dropped."""
    receiver.statuses = iter([404] * 9)
    async with CallbackQueue(receiver.url, refusal_backoff=QUICK, max_refusals=3) as sender:
        for nonce in range(4):
            sender.send("generated", artifact_body(nonce), is_whole=True)
        await empty(sender)
        assert counts(sender) == (1, 3, 0)
    tried = [body["artifacts"][0]["nonce"] for _, body in receiver.received]
    assert tried == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]


async def test_a_close_does_not_wait_as_long_as_a_receiver_asks() -> None:
    """Neither the one at hand nor a sooner one; what waits is tried again in the time that is left."""
    tries = 0

    async def away(_: web.Request) -> web.Response:
        nonlocal tries
        tries += 1
        if tries < 4:
            return web.Response(status=503, headers={"Retry-After": "300"})
        return web.Response()

    async with answering(away) as url:
        sender = CallbackQueue(url)
        sender.send("generated", artifact_body(1))
        await until(lambda: sender.error)
        patient = asyncio.create_task(sender.close(6000))
        await until(lambda: tries == 2)
        await sender.close(10)
        await patient
        assert counts(sender) == (1, 0, 0)


async def test_what_a_receiver_asks_for_is_bounded() -> None:
    tries = 0

    async def away(_: web.Request) -> web.Response:
        nonlocal tries
        tries += 1
        return web.Response(status=503 if tries == 1 else 200, headers={"Retry-After": "300"})

    async with (
        answering(away) as url,
        CallbackQueue(url, backoff=QUICK, max_retry_after_s=0.01) as sender,
    ):
        sender.send("generated", artifact_body(1))
        await empty(sender)
        assert counts(sender) == (1, 0, 0)


async def test_queues_share_how_many_posts_are_under_way(receiver: Receiver) -> None:
    slots = asyncio.Semaphore(1)
    receiver.gate.clear()
    async with (
        CallbackQueue(receiver.url, slots=slots) as one,
        CallbackQueue(receiver.url, slots=slots) as other,
    ):
        for number, sender in enumerate((one, other)):
            sender.send("generated", artifact_body(number))
        await until(lambda: receiver.received)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(receiver.received) == 1
        receiver.gate.set()
        await empty(one)
        await empty(other)
    assert len(receiver.accepted) == 2


@pytest.mark.parametrize(("status", "taken"), [(201, True), (302, True), (399, True), (400, False)])
async def test_what_counts_as_taken_can_be_said(
    receiver: Receiver, status: int, *, taken: bool
) -> None:
    receiver.statuses = iter([status])
    async with CallbackQueue(receiver.url, delivered_below=400) as sender:
        sender.send("generated", artifact_body(1))
        await empty(sender)
        assert counts(sender) == (int(taken), int(not taken), 0)
