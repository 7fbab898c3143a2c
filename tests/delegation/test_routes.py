"""The delegation's routes over HTTP: what clients of docs/wire.md send and read, every state, every error."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pocqueue.delegation.app import create_app
from pocqueue.delegation.customers import TokensFile
from pocqueue.errors import SettingsError
from pocqueue.poc.artifact.scheme import Artifact
from pocqueue.poc.distance.scheme import Distance
from pocqueue.poc.proofs import Proofs
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.records import BatchCommit, Outcome
from pocqueue.rounds.spec import RoundState
from tests.support.artifacts import artifact_of
from tests.support.delegation_server import (
    BODY,
    TOKEN,
    Client,
    Work,
    live_gpus,
    make_delegation,
    nonces_of,
    serving,
)
from tests.support.factories import FINGERPRINT, OTHER_FINGERPRINT, make_gpu, make_info
from tests.support.fixtures import SettingsFactory
from tests.support.node import batch
from tests.support.rounds import assign, pass_deadline
from tests.support.waiting import until


@pytest.fixture
async def client(backend: Backend, settings_for: SettingsFactory) -> AsyncIterator[Client]:
    """A client of a service with two live GPUs."""
    live_gpus(backend, 2)
    async with serving(settings_for()) as client:
        yield client


async def refusal(reply: httpx.Response) -> tuple[int, str]:
    """Return status and sentence of an answer that is an error."""
    [(key, sentence)] = reply.json().items()
    assert key == "detail"
    assert "\n" not in sentence
    assert TOKEN not in sentence
    return reply.status_code, sentence


# Sessions


async def test_a_session_as_the_wire_has_it(client: Client, backend: Backend) -> None:
    """Start, fetch twice, stop, fetch the rest: every field of docs/wire.md."""
    reply = await client.post("start", BODY)
    started = reply.json()
    session_id = started["session_id"]
    assert started == {
        "session_id": session_id,
        "status": "initializing",
        "message": "Session created with 2 GPU groups",
        "warning": "",
        "gpu_count": 2,
        "proof": "distance",
        "model": "twin",
        "model_fingerprint": FINGERPRINT,
        "model_dtype": make_info().dtype,
        "model_runtime": make_info().runtime,
        "expires_in": 330.0,
    }
    answer = await client.batches(session_id)
    assert answer == {
        "session_id": session_id,
        "batches": [],
        "session_active": True,
        "status": "initializing",
        "total_batches_generated": 0,
        "cursor": "0-0",
    }
    work = Work(backend, session_id)
    work.batch()
    work.batch(num_valid=0)
    answer = await client.batches(session_id)
    assert answer["batches"] == [batch(0, 1)]
    assert (answer["session_active"], answer["status"]) == (True, "generating")
    assert answer["total_batches_generated"] == 1
    work.batch()
    assert await client.stop(session_id) == {
        "session_id": session_id,
        "status": "stopped",
        "message": "Session stopped successfully",
        "total_batches_generated": 2,
    }
    nonces, answer = await client.drain(session_id)
    assert nonces == [20, 21]
    assert (answer["session_active"], answer["status"]) == (False, "stopped")
    assert nonces_of(await client.batches(session_id)) == []


async def test_the_round_is_what_was_asked_for(client: Client, backend: Backend) -> None:
    """Every field reaches the store, and the window is the service's."""
    session_id = await client.start(
        node_id=3,
        node_count=7,
        batch_size=100,
        fraud_threshold=1e-7,
        r_target=1.4013564660458173,
        callback_url="https://example.com/v1/poc-batches",
        params={"seq_len": 16, "dim": 16, "rope_theta": 1e4, "use_scaled_rope": False},
        unknown="ignored",
    )
    spec = backend.store.status(session_id).spec
    assert (spec.node_id, spec.node_count, spec.batch_size, spec.seq_len) == (3, 7, 100, 16)
    assert spec.proof == Distance(r_target=1.4013564660458173, fraud_threshold=1e-7)
    assert spec.callback_url == "https://example.com/v1/poc-batches"
    assert (spec.customer, spec.share, spec.window_s) == ("main", 1.0, 330.0)
    assert (spec.model, spec.model_dtype, spec.model_runtime) == ("twin", "float32", "twin")
    assert spec.max_nonces is None


