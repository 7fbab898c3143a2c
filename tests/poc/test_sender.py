"""The callback sender against a real server: retries, refusals, order, bounds, flush on close."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import asdict

import pytest

from pocqueue.errors import InvalidRound
from pocqueue.poc.data import ProofBatch, ValidatedBatch
from pocqueue.poc.sender import PoCCallbackSender
from tests.support.callback_receiver import Receiver, receiving
from tests.support.waiting import until


def sender_to(
    url: str, *, attempts: int = 8, queue_size: int = 1000, flush_timeout_s: float = 10.0
) -> PoCCallbackSender:
    return PoCCallbackSender(
        url,
        r_target=1.0,
        fraud_threshold=0.01,
        attempts=attempts,
        queue_size=queue_size,
        backoff_s=0.001,
        max_backoff_s=0.004,
        request_timeout_s=5,
        flush_timeout_s=flush_timeout_s,
    )


def proof(number: int, dist: float = 0.5) -> ProofBatch:
    return ProofBatch("pk", "bh", 7, [number, number + 1], [dist, 1.5], 0)


def counts(sender: PoCCallbackSender) -> tuple[int, int, int]:
    return sender.sent, sender.failed, sender.dropped


async def test_generated_sends_the_valid_nonces(receiver: Receiver) -> None:
    """The body is asdict of the valid part and r_target, as JSON, at /generated below the URL."""
    async with sender_to(receiver.url + "/") as sender:
        await sender.send_generated(proof(3))
        assert await sender.flush(20)
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


async def test_it_tries_again_until_it_works(receiver: Receiver) -> None:
    """Two failures, then 200: the batch arrives once, and those behind it stay behind it."""
    receiver.statuses = iter([503, 429])
    async with sender_to(receiver.url) as sender:
        for number in range(5):
            await sender.send_generated(proof(number))
        assert await sender.flush(20)
        assert counts(sender) == (5, 0, 0)
    assert [body["nonces"] for _, body in receiver.received] == [[0], [0], [0], [1], [2], [3], [4]]
    assert [body["nonces"] for body in receiver.accepted] == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize("status", [400, 404, 410, 422, 302, 307, 204])
async def test_refusal_is_final(
    receiver: Receiver, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not repeated or followed, logged once, counted, and the next batch goes on."""
    receiver.statuses = iter([status])
    async with sender_to(receiver.url) as sender:
        await sender.send_generated(proof(1))
        await sender.send_generated(proof(2))
        assert await sender.flush(20)
        assert counts(sender) == (1, 0, 1)
    assert [body["nonces"] for _, body in receiver.received] == [[1], [2]]
    assert {path for path, _ in receiver.received} == {"/v1/poc-batches/generated"}
    assert caplog.text.count(f"refused, HTTP {status}") == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
async def test_it_gives_up_after_its_attempts(receiver: Receiver, status: int) -> None:
    """A receiver that never takes it costs a bounded number of tries."""
    receiver.statuses = iter([status] * 3)
    async with sender_to(receiver.url, attempts=3) as sender:
        await sender.send_generated(proof(1))
        await sender.send_generated(proof(2))
        assert await sender.flush(20)
        assert counts(sender) == (1, 1, 0)
    assert [body["nonces"] for _, body in receiver.received] == [[1], [1], [1], [2]]


async def test_it_gives_up_after_its_time(receiver: Receiver) -> None:
    """A pause that would end too late is not begun."""
    receiver.statuses = iter([503] * 3)
    sender = PoCCallbackSender(
        receiver.url, 1.0, 0.01, give_up_after_s=5.0, backoff_s=60, max_backoff_s=60
    )
    await sender.send_generated(proof(1))
    assert await sender.flush(20)
    assert counts(sender) == (0, 1, 0)
    assert len(receiver.received) == 1
    await sender.close()


async def test_receiver_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """No server is a failure after the last try, without an exception and without the URL's secrets."""
    caplog.set_level(logging.DEBUG, logger="pocqueue")
    async with receiving() as receiver:
        port = receiver.url.split(":")[2].split("/")[0]
    url = f"http://user:hunter2@127.0.0.1:{port}/path-token?key=query-token"
    async with sender_to(url, attempts=3) as sender:
        await sender.send_generated(proof(1))
        assert await sender.flush(20)
        assert counts(sender) == (0, 1, 0)
    assert f"http://127.0.0.1:{port}/generated: given up after 3 tries" in caplog.text
    assert not any(word in caplog.text for word in ("hunter2", "path-token", "query-token"))


async def test_receiver_that_comes_back() -> None:
    """What was queued while nobody listened arrives when somebody does."""
    async with receiving() as receiver:
        url = receiver.url
    async with sender_to(url, attempts=10_000) as sender:
        await sender.send_generated(proof(1))
        async with receiving(port=int(url.split(":")[2].split("/")[0])) as receiver:
            assert await sender.flush(20)
            assert [body["nonces"] for body in receiver.accepted] == [[1]]


async def test_sending_does_not_wait_for_the_receiver(receiver: Receiver) -> None:
    """Batches queue up behind one that is under way, and close lets all of them go out."""
    receiver.gate.clear()
    sender = sender_to(receiver.url)
    for number in range(20):
        await sender.send_generated(proof(number))
    assert not await sender.flush(0.01)
    assert sender.sent == 0
    receiver.gate.set()
    await sender.close()
    assert counts(sender) == (20, 0, 0)
    assert [body["nonces"] for body in receiver.accepted] == [[number] for number in range(20)]


async def test_full_queue_drops_the_new_ones(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory is bounded, the outage is logged once, the old ones still arrive in order."""
    receiver.gate.clear()
    async with sender_to(receiver.url, queue_size=3) as sender:
        await sender.send_generated(proof(0))
        await until(lambda: receiver.received)
        for number in range(1, 10):
            await sender.send_generated(proof(number))
        assert sender.dropped == 6
        receiver.gate.set()
        assert await sender.flush(20)
        assert counts(sender) == (4, 0, 6)
    assert [body["nonces"] for body in receiver.accepted] == [[0], [1], [2], [3]]
    assert caplog.text.count("dropping new ones") == 1


async def test_close_drops_what_does_not_leave_in_time(receiver: Receiver) -> None:
    """A receiver that hangs cannot hold up the end; what is left is counted."""
    receiver.gate.clear()
    sender = sender_to(receiver.url, flush_timeout_s=0.02)
    for number in range(3):
        await sender.send_generated(proof(number))
    await sender.close()
    assert counts(sender) == (0, 0, 3)


async def test_closed_sender_takes_nothing_more(receiver: Receiver) -> None:
    """Closing twice is allowed, sending afterwards is counted, and nothing is left open."""
    sender = sender_to(receiver.url)
    await sender.send_generated(proof(0))
    await asyncio.gather(sender.close(), sender.close())
    await sender.send_generated(proof(1))
    await sender.close()
    assert counts(sender) == (1, 0, 1)
    assert len(receiver.received) == 1


async def test_unused_sender_closes() -> None:
    """Nothing was opened, so there is nothing to close."""
    await sender_to("http://127.0.0.1:9").close()


async def test_distances_that_are_not_finite_travel_as_null(receiver: Receiver) -> None:
    """JSON has no NaN; such a nonce is invalid on either side."""
    verdict = ValidatedBatch("pk", "bh", 7, [1, 2], [math.nan, 0.5], 0, [0.5, math.inf], 1.0, 0.01)
    async with sender_to(receiver.url) as sender:
        await sender.send_validated(verdict)
        assert await sender.flush(20)
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
        assert await sender.flush(20)
        assert counts(sender) == (1, 0, 1)


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
