"""The small node's routes over HTTP: what chain-side clients send and read, and every refusal."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import schemathesis
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from pocqueue.errors import EngineUnavailable, KeyFileError, OutboxError, SettingsError
from pocqueue.node.app import create_app
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.outbox import OUTBOX_NAME
from pocqueue.settings import DelegationSettings, NodeSettings, Settings
from tests.support.callback_receiver import answering, receiving
from tests.support.delegation_server import BODY, TOKEN
from tests.support.fake_engine import FakeEngine, valid_below
from tests.support.fixtures import SettingsFactory
from tests.support.node import (
    NOWHERE,
    delegating,
    host_of,
    legacy_big_node,
    make_key,
    serving_in_thread,
)
from tests.support.openapi import statuses_of_generated_requests
from tests.support.waiting import until

POW = "/api/v1/pow"
#: A round as a legacy chain asks for it, with every parameter that it sends.
OLD: dict[str, Any] = BODY | {
    "fraud_threshold": 1e-7,
    "params": {
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "n_kv_heads": 2,
        "vocab_size": 32,
        "ffn_dim_multiplier": 1.3,
        "multiple_of": 1024,
        "norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "use_scaled_rope": False,
        "seq_len": 16,
    },
    "url": NOWHERE,
}


def make_app(
    settings: Settings,
    delegation: DelegationSettings | None = None,
    *,
    host: EngineHost | None = None,
    **node: Any,
) -> FastAPI:
    """Make the application, with a key."""
    make_key(settings.state_dir)
    return create_app(
        settings,
        delegation or DelegationSettings(),
        NodeSettings.model_validate(node),
        host or host_of(settings, FakeEngine()),
    )


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Run an application; yields a client of it."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://node") as http,
    ):
        yield http


@pytest.fixture
async def http(settings_for: SettingsFactory) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a node with an engine of its own."""
    async with running(make_app(settings_for())) as http:
        # Until the engine is loaded.
        while (await http.get(f"{POW}/status")).json()["status"] == "LOADING":
            pass
        yield http


async def refusal(reply: httpx.Response) -> tuple[int, str]:
    """Return status and sentence of an answer that is an error."""
    [(key, sentence)] = reply.json().items()
    assert key == "detail"
    assert sentence.isprintable()
    assert ("Retry-After" in reply.headers) is (reply.status_code in {429, 503})
    return reply.status_code, sentence


async def test_a_round_in_phases(http: httpx.AsyncClient) -> None:
    """Init, generate, validate, stop: statuses and fields as docs/wire.md has them."""
    assert (await http.get("/api/v1/state")).json() == {"state": "STOPPED"}
    reply = await http.post(f"{POW}/init", json=OLD)
    assert reply.status_code == 200
    assert reply.json()["status"] == "OK"
    wanted = {"status": "IDLE", "is_model_initialized": True, "delegation_mode": False}
    assert wanted.items() <= reply.json()["pow_status"].items()
    for path, word in (("generate", "GENERATING"), ("validate", "VALIDATING")):
        reply = await http.post(f"{POW}/phase/{path}")
        assert reply.json()["pow_status"]["status"] == word
        status = (await http.get(f"{POW}/status")).json()
        assert (status["status"], status["gpu_count"]) == (word, 1)
    assert (await http.get("/api/v1/state")).json() == {"state": "POW"}
    reply = await http.post(f"{POW}/stop")
    assert reply.json()["pow_status"]["status"] == "STOPPED"
    reply = await http.post(f"{POW}/stop")
    assert reply.json() == {
        "status": "OK",
        "pow_status": "PoW is not running",
        "warnings": [],
    }
    reply = await http.post(f"{POW}/init/generate", json=OLD)
    assert reply.json()["pow_status"]["status"] == "GENERATING"
    reply = await http.post(f"{POW}/init/validate", json=OLD)
    assert reply.json()["pow_status"]["status"] == "VALIDATING"
    assert (await http.post("/api/v1/stop")).json() == {"status": "OK"}
    assert (await http.get("/api/v1/state")).json() == {"state": "STOPPED"}