ARTIFACTS = {name: value for name, value in BODY.items() if name != "r_target"}


@pytest.mark.parametrize("named", [{"proof": "artifact"}, {"scheme": "artifact"}])
async def test_a_session_of_artifacts(
    client: Client, backend: Backend, named: dict[str, str]
) -> None:
    """By either name, its parameters flat; pages have a vector for each nonce."""
    reply = await client.post("start", ARTIFACTS | named | {"k_dim": 4, "stronger_rng": True})
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert answer["proof"] == "artifact"
    spec = backend.store.status(answer["session_id"]).spec
    assert spec.proof == Artifact(k_dim=4, stronger_rng=True, fraud_threshold=0.01)
    out = assign(backend.store, answer["session_id"], 10)
    vectors = [artifact_of(nonce) for nonce in range(10)]
    batch = BatchCommit(answer["session_id"], out.range_id, 0, 10, Proofs([*range(10)], vectors))
    assert backend.store.commit_batch(batch).outcome is Outcome.COMMITTED
    [page] = (await client.batches(answer["session_id"]))["batches"]
    assert page == {
        "public_key": "key-1",
        "block_hash": "block-1",
        "block_height": 7,
        "nonces": [*range(10)],
        "vectors": vectors,
        "node_id": 0,
        "scheme": "artifact",
    }


async def test_which_proof_a_session_has(client: Client, backend: Backend) -> None:
    """Distances unless it says otherwise; artifacts have 1024 positions unless it says otherwise."""
    for named in ({}, {"proof": "distance"}, {"proof": None, "scheme": "distance"}):
        reply = await client.post("start", BODY | named)
        assert reply.json()["proof"] == "distance"
        spec = backend.store.status(reply.json()["session_id"]).spec
        assert spec.proof == Distance(r_target=1.0, fraud_threshold=0.01)
    reply = await client.post("start", ARTIFACTS | {"proof": "artifact", "params": {}})
    assert backend.store.status(reply.json()["session_id"]).spec.seq_len == 1024
    for bad, said in (
        (BODY | {"proof": "chance"}, "scheme is 'chance'; allowed: artifact or distance"),
        (BODY | {"proof": 7}, "scheme is 7; allowed: artifact or distance"),
        (
            BODY | {"proof": "artifact", "scheme": "distance"},
            "proof is 'artifact'; allowed: the same as scheme, 'distance', or one of the two alone.",
        ),
        (ARTIFACTS, "r_target is missing."),
        (ARTIFACTS | {"proof": "artifact", "k_dim": 65}, "k_dim is 65; allowed: "),
        *(
            (
                ARTIFACTS | {"proof": "artifact", "params": {"seq_len": 256, name: value}},
                f"params.{name} is {value!r}; allowed: artifacts of the prefill scheme alone",
            )
            for name, value in (("scheme", "decode"), ("k_points_steps", 257))
        ),
    ):
        reply = await client.post("start", bad)
        assert reply.status_code == 422
        assert reply.json()["detail"].startswith(said), reply.text


async def test_wishes_of_older_clients_are_taken(client: Client, backend: Backend) -> None:
    """With what became of them in the answer."""
    reply = await client.post("start", BODY | {"r_target": 10, "batch_size": 5000})
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert (
        "every nonce is valid. batch_size 5000 is above 4096, so 10 is taken." in answer["warning"]
    )
    assert answer["message"].endswith(answer["warning"])
    spec = backend.store.status(answer["session_id"]).spec
    assert (spec.batch_size, spec.proof) == (10, Distance(r_target=10, fraud_threshold=0.01))


async def test_a_pass_that_no_gpu_holds_is_refused(client: Client, backend: Backend) -> None:
    """422 with what they hold; nothing is started."""
    for queue in ("gpu0", "gpu1"):
        backend.pool.leave(queue, make_gpu(queue).worker)
        backend.pool.beat(make_gpu(queue, info=make_info(max_pass_tokens=20_000)))
    body = BODY | {"batch_size": 4096, "params": {"seq_len": 1000}}
    status, sentence = await refusal(await client.post("start", body))
    assert status == 422
    allowed = "at most 20 with seq_len 1000, as one pass of model twin holds 20000 tokens."
    assert sentence == f"batch_size is 4096; allowed: {allowed}"
    assert backend.store.list_ids() == []


