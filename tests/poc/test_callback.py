"""One POST against real receivers: what an answer means, what its reason says and what it keeps secret."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from pocqueue.errors import CallbackForbidden, InvalidRound
from pocqueue.poc.backoff import Backoff
from pocqueue.poc.callback import (
    MAX_RETRY_AFTER_S,
    CallbackClient,
    PostOutcome,
    PostResult,
    encode_body,
    retry_after_s,
    without_secrets,
)
from tests.support.callback_receiver import Receiver, answering, receiving
from tests.support.tls import make_certificate


@pytest.fixture
async def client() -> AsyncIterator[CallbackClient]:
    async with CallbackClient(request_timeout_s=5) as client:
        yield client


async def test_a_post_is_one_attempt(client: CallbackClient, receiver: Receiver) -> None:
    """At the path of its kind, as JSON; only 200 is delivered, and nothing is followed."""
    receiver.statuses = iter([503, 400, 201, 302])
    outcomes = [
        (await client.post(f"{receiver.url}/", "generated", '{"n":1}')).outcome for _ in range(5)
    ]
    assert outcomes == [
        PostOutcome.RETRY,
        PostOutcome.REFUSED,
        PostOutcome.REFUSED,
        PostOutcome.REFUSED,
        PostOutcome.DELIVERED,
    ]
    assert receiver.received == [("/v1/poc-batches/generated", {"n": 1})] * 5
    assert receiver.content_types == {"application/json"}


@pytest.mark.parametrize(
    "path",
    [
        # A model's name, percent-encoded twice, as the network's chain hands it out.
        "/v2/poc-batches/Qwen%252FQwen3-235B-A22B-Instruct-2507-FP8",
        "/v2/poc-batches/a%2fb%41c%7E%252e",
        "/v2//poc/../batches/(x),;=@[y]",
    ],
)
async def test_a_url_goes_out_byte_for_byte(client: CallbackClient, path: str) -> None:
    """Nothing in it is decoded, encoded or resolved."""
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.raw_path)
        return web.Response()

    async with answering(answer) as url:
        result = await client.post(f"{url}{path}?key=%2f+x", "generated", "{}")
        assert result.outcome is PostOutcome.DELIVERED
        result = await client.post(f"{url}{path}/", "validated", "{}")
    assert asked == [f"{path}?key=%2f+x/generated", f"{path}/validated"]


async def test_nobody_listening_is_to_be_tried_again(client: CallbackClient) -> None:
    """A network error is an outcome, not an exception, and does not repeat the URL."""
    async with receiving() as gone:
        url = gone.url
    result = await client.post(url, "generated", "{}")
    assert result == PostResult(PostOutcome.RETRY, "no answer (ClientConnectorError)")


async def test_a_receiver_that_hangs_is_to_be_tried_again(receiver: Receiver) -> None:
    """The whole attempt has a limit."""
    receiver.gate.clear()
    async with CallbackClient(request_timeout_s=0.05) as client:
        result = await client.post(receiver.url, "generated", "{}")
    assert result == PostResult(PostOutcome.RETRY, "no answer within 0.05 s")


async def test_tls_trouble_is_to_be_tried_again(tmp_path: Path) -> None:
    """A certificate that has expired or that nobody vouches for, and a receiver that speaks no TLS."""
    cert, key = make_certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(cert))
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(cert, key)

    async def post(url: str, context: ssl.SSLContext) -> PostResult:
        connector = partial(aiohttp.TCPConnector, ssl=context)
        async with CallbackClient(connector=connector) as client:
            return await client.post(url, "generated", "{}")

    async with receiving(tls=serving) as receiver:
        assert await post(receiver.url, trusting) == PostResult(PostOutcome.DELIVERED)
        stranger = await post(receiver.url, ssl.create_default_context())
        assert stranger.outcome is PostOutcome.RETRY
        assert "its certificate is not accepted: self-signed certificate" in stranger.reason
        elsewhere = await post(receiver.url.replace("127.0.0.1", "localhost"), trusting)
        assert elsewhere.outcome is PostOutcome.RETRY
        assert "Hostname mismatch" in elsewhere.reason
        serving.load_cert_chain(*make_certificate(tmp_path, days_left=-1))
        expired = await post(receiver.url, trusting)
        why = "no answer (its certificate is not accepted: certificate has expired)"
        assert expired == PostResult(PostOutcome.RETRY, why)
    async with receiving() as plain:
        result = await post(plain.url.replace("http:", "https:"), trusting)
    assert result == PostResult(
        PostOutcome.RETRY, "no answer (no TLS with it: wrong version number)"
    )


@pytest.mark.parametrize("url", ["http://a..b/x", "http://[::1", "http://host:99999/"])
async def test_a_url_that_is_none_is_refused(client: CallbackClient, url: str) -> None:
    """Trying again would not mend it."""
    result = await client.post(url, "generated", "{}")
    assert result == PostResult(PostOutcome.REFUSED, "the callback URL is none")


async def test_an_address_that_is_not_allowed_is_told_from_a_refusal(receiver: Receiver) -> None:
    """Nothing was sent, so nothing was refused."""

    def refuse(_: object) -> object:
        raise CallbackForbidden("127.0.0.1")

    def connector() -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(socket_factory=refuse)  # type: ignore[arg-type]

    async with CallbackClient(connector=connector) as client:
        result = await client.post(receiver.url, "generated", "{}")
    assert result == PostResult(PostOutcome.FORBIDDEN, str(CallbackForbidden("127.0.0.1")))
    assert receiver.received == []


async def test_the_reason_says_what_to_mend(client: CallbackClient) -> None:
    """The status, a hint for the common ones, and the receiver's own words."""
    async with answering(404) as url:
        result = await client.post(url, "generated", "{}")
    assert result.reason == "HTTP 404, nothing is there: check the path of the callback URL"
    async with answering(422, "no such round") as url:
        result = await client.post(url, "generated", "{}")
    assert result.reason == "HTTP 422, it does not take this batch: 'no such round'"