@pytest.mark.parametrize("path", ["init", "init/generate", "init/validate"])
async def test_wishes_of_older_clients_are_taken(http: httpx.AsyncClient, path: str) -> None:
    """With what becomes of them in the answer; this node's own passes have the default size."""
    reply = await http.post(f"{POW}/{path}", json=OLD | {"r_target": 10, "batch_size": 5000})
    assert reply.status_code == 200, reply.text
    assert reply.json()["warnings"] == [
        "r_target is 10, and no distance is above 2: every nonce is valid",
        "batch_size 5000 is above 4096, so the GPUs take the one that does best",
    ]


async def test_a_proof_is_validated(settings_for: SettingsFactory) -> None:
    """The answer is null; the verdict comes to the callback URL."""
    async with receiving() as chain, running(make_app(settings_for())) as http:
        await http.post(f"{POW}/init/validate", json=OLD | {"url": chain.url})
        nonces = valid_below(1.0, range(50))
        proof = {name: OLD[name] for name in ("public_key", "block_hash", "block_height")}
        proof |= {"nonces": nonces, "dist": [0.5] * len(nonces), "node_id": 0}
        reply = await http.post(f"{POW}/validate", json=proof)
        assert (reply.status_code, reply.json()) == (200, None)
        await until(lambda: chain.accepted)
        [verdict] = chain.accepted
        assert (verdict["nonces"], verdict["fraud_detected"]) == (nonces, False)
        short = await http.post(f"{POW}/validate", json=proof | {"dist": [0.5]})
        assert await refusal(short) == (
            422,
            f"dist is 'a list of 1'; allowed: one distance for each nonce, of which there are {len(nonces)}.",
        )


@pytest.mark.parametrize(
    ("path", "purpose"),
    [
        ("init", ""),
        ("init/generate", " to start generating"),
        ("init/validate", " to start validating"),
    ],
)
@pytest.mark.parametrize(
    "unset", [{"node_id": -1}, {"node_count": -1}, {"node_id": -1, "node_count": -1}]
)
async def test_a_node_that_is_not_set(
    http: httpx.AsyncClient, path: str, purpose: str, unset: dict[str, int]
) -> None:
    """-1 and leaving it out are the same."""
    left_out = {name: value for name, value in OLD.items() if name not in unset}
    for body in (OLD | unset, left_out):
        reply = await http.post(f"{POW}/{path}", json=body)
        assert await refusal(reply) == (400, f"Node ID and node count must be set{purpose}")
    assert (await http.get("/api/v1/state")).json() == {"state": "STOPPED"}


@pytest.mark.parametrize("path", ["phase/generate", "phase/validate", "validate"])
async def test_without_a_round(http: httpx.AsyncClient, path: str) -> None:
    """There is nothing to go on with."""
    proof = {"public_key": "k", "block_hash": "b", "block_height": 1, "nonces": [], "dist": []}
    reply = await http.post(f"{POW}/{path}", json=proof)
    assert await refusal(reply) == (400, "PoW is not running")