@pytest.mark.parametrize("params", [{}, None, "left out"])
async def test_params_may_be_left_out(client: Client, backend: Backend, params: Any) -> None:
    """The only deployed model, and 256 positions."""
    body = {k: v for k, v in BODY.items() if k != "params"}
    if params != "left out":
        body["params"] = params
    reply = await client.post("start", body)
    assert reply.status_code == 200, reply.text
    assert backend.store.status(reply.json()["session_id"]).spec.seq_len == 256


@pytest.mark.parametrize("prefix", ["", "/api/v1/delegation"])
async def test_every_route_is_there_twice(client: Client, prefix: str) -> None:
    """With the prefix and bare; the token in body and query, as legacy clients send it."""
    http, token = client.http, {"auth_token": TOKEN}
    reply = await http.post(f"{prefix}/start", json=BODY | token)
    assert reply.status_code == 200
    session_id = reply.json()["session_id"]
    reply = await http.get(f"{prefix}/batches/{session_id}", params=token)
    assert reply.json()["session_active"] is True
    reply = await http.get(f"{prefix}/status", params=token)
    assert reply.json()["active_sessions"] == 1
    reply = await http.post(f"{prefix}/stop", json={"session_id": session_id} | token)
    assert reply.json()["status"] == "stopped"
    assert (await http.get(f"{prefix}/health")).json() == {"status": "ok"}


async def test_a_body_is_json_whatever_it_is_called(client: Client) -> None:
    """`curl -d` sends JSON as a form, and some send no type at all."""
    content = json.dumps(BODY | {"auth_token": TOKEN}).encode()
    for headers in (
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "text/plain"},
        {},
    ):
        reply = await client.http.post("/start", content=content, headers=headers)
        assert reply.status_code == 200, reply.text


async def test_stopping_twice_is_fine(client: Client) -> None:
    """The second answer is the first one."""
    session_id = await client.start()
    assert await client.stop(session_id) == await client.stop(session_id)


async def test_a_request_may_be_made_again(client: Client, tokens: TokensFile) -> None:
    """With an id of its own, as after a lost answer, it is the same session, of this customer."""
    named = BODY | {"request_id": "0e8a4c1f-55a1-4a5c-8a56-0f7cf9e0c3d2"}
    first, again = (await client.post("start", named), await client.post("start", named))
    assert again.status_code == 200
    assert again.json() == first.json()
    status = (await client.get("status")).json()
    assert list(status["sessions"]) == [first.json()["session_id"]]
    other = Client(client.http, tokens.add("other"))
    theirs = await other.post("start", named)
    assert theirs.json()["session_id"] != first.json()["session_id"]
    bad = await client.post("start", BODY | {"request_id": "again"})
    assert (await refusal(bad))[0] == 422


async def test_the_same_start_gets_the_running_session(
    client: Client, backend: Backend, tokens: TokensFile
) -> None:
    """However often, at the same time too: a client that retries makes no second one on the same nonces."""
    replies = await asyncio.gather(*(client.post("start", BODY) for _ in range(10)))
    [session_id] = {reply.json()["session_id"] for reply in replies}
    assert backend.store.active_ids() == [session_id]
    others = [await client.start(**change) for change in ({"node_id": 1, "node_count": 2},)]
    others.append(await client.start(block_hash="block-2"))
    others.append(await client.start(public_key="key-2"))
    others.append(await client.start(r_target=1.5))
    others.append(await client.start(request_id="0e8a4c1f-55a1-4a5c-8a56-0f7cf9e0c3d2"))
    others.append(await Client(client.http, tokens.add("other")).start())
    assert len({session_id, *others}) == 7
    assert await client.start() == session_id
    # What is over is not run on.
    await client.stop(session_id)
    second = await client.start()
    pass_deadline(backend, second)
    third = await client.start()
    assert await client.start() == third
    assert len({session_id, second, third}) == 3


async def test_a_session_expires_by_itself(client: Client, backend: Backend) -> None:
    """Without a scheduler: the last batches come with the word that it is over, and its place is free."""
    session_id = await client.start()
    work = Work(backend, session_id)
    work.batch()
    pass_deadline(backend, session_id)
    answer = await client.batches(session_id)
    assert (answer["session_active"], answer["status"]) == (False, "expired")
    assert nonces_of(answer) == work.nonces
    # Written down: no clock that is set back brings it to life again.
    assert backend.client.hget(f"pocqueue:2:{{{session_id}}}:round", "state") == "expired"
    assert (await client.stop(session_id))["status"] == "expired"


