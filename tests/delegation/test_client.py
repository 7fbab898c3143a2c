"""The client of a big node, with big nodes of both kinds, and with what is none."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pocqueue.delegation.client import DelegationClient
from pocqueue.errors import DelegationError, SettingsError
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.store import Keys
from tests.support.artifacts import artifact_round
from tests.support.callback_receiver import answering
from tests.support.delegation_server import BODY, TOKEN, Work, live_gpus
from tests.support.factories import FINGERPRINT
from tests.support.fixtures import SettingsFactory
from tests.support.node import batch, big_node, legacy_big_node, make_round
from tests.support.ports import free_port


async def refusal(url: str, token: str = TOKEN, **options: Any) -> DelegationError:
    """Return why a session cannot be started."""
    with pytest.raises(DelegationError) as caught:
        async with DelegationClient(url, token, **options) as client:
            await client.start(make_round().start_body())
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert token not in sentence
    return caught.value


async def test_a_legacy_big_node() -> None:
    """Every field of docs/wire.md; the token goes into the query because it is read there only."""
    async with legacy_big_node() as node, DelegationClient(node.url + "/", TOKEN) as client:
        node_round = make_round(params={"dim": 2048}, node_id=1, node_count=3)
        started = await client.start(node_round.start_body())
        assert (started.session_id, started.gpu_count) == ("old-1", 3)
        assert started.message == "Session created with 3 GPU groups"
        assert started.model_fingerprint == ""
        _, path, _, body = node.requests[0]
        assert path == "/api/v1/delegation/start"
        assert len(body.pop("request_id")) == 36
        assert body == BODY | {
            "node_id": 1,
            "node_count": 3,
            "params": {"dim": 2048, "seq_len": 8},
            "callback_url": None,
            "auth_token": TOKEN,
        }
        node.pages.append([batch(0, 1)])
        page = await client.batches("old-1", "", 0.0)
        assert [found.proofs.nonces for found in page.batches] == [[0, 1]]
        assert (page.active, page.status, page.cursor) == (True, "generating", None)
        asked = [query.get("auth_token") for _, path, query, _ in node.requests if "old-1" in path]
        assert asked == [None, TOKEN]
        await client.batches("old-1", "", 0.0)
        assert node.polls == 2
        assert len(node.requests) == 4
        await client.stop("old-1")
        assert node.stopped == ["old-1"]
        assert not (await client.batches("old-1", "", 0.0)).active


async def test_our_big_node(backend: Backend, settings_for: SettingsFactory) -> None:
    """A page can be read twice from its cursor, and the model is told; nothing is in a query."""
    live_gpus(backend, 2)
    with big_node(settings_for()) as url:
        async with DelegationClient(url, TOKEN) as client:
            started = await client.start(make_round().start_body())
            assert started.gpu_count == 2
            assert (started.model_fingerprint, started.model_dtype) == (FINGERPRINT, "float32")
            assert started.model_runtime == "twin"
            work = Work(backend, started.session_id)
            work.batch()
            first = await client.batches(started.session_id, "", 5.0)
            assert first.cursor is not None
            work.batch()
            for _ in range(2):
                page = await client.batches(started.session_id, first.cursor, 5.0)
                assert [found.proofs.nonces for found in page.batches] == [[10, 11]]
            await client.stop(started.session_id)
            assert page.cursor is not None
            last = await client.batches(started.session_id, page.cursor, 5.0)
            assert (last.batches, last.active, last.status) == ([], False, "stopped")
            with pytest.raises(DelegationError, match="Session nobody not found") as caught:
                await client.batches("nobody", "", 0.0)
            assert (caught.value.status, caught.value.is_final) == (404, True)
        async with DelegationClient(url, "not-the-token-of-it") as client:
            with pytest.raises(DelegationError, match="Invalid auth token"):
                await client.batches(started.session_id, "", 0.0)
            # Asked once: not again with the token in the query, where it ends up in logs.
            assert backend.client.hget(Keys.METRICS, "auth_failures") == "1"


async def test_a_big_node_that_knows_no_artifacts() -> None:
    """It would search for distances: its session is stopped, and one sentence says what to do."""
    body = artifact_round().start_body()
    assert (body["proof"], body["scheme"], body["k_dim"]) == ("artifact", "artifact", 4)
    async with legacy_big_node() as node:
        async with DelegationClient(node.url, TOKEN, scheme="artifact") as client:
            with pytest.raises(DelegationError) as caught:
                await client.start(body)
        assert str(caught.value) == (
            f"The big node at {node.url} does not know proofs of the kind 'artifact' and would give others. "
            "Have its operator bring it up to date, or name another one in DELEGATION_URL"
        )
        assert caught.value.is_final
        assert (node.started, node.stopped) == (1, ["old-1"])


@pytest.mark.parametrize(
    ("detail", "is_told_apart"),
    [
        ("r_target is missing.", True),
        ([{"loc": ["body", "r_target"], "msg": "Field required", "input": None}], True),
        ("params.seq_len is 0; allowed: a whole number.", False),
    ],
)
async def test_a_big_node_that_misses_a_target(detail: Any, is_told_apart: bool) -> None:
    """As no other proof has one; other refusals stay what they are."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"detail": detail}, status=422)

    async with answering(answer) as url:
        async with DelegationClient(url, TOKEN, scheme="artifact") as client:
            with pytest.raises(DelegationError) as caught:
                await client.start(artifact_round().start_body())
        assert ("does not know proofs" in str(caught.value)) is is_told_apart
        assert (caught.value.is_final, caught.value.status) == (True, 422)
        error = await refusal(url)
        assert "does not know proofs" not in str(error)