@pytest.mark.parametrize("path", ["init/validate", "phase/validate", "validate"])
async def test_validation_while_delegated(settings_for: SettingsFactory, path: str) -> None:
    """In the words of docs/wire.md."""
    proof = {"public_key": "k", "block_hash": "b", "block_height": 1, "nonces": [], "dist": []}
    async with running(make_app(settings_for(), delegating("http://127.0.0.1:9"))) as http:
        reply = await http.post(f"{POW}/{path}", json=OLD | proof)
        assert await refusal(reply) == (
            400,
            "Validation phase not supported in delegation mode",
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"r_target": -3.0}, "r_target is -3.0; allowed: a number above 0."),
        ({"node_id": 1}, "node_id is 1; allowed: a whole number from 0 to node_count - 1 = 0."),
        ({"node_count": 0}, "node_count is 0; allowed: a whole number from 1 to"),
        ({"batch_size": 0}, "batch_size is 0; allowed: a whole number of at least 1."),
        ({"block_hash": "two\nlines"}, "block_hash is 'two\\nlines'; allowed:"),
        ({"block_height": -1}, "block_height is -1; allowed:"),
        ({"public_key": None}, "public_key is None; allowed:"),
        ({"url": "ftp://host"}, "url is 'ftp://host'; allowed:"),
        (
            {"url": ""},
            "url is None; allowed: the http:// or https:// URL that batches go to",
        ),
        (
            {"url": None},
            "url is None; allowed: the http:// or https:// URL that batches go to",
        ),
        ({"delegation_url": "host:9090"}, "delegation_url is 'host:9090'; allowed:"),
        (
            {"delegation_url": "http://big:9090"},
            "delegation_auth_token is None; allowed: that of the same big node as delegation_url",
        ),
        ({"delegation_auth_token": "secret"}, "delegation_url is None; allowed: that of the same"),
        ({"delegation_auth_token": "a secret"}, "delegation_auth_token is '…'; allowed: 1 to 1024"),
        ({"delegation_auth_token": "x" * 2000}, "delegation_auth_token is '…'; allowed: 1 to 1024"),
        ({"params": {"seq_len": 0}}, "params.seq_len is 0; allowed:"),
        ({"params": {"norm_eps": float("nan")}}, "allowed: finite numbers and valid Unicode."),
        ({"params": {"x": "\ud800"}}, "allowed: finite numbers and valid Unicode."),
        ({"params": 7}, "params is 7; allowed:"),
    ],
)
async def test_fields_out_of_bounds(
    http: httpx.AsyncClient, change: dict[str, Any], said: str
) -> None:
    """One sentence each: field, value, what is allowed; nothing is changed."""
    reply = await http.post(
        f"{POW}/init/generate",
        content=json.dumps(OLD | change),
        headers={"Content-Type": "application/json"},
    )
    status, sentence = await refusal(reply)
    assert status == 422
    assert said in sentence
    assert "secret" not in sentence
    assert (await http.get("/api/v1/state")).json() == {"state": "STOPPED"}


async def test_what_is_no_body(http: httpx.AsyncClient) -> None:
    """Neither text nor a list nor far too much."""
    headers = {"Content-Type": "application/json"}
    reply = await http.post(f"{POW}/init", content="{", headers=headers)
    assert await refusal(reply) == (422, "The body is not a JSON object.")
    assert (await http.post(f"{POW}/init", json=[1])).status_code == 422
    reply = await http.post(f"{POW}/init", content=b" " * (17 << 20), headers=headers)
    assert await refusal(reply) == (413, "The body is larger than 16777216 bytes.")
    for content in (b"[" * 60_000, b'{"block_height":' + b"9" * 5_000 + b"}", b'{"url":"\xff"}'):
        reply = await http.post(f"{POW}/init", content=content, headers=headers)
        assert await refusal(reply) == (422, "The body is not a JSON object.")


async def test_web_pages_of_others_are_kept_out(http: httpx.AsyncClient) -> None:
    """Of another origin, or by a name that leads here; the chain's client sends no origin."""
    url = f"{POW}/stop"
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        reply = await http.post(url, headers=headers)
        assert reply.status_code == 403
        assert "POCQUEUE_NODE_ALLOWED_HOSTS" in reply.json()["detail"]
    for host in ("127.0.0.1:8080", "localhost", "[::1]:8080", "node"):
        reply = await http.post(url, headers={"Host": host, "Origin": f"http://{host}"})
        assert reply.status_code == 200