async def test_the_reason_keeps_secrets(client: CallbackClient) -> None:
    """Words that repeat the path or the query are left out."""
    for secret in ("/hook-5678", "?key=5678"):
        async with answering(400, f"POST {secret.strip('?')}: not you") as url:
            result = await client.post(url + secret, "generated", "{}")
        assert result.reason == "HTTP 400, it does not take this batch"


async def test_the_pause_that_the_receiver_asks_for(client: CallbackClient) -> None:
    """Also where it gives a date."""
    for asked in ("120", formatdate(time.time() + 120.5, usegmt=True)):
        async with answering(429, "slow down", {"Retry-After": asked}) as url:
            result = await client.post(url, "generated", "{}")
        assert (result.outcome, result.reason) == (PostOutcome.RETRY, "HTTP 429: 'slow down'")
        assert result.retry_after_s == pytest.approx(120, abs=2)


async def test_connections_are_kept(client: CallbackClient) -> None:
    """What goes to one receiver goes over one connection."""
    peers = set()

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.Response()

    async with answering(answer) as url:
        for _ in range(10):
            await client.post(url, "generated", "{}")
    assert len(peers) == 1


def test_what_json_cannot_hold_is_not_encoded() -> None:
    """Receivers refuse NaN in ways of their own."""
    assert encode_body({"nonces": [1, 2]}) == '{"nonces":[1,2]}'
    with pytest.raises(ValueError, match="JSON compliant"):
        encode_body({"dist": [float("nan")]})


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


def test_pauses_grow() -> None:
    """From the first to the longest, shortened by up to half."""
    for attempts, longest_s in ((0, 0.25), (1, 0.5), (5, 8.0), (7, 30.0), (100_000, 30.0)):
        pauses = [Backoff(0.25, 30.0).pause_s(attempts) for _ in range(50)]
        assert longest_s / 2 <= min(pauses) < max(pauses) <= longest_s


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:hunter2@host/path?key=1", "https://host"),
        ("http://Host:8080/", "http://host:8080"),
        ("http://[::1]:9/x", "http://[::1]:9"),
    ],
)
def test_without_secrets(url: str, shown: str) -> None:
    """Scheme, host and port."""
    assert without_secrets(url) == shown


@pytest.mark.parametrize(
    "url", ["", "host:80/x", "ftp://user:hunter2@host/x", "http://", "http://[::1/x", "/x"]
)
def test_without_secrets_refuses_what_is_no_url(url: str) -> None:
    """The error names the field and what is allowed, not the password."""
    with pytest.raises(InvalidRound, match=r"callback_url is .*http or https") as caught:
        without_secrets(url)
    assert "hunter2" not in str(caught.value)