async def test_our_big_node_knows_artifacts(
    backend: Backend, settings_for: SettingsFactory
) -> None:
    """The session is of them, and so are its pages."""
    live_gpus(backend)
    with big_node(settings_for()) as url:
        async with DelegationClient(url, TOKEN, scheme="artifact") as client:
            started = await client.start(artifact_round().start_body())
            assert started.proof == "artifact"
            assert backend.store.status(started.session_id).spec.proof == artifact_round().proof


async def test_what_is_not_there() -> None:
    """Nobody listens, no such host: the cause in the system's words, and what to check."""
    url = f"http://127.0.0.1:{free_port()}"
    error = await refusal(url)
    assert str(error) == (
        f"Connection refused. Check that the delegation service runs at {url}, that DELEGATION_URL is "
        "right and that the port is open between the nodes."
    )
    assert (error.is_final, error.status) == (False, None)
    error = await refusal("http://no-such-host.invalid:9090")
    assert str(error).split(". Check")[0] in {
        "Name or service not known",
        "Temporary failure in name resolution",
        "No address associated with hostname",
    }


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("http://[", TOKEN),
        ("http://" + "a" * 64 + ".invalid", TOKEN),
        ("http://host", "gehäim-und-lang-genug"),
        ("http://\u2603.\u0080", TOKEN),
    ],
)
async def test_what_cannot_be_asked(url: str, token: str) -> None:
    """A URL or token that HTTP has no words for ends in a sentence, not in a traceback."""
    assert "Check" in str(await refusal(url, token))


async def test_what_speaks_something_else() -> None:
    """TLS to a plain port, and a server that hangs up."""
    async with legacy_big_node() as node:
        error = await refusal(node.url.replace("http:", "https:"))
        assert str(error).startswith("TLS failed (")

    async def hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with answering(hang_up) as url:
        error = await refusal(url)
    assert str(error).startswith("The connection was closed before the answer was complete. Check")