async def test_a_session_that_failed_says_why(client: Client, backend: Backend) -> None:
    """Its status is error."""
    session_id = await client.start()
    backend.store.close(session_id, RoundState.FAILED, 'GPUs failed on "it"')
    answer = await client.batches(session_id)
    assert answer["status"] == "error"
    assert answer["reason"] == 'GPUs failed on "it"'
    assert (await client.status())["sessions"][session_id]["status"] == "error"


# Batches


async def test_the_last_reply_has_the_last_batch(client: Client, backend: Backend) -> None:
    """A session that is over is called active until all of it is handed over."""
    session_id = await client.start()
    work = Work(backend, session_id)
    for _ in range(5):
        work.batch()
    await client.stop(session_id)
    answers = [await client.batches(session_id, limit=2) for _ in range(3)]
    assert [a["session_active"] for a in answers] == [True, True, False]
    assert [nonce for a in answers for nonce in nonces_of(a)] == work.nonces


async def test_a_cursor_reads_again_from_any_point(client: Client, backend: Backend) -> None:
    """The same cursor gives the same batches; the drain of others is not moved by it."""
    session_id = await client.start()
    work = Work(backend, session_id)
    for _ in range(4):
        work.batch()
    first = await client.batches(session_id, cursor="", limit=3)
    assert first == await client.batches(session_id, cursor="0-0", limit=3)
    rest = await client.batches(session_id, cursor=first["cursor"])
    assert nonces_of(first) + nonces_of(rest) == work.nonces
    empty = await client.batches(session_id, cursor=rest["cursor"])
    assert (empty["batches"], empty["cursor"]) == ([], rest["cursor"])
    drained = await client.batches(session_id)
    assert nonces_of(drained) == work.nonces


async def test_texts_of_any_kind_survive(client: Client, backend: Backend) -> None:
    """What the reply is put together with may be in a key or a hash."""
    texts = {"public_key": 'k";|\\{}ключ', "block_hash": "},{;|"}
    session_id = await client.start(**texts)
    work = Work(backend, session_id)
    work.batch()
    work.batch()
    answer = await client.batches(session_id)
    assert nonces_of(answer) == work.nonces
    assert all(batch | texts == batch for batch in answer["batches"])


async def test_a_wait_ends_with_the_first_batch(client: Client, backend: Backend) -> None:
    """It answers as soon as there is something, not when its time is up."""
    session_id = await client.start()
    work = Work(backend, session_id)
    waiting = asyncio.create_task(client.batches(session_id, cursor="", wait=30))
    await _until_somebody_waits(backend)
    work.batch()
    async with asyncio.timeout(25):
        assert nonces_of(await waiting) == work.nonces


@pytest.mark.parametrize("end", ["stop", "deadline"])
async def test_a_wait_ends_with_the_session(client: Client, backend: Backend, end: str) -> None:
    """Whoever waits hears of a stop and of the deadline."""
    session_id = await client.start()
    waiting = asyncio.create_task(client.batches(session_id, wait=30))
    await _until_somebody_waits(backend)
    if end == "stop":
        await client.stop(session_id)
    else:
        pass_deadline(backend, session_id)
    async with asyncio.timeout(25):
        assert (await waiting)["session_active"] is False


async def test_a_wait_without_news_ends_in_time(client: Client) -> None:
    """An empty reply."""
    session_id = await client.start()
    answer = await client.batches(session_id, wait=0.05)
    assert (answer["batches"], answer["session_active"]) == ([], True)


async def _until_somebody_waits(backend: Backend) -> None:
    await until(lambda: int(backend.client.info("clients")["blocked_clients"]) > 0)


# Models


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"model": "other"}, "'other'"),
        ({"dim": 2048, "n_layers": 16}, "dim 2048, n_layers 16"),
        ({"model": "twin", "vocab_size": 33}, "'twin', vocab_size 33"),
    ],
)
async def test_another_model_is_refused(
    client: Client, backend: Backend, params: dict[str, Any], said: str
) -> None:
    """409, with what was asked for and what is deployed; nothing is started."""
    status, sentence = await refusal(await client.post("start", BODY | {"params": params}))
    assert status == 409
    assert said in sentence
    assert "twin (0123456789ab@float32@twin)" in sentence
    assert backend.store.list_ids() == []