async def test_a_refusal_leaves_a_line(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Address, route and reason, whatever version stands before the route."""
    await http.post(f"/v3.0.8{POW}/init", json={"block_hash": "", "url": "http://me:hunter2@h/"})
    [line] = [line for line in caplog.messages if line.startswith("Refused")]
    assert line.startswith(f"Refused POST {POW}/init from 127.0.0.1: 422 ")
    assert "hunter2" not in caplog.text


async def test_another_model(http: httpx.AsyncClient) -> None:
    """Both sides are named; the round stays at hand, so that the caller sees what he asked for."""
    params = OLD["params"] | {"dim": 1792, "n_layers": 64}
    reply = await http.post(f"{POW}/init/generate", json=OLD | {"params": params})
    status, sentence = await refusal(reply)
    assert status == 409
    assert "dim 1792" in sentence
    assert "deployed here is twin (dim 16, vocab_size 32)" in sentence
    reply = await http.post(f"{POW}/init/generate", json=OLD | {"params": {"model": "other"}})
    assert "'other'" in (await refusal(reply))[1]
    reply = await http.post(f"{POW}/init/generate", json=OLD | {"params": {"seq_len": 5000}})
    assert (await refusal(reply))[0] == 422


@pytest.mark.parametrize(
    ("changes", "seq_len"),
    [
        ({"params": {"model": "twin", "seq_len": 32}}, 32),
        ({"params": {}, "seq_len": 64}, 64),
        ({"params": None, "seq_len": 64}, 64),
        ({"params": {"seq_len": 32}, "seq_len": 64}, 32),
        ({"params": {}}, 16),
    ],
)
async def test_params_of_every_era(
    settings_for: SettingsFactory, changes: dict[str, Any], seq_len: int
) -> None:
    """They go to the big node, with the length of a sequence; what is unknown is passed on too."""
    async with (
        legacy_big_node() as big,
        running(make_app(settings_for(), delegating(big.url))) as http,
    ):
        body = {name: value for name, value in OLD.items() if name != "url"}
        body |= {"callback_url": NOWHERE, "unknown": "ignored"}
        reply = await http.post(f"{POW}/init/generate", json=body | changes)
        assert reply.status_code == 200, reply.text
        _, _, _, sent = big.requests[0]
        assert sent["params"] == (changes["params"] or {}) | {"seq_len": seq_len}
        assert sent["callback_url"] is None


async def test_params_of_old_chains_are_passed_on(settings_for: SettingsFactory) -> None:
    """All of them, as they came; and the small node's own URL and token are nobody's."""
    async with (
        legacy_big_node() as big,
        running(make_app(settings_for(), delegating(big.url), callback_url=NOWHERE)) as http,
    ):
        body = {name: value for name, value in OLD.items() if name != "url"}
        reply = await http.post(f"{POW}/init/generate", json=body)
        assert reply.status_code == 200, reply.text
        assert big.requests[0][3]["params"] == OLD["params"]
        for path in (f"{POW}/status", "/metrics", "/openapi.json"):
            assert TOKEN not in (await http.get(path)).text


async def test_a_round_of_another_big_node(settings_for: SettingsFactory) -> None:
    """The request names it, with its token, where the settings name none."""
    async with legacy_big_node() as big, running(make_app(settings_for(), work="none")) as http:
        theirs = {"delegation_url": big.url, "delegation_auth_token": TOKEN}
        reply = await http.post(f"{POW}/init/generate", json=OLD | theirs)
        assert reply.json()["pow_status"]["delegation_mode"] is True
        assert (await http.get(f"{POW}/status")).json()["gpu_count"] == 3
        for left_out in theirs:
            reply = await http.post(
                f"{POW}/init/generate",
                json=OLD | theirs | {left_out: "", "block_hash": left_out},
            )
            status, sentence = await refusal(reply)
            assert status == 422
            assert sentence.startswith(f"{left_out} is None; allowed: that of the same big node")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (400, 502),
        (401, 502),
        (404, 502),
        (409, 409),
        (422, 422),
        (429, 429),
        (500, 502),
        (503, 503),
    ],
)
async def test_refusals_of_the_big_node(
    settings_for: SettingsFactory, theirs: int, ours: int
) -> None:
    """What is wrong with the round is passed on; what is wrong between the nodes is 502."""
    from aiohttp import web

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"detail": "No, for a reason."}, status=theirs)

    async with (
        answering(answer) as url,
        running(make_app(settings_for(), delegating(url))) as http,
    ):
        reply = await http.post(f"{POW}/init/generate", json=OLD)
        said = "Failed to start delegation session: No, for a reason."
        assert await refusal(reply) == (ours, said)
        assert (await http.get(f"{POW}/status")).json()["error"] == said


async def test_nobody_can_work(settings_for: SettingsFactory) -> None:
    """A big node that is away, no GPU, an engine that is not there: 503."""
    away = delegating("http://127.0.0.1:9")
    async with running(make_app(settings_for(), away)) as http:
        status, sentence = await refusal(await http.post(f"{POW}/init/generate", json=OLD))
        assert status == 503
        assert sentence.startswith("Failed to start delegation session: Connection refused.")

    def load(*_: object) -> FakeEngine:
        raise EngineUnavailable("no server there")

    broken = make_app(settings_for(), host=EngineHost(settings_for(), load))
    async with running(broken) as http:
        said = "The engine of this node cannot be used: no server there"
        assert await refusal(await http.post(f"{POW}/init/generate", json=OLD)) == (503, said)
        for path in ("health", "livez", "readyz"):
            assert await refusal(await http.get(f"/{path}")) == (503, said)


async def test_an_engine_that_fails(settings_for: SettingsFactory) -> None:
    """On a batch of a proof: 500 with the runtime's words; the node lives on."""

    def fail(_: int) -> None:
        raise RuntimeError("out of memory")

    host = host_of(settings_for(), FakeEngine(on_batch=fail))
    async with running(make_app(settings_for(), host=host)) as http:
        await http.post(f"{POW}/init/validate", json=OLD)
        proof = {
            "public_key": "k",
            "block_hash": "b",
            "block_height": 1,
            "nonces": [1],
            "dist": [1],
        }
        reply = await http.post(f"{POW}/validate", json=proof)
        assert await refusal(reply) == (500, "The engine failed on a batch: out of memory")
        assert (await http.get("/health")).json() == {"status": "OK"}


async def test_a_disk_in_trouble(settings_for: SettingsFactory) -> None:
    """A sentence, not a traceback."""
    settings = settings_for()
    async with running(make_app(settings)) as http:
        with contextlib.closing(sqlite3.connect(settings.state_dir / OUTBOX_NAME)) as db:
            db.execute("ALTER TABLE messages RENAME TO gone")
        status, sentence = await refusal(await http.post(f"{POW}/init/generate", json=OLD))
        assert status == 503
        assert sentence.startswith("The outbox ")
        assert "cannot be used: no such table: messages" in sentence


@pytest.mark.parametrize("prefix", ["/v3.0.8", "/v0.2.11.4", ""])
async def test_paths_with_a_version(http: httpx.AsyncClient, prefix: str) -> None:
    """As chains put one before them."""
    assert (await http.get(f"{prefix}{POW}/status")).status_code == 200
    assert (await http.get(f"{prefix}/api/v1/state")).json() == {"state": "STOPPED"}
    assert (await http.post(f"{prefix}{POW}/init", json=OLD)).status_code == 200
    assert (await http.get(f"{prefix}/health")).json() == {"status": "OK"}
    assert (await http.get(f"/x{prefix}/health")).status_code == 404
    assert (await http.get(f"{prefix}{POW}/stop")).status_code == 405


async def test_metrics(http: httpx.AsyncClient) -> None:
    """In the text format, with a type that Prometheus reads."""
    reply = await http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    names = {family.name for family in text_string_to_metric_families(reply.text)}
    assert {"pocqueue_node_signed", "pocqueue_node_outbox_messages"} <= names


# What it does not start with


def test_what_it_does_not_start_with(
    settings_for: SettingsFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """A key that is missing or others can read, settings that cannot be used together, an outbox in use."""
    settings, local, node = settings_for(), DelegationSettings(), NodeSettings()
    with pytest.raises(KeyFileError, match="pocqueue node key new"):
        create_app(settings, local, node)
    make_key(settings.state_dir)
    (settings.state_dir / "node-key.pem").chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        create_app(settings, local, node)
    (settings.state_dir / "node-key.pem").chmod(0o600)
    lame = delegating("http://host", fallback="local")
    with pytest.raises(SettingsError, match="DELEGATION_FALLBACK is local"):
        create_app(settings, lame, node)
    nowhere = DelegationSettings.model_validate({"tls_ca": settings.state_dir / "none.pem"})
    with pytest.raises(SettingsError, match="DELEGATION_TLS_CA is"):
        create_app(settings, nowhere, node)
    half = DelegationSettings(url="http://host", auth_token=None)
    create_app(settings, half, node)
    assert "DELEGATION_URL is set and DELEGATION_AUTH_TOKEN is not" in caplog.text
    with pytest.raises(OutboxError, match="in use by another small node"):
        create_app(settings, local, node)


# The OpenAPI document


@pytest.fixture
def at_work(settings_for: SettingsFactory) -> Iterator[str]:
    """The URL of a node at work with an engine, and with a token."""
    app = make_app(settings_for(), DelegationSettings(auth_token=SecretStr(TOKEN)))
    with serving_in_thread(app) as url:
        yield url


def test_the_document_is_complete(at_work: str) -> None:
    """Summary, description, examples of bodies and answers, and all errors with one each."""
    document = httpx.get(f"{at_work}/openapi.json", trust_env=False, timeout=60).json()
    schemas = document["components"]["schemas"]
    assert TOKEN not in json.dumps(document)
    paths = {"init", "init/generate", "init/validate", "phase/generate", "phase/validate"}
    paths |= {"validate", "status", "stop"}
    wanted = {f"{POW}/{path}" for path in paths}
    paths = {"init/generate", "generate", "generate/{request_id}", "status", "stop"}
    wanted |= {f"/api/v1/inference/pow/{path}" for path in paths}
    wanted |= {"/api/v1/state", "/api/v1/stop", "/health", "/livez", "/readyz", "/metrics"}
    assert set(document["paths"]) == wanted
    for path, operations in document["paths"].items():
        [operation] = operations.values()
        assert operation["summary"]
        assert operation["description"]
        if "requestBody" in operation:
            body = operation["requestBody"]["content"]["application/json"]["schema"]
            assert schemas[body["$ref"].rpartition("/")[2]]["examples"]
        for status, reply in operation["responses"].items():
            if path == "/metrics" and status == "200":
                assert reply["content"]["text/plain"]["example"]
                continue
            content = reply["content"]["application/json"]
            name = content["schema"].get("$ref", "").rpartition("/")[2]
            if name == "FailedAnswer":
                assert schemas[name]["examples"]
            elif status != "200":
                assert name == "ErrorAnswer", (path, status)
                assert content["example"]["detail"].strip()
            elif not path.endswith("/pow/validate"):
                assert schemas[name]["examples"]
            if status in {"429", "503"}:
                assert "Retry-After" in reply["headers"]
    # There are other params in the bodies of the MLNode's routes.
    for name in ("InitBody", "pocqueue__node__schema__Params", "PowStatus", "OutboxStatus"):
        undescribed = {
            field
            for field, schema in schemas[name]["properties"].items()
            if "description" not in schema and "$ref" not in schema
        }
        assert undescribed <= {"block_height"}, name


async def test_the_examples_are_true(http: httpx.AsyncClient) -> None:
    """That of a round begins one, but for its model; that of a proof can be validated."""
    from pocqueue.node.schema import InitBody, PowStatus
    from pocqueue.poc.distance.scheme import ProofBody

    def example(model: Any) -> Any:
        return model.model_json_schema()["examples"][0]

    body = example(InitBody) | {"params": {"seq_len": 16}}
    reply = await http.post(f"{POW}/init/generate", json=body)
    assert reply.status_code == 200, reply.text
    assert set(reply.json()["pow_status"]) == set(example(PowStatus))
    assert (await http.post(f"{POW}/validate", json=example(ProofBody))).json() is None


def test_nothing_that_is_sent_is_our_fault(at_work: str) -> None:
    """Generated requests, right and wrong ones: no 5xx, and every answer is as the document says."""
    document = httpx.get(f"{at_work}/openapi.json", trust_env=False, timeout=60).json()

    def call(case: Any) -> Any:
        # A big node of the request's own may be anywhere; those are tested elsewhere.
        if isinstance(case.body, dict):
            case.body.pop("delegation_url", None)
            # The MLNode's routes answer 502 for another model, as the network's do.
            if "/inference/" in case.path and isinstance(params := case.body.get("params"), dict):
                params["model"] = "twin"
        return case.call(base_url=at_work)

    schema = schemathesis.openapi.from_dict(document)
    statuses = statuses_of_generated_requests(schema, call, max_examples=25, skip=("/metrics",))
    assert {200, 400, 422} <= statuses