async def test_an_answer_to_start_that_breaks_off() -> None:
    """It is asked for again, by the same name, so that there is one session."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((await request.json())["request_id"])
        if len(asked) == 1:
            assert request.transport is not None
            request.transport.close()
        return web.json_response({"session_id": "s", "gpu_count": 1})

    async with answering(answer) as url, DelegationClient(url, TOKEN) as client:
        assert (await client.start(make_round().start_body())).session_id == "s"
    assert len(asked) == 2
    assert len(set(asked)) == 1


async def test_what_does_not_answer() -> None:
    """Neither by silence nor a byte at a time is a session held up."""
    ended = asyncio.Event()

    async def silent(_: web.Request) -> web.Response:
        await ended.wait()
        return web.Response()

    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while not ended.is_set():
                await response.write(b" ")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await ended.wait()
        return response

    for answer in (silent, trickle):
        async with answering(answer) as url:
            error = await refusal(url, timeout_s=0.1, start_wait_s=0.1)
            # Or already the connection, on a busy machine.
            assert re.match(r"No answer within 0\.[12] s\. Check", str(error))
            ended.set()
        ended.clear()


@pytest.mark.parametrize(
    ("status", "content", "said", "is_final"),
    [
        (200, "<html>hello</html>", "answers what no delegation service does (the reply: ", False),
        (
            200,
            '{"session_id": "a b"}',
            "answers what no delegation service does (session_id: ",
            False,
        ),
        (200, '{"session_id": ""}', "answers what no delegation service does (session_id: ", False),
        (302, "", "answers with a redirect (HTTP 302)", True),
        (401, '{"detail": "Invalid auth token"}', "Invalid auth token", True),
        (
            404,
            '{"detail": "Not Found"}',
            "is no delegation service (HTTP 404: Not Found). Check",
            True,
        ),
        (404, "<html>", "HTTP 404 from the big node", True),
        (409, '{"detail": "Model conflict"}', "Model conflict", True),
        (
            422,
            '{"detail": [{"loc": ["body", "node_id"], "msg": "Too small", "input": "secret"}]}',
            "HTTP 422 from the big node (body.node_id: Too small)",
            True,
        ),
        (422, '{"detail": []}', "HTTP 422 from the big node", True),
        (
            429,
            '{"detail": "Maximum sessions (2) reached."}',
            "Maximum sessions (2) reached.",
            False,
        ),
        (500, "[]", "HTTP 500 from the big node", False),
        (503, f'{{"detail": "two\\nlines, {TOKEN}"}}', "two lines, …", False),
    ],
)
async def test_refusals(status: int, content: str, said: str, is_final: bool) -> None:
    """Each status has its sentence, and says whether it is worth to ask again."""

    async def answer(_: web.Request) -> web.Response:
        headers = {"Location": "http://127.0.0.1:9/"} if status == 302 else {}
        return web.Response(text=content, status=status, headers=headers)

    async with answering(answer) as url:
        error = await refusal(url)
    assert said in str(error)
    assert error.is_final is is_final
    assert error.status == (None if status == 200 else status)


@pytest.mark.parametrize(
    "page",
    [
        {"batches": [], "status": "generating"},
        {"batches": [{"nonces": [1]}], "session_active": True},
        {"batches": [batch(1) | {"nonces": ["one"]}], "session_active": True},
        {"batches": [], "session_active": True, "cursor": "x" * 300},
    ],
)
async def test_pages_that_are_none(page: dict[str, Any]) -> None:
    """A reply that cannot be read is asked for again, as a proxy may have sent it."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(page)

    async with answering(answer) as url, DelegationClient(url, TOKEN) as client:
        with pytest.raises(
            DelegationError, match="answers what no delegation service does"
        ) as caught:
            await client.batches("s", "", 0.0)
    assert not caught.value.is_final


async def test_a_reply_has_a_limit() -> None:
    """Nobody fills the small node's memory; the session's id stays in its part of the path."""
    paths: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        paths.append(request.raw_path.partition("?")[0])
        return web.Response(body=b" " * 20_000)

    async with (
        answering(answer) as url,
        DelegationClient(url, TOKEN, max_reply_bytes=10_000) as client,
    ):
        with pytest.raises(DelegationError, match="more than"):
            await client.batches("../stop?x", "", 0.0)
    assert paths == ["/api/v1/delegation/batches/..%2Fstop%3Fx"]


async def test_a_page_has_a_bound() -> None:
    """More nonces than that are refused for good, however they are cut into batches."""
    async with (
        legacy_big_node() as node,
        DelegationClient(node.url, TOKEN, max_page_nonces=5) as client,
    ):
        node.pages.extend([[batch(0, 1), batch(2, 3, 4)], [batch(0, 1), batch(2, 3, 4, 5)]])
        assert len((await client.batches("old-1", "", 0.0)).batches) == 2
        with pytest.raises(DelegationError, match="6 nonces at once; allowed are 5") as caught:
            await client.batches("old-1", "", 0.0)
        assert caught.value.is_final


@pytest.fixture
def some_file(tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    path.write_text("no certificate")
    return path


async def test_an_authority_that_cannot_be_read(some_file: Path) -> None:
    """The setting is named."""
    for path in (some_file, some_file.with_name("missing")):
        with pytest.raises(SettingsError, match="DELEGATION_TLS_CA is"):
            DelegationClient("https://host", TOKEN, ca=path)