async def test_a_setting_takes_another_model_with_a_warning(
    backend: Backend, settings_for: SettingsFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """In the reply's message and in the log."""
    live_gpus(backend)
    async with serving(settings_for(), make_delegation(any_model=True)) as client:
        reply = await client.post("start", BODY | {"params": {"dim": 2048}})
    message = reply.json()["message"]
    assert message.startswith(
        "Session created with 1 GPU groups. Model conflict: asked for dim 2048"
    )
    assert "Model conflict: asked for dim 2048" in caplog.text


async def test_gpus_are_those_of_the_model(backend: Backend, settings_for: SettingsFactory) -> None:
    """Neither draining ones nor those with another model count."""
    live_gpus(backend, 3)
    backend.pool.beat(_gpu_of("other", "gpu7"))
    backend.pool.beat(_gpu_of("twin", "gpu8", draining=True))
    async with serving(settings_for()) as client:
        started = (await client.post("start", BODY | {"params": {"model": "twin"}})).json()
        assert started["gpu_count"] == 3
        other = (await client.post("start", BODY | {"params": {"model": "other"}})).json()
        assert (other["gpu_count"], other["model"]) == (1, "other")
        status, sentence = await refusal(await client.post("start", BODY))
    assert status == 409
    assert "params.model" in sentence
    assert "other (fedcba987654" in sentence


def _gpu_of(model: str, queue: str, **changes: Any) -> Any:
    digits = FINGERPRINT if model == "twin" else OTHER_FINGERPRINT
    info = make_info(model=model, fingerprint=digits)
    return make_gpu(queue, info=info, ttl_ms=600_000, **changes)


async def test_without_a_gpu_nothing_starts(
    backend: Backend, settings_for: SettingsFactory
) -> None:
    """503, to be asked again."""
    async with serving(settings_for()) as client:
        reply = await client.post("start", BODY)
    status, sentence = await refusal(reply)
    assert status == 503
    assert sentence.startswith("No live GPU")
    assert int(reply.headers["Retry-After"]) >= 1


# Bad input


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"node_id": -1}, "node_id is -1; allowed: "),
        ({"node_id": 1}, "node_id is 1; allowed: a whole number from 0 to node_count - 1 = 0."),
        ({"node_count": 0}, "node_count is 0; allowed: "),
        ({"r_target": 0}, "r_target is 0; allowed: a number above 0."),
        ({"block_hash": ""}, "block_hash is ''; allowed: "),
        ({"block_hash": "two\nlines"}, "block_hash is 'two\\nlines'; allowed: "),
        ({"block_height": 2**63}, "block_height is 9223372036854775808; allowed: "),
        ({"public_key": "\ud800"}, "public_key is '\\ud800'; allowed: "),
        ({"batch_size": 0}, "batch_size is 0; allowed: a whole number of at least 1."),
        ({"fraud_threshold": 1}, "fraud_threshold is 1; allowed: "),
        ({"params": {"seq_len": 0}}, "params.seq_len is 0; allowed: "),
        ({"params": {"seq_len": 1025}}, "params.seq_len is 1025; allowed: "),
        ({"params": {"dim": "wide"}}, "params.dim is 'wide'; allowed: "),
        ({"params": 5}, "params is 5; allowed: "),
        ({"callback_url": "ftp://host/"}, "callback_url is 'ftp://host/'; allowed: "),
        ({"callback_url": "http://127.0.0.1/x"}, "callback_url is 'http://127.0.0.1'; allowed: "),
        ({"callback_url": "http://[::1]:9/"}, "allowed: "),
        ({"callback_url": "http://169.254.169.254/"}, "allowed: "),
    ],
)
async def test_a_bad_field_is_named(
    client: Client, backend: Backend, changes: dict[str, Any], said: str
) -> None:
    """422, with field, value and what is allowed; nothing is started."""
    content = json.dumps(BODY | changes)
    reply = await client.http.post("/start", content=content, headers=client.headers)
    status, sentence = await refusal(reply)
    assert status == 422
    assert said in sentence
    assert backend.store.list_ids() == []


@pytest.mark.parametrize("field", ["node_id", "node_count", "block_hash", "r_target"])
async def test_a_missing_field_is_named(client: Client, field: str) -> None:
    """422."""
    body = {k: v for k, v in BODY.items() if k != field}
    assert await refusal(await client.post("start", body)) == (422, f"{field} is missing.")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"text"', b"\xff", b"[" * 60_000, b"1" * 5_000]
)
async def test_a_body_that_is_none(client: Client, content: bytes) -> None:
    """422 for whoever has a token in the header, 401 for others, who hear that theirs was not found."""
    for path in ("/start", "/stop"):
        reply = await client.http.post(path, content=content, headers=client.headers)
        assert await refusal(reply) == (422, "The body is not a JSON object.")
        status, sentence = await refusal(await client.http.post(path, content=content))
        assert status == 401
        assert "the body, which may have one, is not a JSON object" in sentence


async def test_a_large_body_is_not_read(client: Client) -> None:
    """413, whether its length is announced or not."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    for content in (b" " * 100_000, endless()):
        reply = await client.http.post("/start", content=content, headers=client.headers)
        assert await refusal(reply) == (413, "The body is larger than 65536 bytes.")


@pytest.mark.parametrize(
    "query",
    [
        {"cursor": "x"},
        {"cursor": "1"},
        {"cursor": "1-99999999999999999999"},
        {"cursor": f"{2**63}-0"},
        {"cursor": "٣-٣"},
        {"wait": -1},
        {"wait": 31},
        {"wait": "nan"},
        {"limit": 0},
        {"limit": 10_001},
        {"limit": "all"},
    ],
)
async def test_a_bad_query_is_named(client: Client, query: dict[str, Any]) -> None:
    """422."""
    session_id = await client.start()
    status, sentence = await refusal(await client.get(f"batches/{session_id}", **query))
    assert status == 422
    assert sentence.startswith(f"{next(iter(query))} is ")


async def test_the_largest_cursor_is_one(client: Client) -> None:
    """There is nothing behind it."""
    session_id = await client.start()
    end = f"{2**63 - 1}-{2**63 - 1}"
    assert (await client.batches(session_id, cursor=end, wait=0.01))["batches"] == []


@pytest.mark.parametrize("session_id", ["5f0e", "7f9c24e8-3b12-4fef-91d0-4a1c8a3b5d11", "%ff%00"])
async def test_an_unknown_session(client: Client, session_id: str) -> None:
    """404 for reading and for stopping."""
    status, sentence = await refusal(await client.get(f"batches/{session_id}"))
    assert status == 404
    assert "not found" in sentence
    for text in (session_id, "\x00", "x" * 200, ""):
        content = json.dumps({"session_id": text})
        reply = await client.http.post("/stop", content=content, headers=client.headers)
        assert (await refusal(reply))[0] == 404


async def test_a_round_of_the_operators_own_is_no_session(client: Client, backend: Backend) -> None:
    """Nobody's token opens it."""
    from tests.support.factories import make_spec

    round_id = backend.store.create(make_spec())
    assert (await client.get(f"batches/{round_id}")).status_code == 404
    assert (await client.post("stop", {"session_id": round_id})).status_code == 404
    assert (await client.status())["sessions"] == {}


# Limits


async def test_there_are_as_many_sessions_as_allowed(
    backend: Backend, settings_for: SettingsFactory
) -> None:
    """One more is refused with the time until the next place; a stop and a deadline make room."""
    live_gpus(backend)
    async with serving(settings_for(), make_delegation(max_sessions=2)) as client:
        first, second = await client.start(), await client.start(block_hash="block-2")
        another = BODY | {"block_hash": "block-3"}
        reply = await client.post("start", another)
        status, sentence = await refusal(reply)
        assert status == 429
        assert sentence.startswith("Maximum sessions (2) reached. ")
        assert 1 <= int(reply.headers["Retry-After"]) <= 330
        await client.stop(first)
        await client.start()
        assert (await client.post("start", another)).status_code == 429
        pass_deadline(backend, second)
        # A scheduler or a reader writes down that it is over; any of them does.
        await client.batches(second)
        await client.start(**another)


async def test_a_race_for_the_last_places(backend: Backend, settings_for: SettingsFactory) -> None:
    """Thirty at once, over two applications, for twenty places: twenty get one."""
    live_gpus(backend)
    delegation = make_delegation(max_sessions=20)
    async with (
        serving(settings_for(), delegation) as one,
        serving(settings_for(), delegation) as two,
    ):
        bodies = [BODY | {"block_hash": f"block-{i}"} for i in range(30)]
        starts = ((one, two)[i % 2].post("start", body) for i, body in enumerate(bodies))
        replies = await asyncio.gather(*starts)
    codes = sorted(reply.status_code for reply in replies)
    assert codes == [200] * 20 + [429] * 10
    assert len(backend.store.active_ids()) == 20


# Customers


@pytest.fixture
def tokens(tmp_path: Path) -> TokensFile:
    """The file of customers where the service looks for it."""
    return TokensFile(tmp_path / "delegation-tokens.json")


async def test_customers_do_not_see_each_other(client: Client, tokens: TokensFile) -> None:
    """Neither read, stop nor list; to one the other's session is not there."""
    other = Client(client.http, tokens.add("other"))
    mine, theirs = await client.start(), await other.start()
    for who, session_id in ((client, theirs), (other, mine)):
        reply = await who.get(f"batches/{session_id}")
        unknown = await who.get("batches/7f9c24e8-3b12-4fef-91d0-4a1c8a3b5d11")
        assert reply.status_code == unknown.status_code == 404
        assert reply.text.replace(session_id, "X") == unknown.text.replace(
            "7f9c24e8-3b12-4fef-91d0-4a1c8a3b5d11", "X"
        )
        assert (await who.post("stop", {"session_id": session_id})).status_code == 404
    assert list((await client.status())["sessions"]) == [mine]
    assert list((await other.status())["sessions"]) == [theirs]


async def test_a_customer_has_limits_of_its_own(
    client: Client, tokens: TokensFile, backend: Backend
) -> None:
    """Its number of sessions, and its share of the GPUs."""
    other = Client(client.http, tokens.add("other", sessions=1, share=2.5))
    session_id = await other.start()
    assert backend.store.status(session_id).spec.share == 2.5
    another = BODY | {"block_hash": "block-2"}
    status, sentence = await refusal(await other.post("start", another))
    assert status == 429
    assert sentence.startswith("Maximum sessions (1) reached. ")
    await client.start()
    assert (await other.status())["max_sessions"] == 1
    assert (await client.status())["max_sessions"] == 10


async def test_a_revoked_token_is_refused_at_once(client: Client, tokens: TokensFile) -> None:
    """No restart; and its session goes on for those who have the others."""
    other = Client(client.http, tokens.add("other"))
    await other.start()
    tokens.revoke("other")
    assert (await other.get("status")).status_code == 401
    assert (await client.get("status")).status_code == 200


# Tokens


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", "\u00e9" * 20])
async def test_who_has_no_token_learns_nothing(client: Client, token: str | None) -> None:
    """401 before anything else is judged, on every route and in each of the three places."""
    http = client.http
    query = {} if token is None else {"auth_token": token}
    replies = [
        await http.post("/start", json={"r_target": 9} | query),
        await http.get("/batches/x", params=query),
        await http.post("/stop", json=query),
        await http.get("/status", params=query),
    ]
    if token:
        headers = {b"Authorization": f"Bearer {token}".encode()}
        replies.append(await http.get("/status", headers=headers))
    for reply in replies:
        status, sentence = await refusal(reply)
        assert status == 401
        assert sentence.startswith("Invalid auth token")
        assert not token or token not in sentence
        assert reply.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("token", [5, [TOKEN], {"a": 1}, None, True])
async def test_a_token_that_is_no_text(client: Client, token: Any) -> None:
    """401 as well."""
    reply = await client.http.post("/start", json=BODY | {"auth_token": token})
    assert reply.status_code == 401


async def test_too_many_wrong_tokens_are_told_to_wait(
    backend: Backend, settings_for: SettingsFactory
) -> None:
    """429 in every process that sees one more; the right token is not refused for them, from wherever."""
    from tests.support.delegation_server import http_client

    live_gpus(backend)
    delegation = make_delegation(auth_failures=3)
    app = create_app(settings_for(), delegation)
    async with (
        app.router.lifespan_context(app),
        http_client(app, "198.51.100.7") as bad,
        http_client(app, "198.51.100.8") as good,
    ):
        guess, right = Client(bad, "a-guess"), Client(bad)
        codes = [(await guess.get("status")).status_code for _ in range(5)]
        assert codes == [401, 401, 401, 429, 429]
        reply = await guess.get("status")
        assert reply.status_code == 429
        assert 1 <= int(reply.headers["Retry-After"]) <= 60
        assert (await right.post("start", BODY)).status_code == 200
        assert (await Client(good).get("status")).status_code == 200
        # No token is no guess.
        codes = [(await Client(good, None).get("status")).status_code for _ in range(5)]
        assert codes == [401] * 5
    async with serving(settings_for(), delegation, "198.51.100.7") as client:
        assert (await Client(client.http, "a-guess").get("status")).status_code == 429


async def test_status_may_be_public(backend: Backend, settings_for: SettingsFactory) -> None:
    """A plain curl sees all sessions; a wrong token is still wrong, other routes stay shut."""
    live_gpus(backend, 2)
    async with serving(settings_for(), make_delegation(public_status=True)) as client:
        session_id = await client.start(node_id=1, node_count=2)
        work = Work(backend, session_id)
        work.batch()
        work.batch(num_valid=0)
        anybody = Client(client.http, None)
        answer = await anybody.status()
        session = answer["sessions"].pop(session_id)
        assert answer == {
            "total_sessions": 1,
            "active_sessions": 1,
            "max_sessions": 10,
            "sessions": {},
        }
        assert session.pop("age_seconds") >= 0
        assert session.pop("created_at") == backend.store.status(session_id).created_ms / 1000
        assert session == {
            "status": "generating",
            "node_id": 1,
            "gpu_count": 2,
            "total_generated": 1,
            "total_nonces": 2,
            "total_checked": 20,
        }
        assert (await Client(client.http, "wrong").get("status")).status_code == 401
        assert (await anybody.get(f"batches/{session_id}")).status_code == 401
        assert (await anybody.post("start", BODY)).status_code == 401


async def test_log_lines_carry_ids_and_no_token(
    client: Client, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """The word DELEGATION, session and node: what operators search their logs for."""
    caplog.set_level(logging.INFO)
    session_id = await client.start(node_id=4, node_count=5)
    work = Work(backend, session_id)
    work.batch()
    await client.http.get(f"/batches/{session_id}", params={"auth_token": TOKEN})
    await client.stop(session_id)
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("pocqueue")]
    assert [f"DELEGATION session {session_id} of node 4" in line for line in lines] == [True] * 3
    for line, word in zip(lines, ("started", "handed over", "stopped"), strict=True):
        assert word in line
    assert TOKEN not in "".join(lines)


def test_a_service_without_a_token_does_not_start(settings_for: SettingsFactory) -> None:
    """It says why, and how to make one."""
    for token, said in (
        (None, "DELEGATION_AUTH_TOKEN is not set"),
        ("short-token", "DELEGATION_AUTH_TOKEN has 11 characters"),
    ):
        with pytest.raises(SettingsError) as caught:
            create_app(settings_for(), make_delegation(auth_token=token))
        assert str(caught.value).startswith(said)
        assert "secrets.token_urlsafe" in str(caught.value)
        assert "short-token" not in str(caught.value)


# Redis


async def test_redis_away_and_back(own_backend: Backend, own_redis: Any, settings_for: Any) -> None:
    """503 on every route while it is away, and on it goes by itself when it is back."""
    from pydantic import SecretStr

    live_gpus(own_backend)
    async with serving(settings_for(redis_url=SecretStr(own_redis.url))) as client:
        session_id = await client.start()
        work = Work(own_backend, session_id)
        work.batch()
        own_redis.stop()
        replies = [
            await client.post("start", BODY),
            await client.get(f"batches/{session_id}"),
            await client.get(f"batches/{session_id}", wait=5, cursor=""),
            await client.post("stop", {"session_id": session_id}),
            await client.get("status"),
            await client.get("health"),
        ]
        for reply in replies:
            status, sentence = await refusal(reply)
            assert status == 503
            assert "does not answer" in sentence
            assert int(reply.headers["Retry-After"]) >= 1
        # A wrong token is one whatever Redis does.
        assert (await Client(client.http, "wrong").get("status")).status_code == 401
        own_redis.ensure()
        assert (await client.get("health")).status_code == 200
        assert nonces_of(await client.batches(session_id)) == work.nonces
