"""The artifact routes over HTTP: statuses, bodies and every refusal in the words of the network's clients."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from pocqueue.node.messages import NewMessage
from pocqueue.node.mlnode.compute import AT_ONCE
from pocqueue.node.outbox import OUTBOX_NAME, Outbox
from pocqueue.poc.artifact.data import encode
from pocqueue.rounds.backend import Backend
from tests.support.artifacts import K_DIM, artifact_of, artifacts_in
from tests.support.callback_receiver import Receiver
from tests.support.delegation_server import live_gpus
from tests.support.factories import make_info
from tests.support.fake_engine import FakeEngine
from tests.support.fixtures import SettingsFactory
from tests.support.live_pool import live_pool
from tests.support.mlnode import PORT, PREFIX, ROUND, asked, claims, mlnode
from tests.support.node import big_node, delegating
from tests.support.waiting import until

STARTED = {
    "status": "OK",
    "backends": 1,
    "n_groups": 1,
    "results": [{"port": PORT, "status": "OK"}],
    "errors": None,
}
STOPPED = {"status": "OK", "results": [{"port": PORT, "status": "stopped"}], "errors": None}


async def ready(http: httpx.AsyncClient) -> None:
    """Wait until a node's own engine is loaded."""

    async def is_idle() -> bool:
        return bool((await http.get(f"{PREFIX}/status")).json()["status"] == "IDLE")

    await until(is_idle)


def backend_of(answer: dict[str, Any]) -> dict[str, Any]:
    [backend] = answer["backends"]
    assert backend["port"] == PORT
    found: dict[str, Any] = backend
    return found


async def status_of(http: httpx.AsyncClient, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = (await http.get(f"{prefix}{PREFIX}/status")).json()
    return found


@pytest.mark.parametrize("prefix", ["", "/v3.0.16", "/v3.0.12-post6"])
async def test_a_round_on_the_pool(
    backend: Backend, settings_for: SettingsFactory, receiver: Receiver, prefix: str
) -> None:
    """One backend however many GPUs; this node's nonces, all of them, go to the receiver in the network's words."""
    body = ROUND | {"url": receiver.url, "field_of_a_later_version": 1, "n_groups": 7}
    with live_pool(backend, FakeEngine(artifact_of), FakeEngine(artifact_of)):
        async with mlnode(settings_for()) as http:
            assert (await status_of(http, prefix))["status"] == "IDLE"
            assert (await http.get(f"{prefix}/api/v1/state")).json() == {"state": "STOPPED"}
            reply = await http.post(f"{prefix}{PREFIX}/init/generate", json=body)
            assert (reply.status_code, reply.json()) == (200, STARTED)
            assert (await http.get(f"{prefix}/api/v1/state")).json() == {"state": "POW"}
            await until(lambda: len(artifacts_in(receiver.accepted)) > 50)
            found = await status_of(http, prefix)
            assert found["status"] == "GENERATING"
            one = backend_of(found)
            assert (one["status"], one["gpu_count"], one["error"]) == ("GENERATING", 2, None)
            search = {name: ROUND[name] for name in ROUND if name != "params"}
            shape = {"group_id": 0, "n_groups": 1, "seq_len": 8, "k_dim": K_DIM}
            assert one["config"] == search | shape
            assert one["stats"]["total_processed"] > 50
            assert one["stats"]["nonces_per_second"] > 0
            reply = await http.post(f"{prefix}{PREFIX}/stop", json={})
            assert (reply.status_code, reply.json()) == (200, STOPPED)
            assert backend_of(await status_of(http, prefix)) == {
                "port": PORT,
                "status": "IDLE",
                "config": None,
                "stats": None,
                "gpu_count": 0,
                "error": None,
            }
            assert (await http.get(f"{prefix}/api/v1/state")).json() == {"state": "STOPPED"}
            [round_id] = backend.store.list_ids()
            await until(lambda: not backend.store.status(round_id).state.is_active)
            counted = backend.store.status(round_id).valid
            await until(lambda: len(artifacts_in(receiver.accepted)) == counted)
    sent = dict(artifacts_in(receiver.accepted))
    assert len(sent) == counted
    assert sent == {nonce: artifact_of(nonce) for nonce in range(1, 1 + 3 * counted, 3)}
    for body in receiver.accepted:
        assert set(body) == {
            *("public_key", "block_hash", "block_height", "node_id", "artifacts", "encoding")
        }


async def test_what_the_chain_never_sends(backend: Backend, settings_for: SettingsFactory) -> None:
    """Twelve numbers an artifact and batches of 32 where nobody says; the URL by the settings."""
    live_gpus(backend)
    params = {"model": "twin", "seq_len": 8}
    async with mlnode(settings_for(), callback_url="http://127.0.0.1:9/x") as http:
        reply = await http.post(f"{PREFIX}/init/generate", json=ROUND | {"params": params})
        assert reply.status_code == 200, reply.text
    [round_id] = backend.store.list_ids()
    spec = backend.store.status(round_id).spec
    assert (spec.batch_size, dict(spec.options)) == (32, {"k_dim": 12, "stronger_rng": False})
    # The chain ends it, whatever the settings say of other rounds.
    assert spec.window_s == 1200


async def test_a_round_that_is_asked_for_again(
    backend: Backend, settings_for: SettingsFactory, receiver: Receiver
) -> None:
    """The same one goes on; another one takes its place, and what was found is sent all the same."""
    body = ROUND | {"url": receiver.url}
    with live_pool(backend, FakeEngine(artifact_of)):
        async with mlnode(settings_for()) as http:
            for _ in range(2):
                reply = await http.post(f"{PREFIX}/init/generate", json=body)
                assert (reply.status_code, reply.json()) == (200, STARTED)
            [first] = backend.store.list_ids()
            await until(lambda: receiver.accepted)
            other = body | {"block_hash": "00AA", "block_height": 8, "poc_stronger_rng": True}
            assert (await http.post(f"{PREFIX}/init/generate", json=other)).json() == STARTED
            await until(lambda: not backend.store.status(first).state.is_active)
            [second] = [i for i in backend.store.list_ids() if i != first]
            assert dict(backend.store.status(second).spec.options)["stronger_rng"] is True
            config = backend_of(await status_of(http))["config"]
            assert (config["block_hash"], config["block_height"]) == ("00AA", 8)
            valid = backend.store.status(first).valid

            def of_first() -> list[Any]:
                return [one for one in receiver.accepted if one["block_height"] == 7]

            await until(lambda: len(artifacts_in(of_first())) == valid)


async def test_a_round_by_an_engine_of_its_own(
    settings_for: SettingsFactory, receiver: Receiver
) -> None:
    """Its artifacts are as those of a pool, and so are results of given nonces meanwhile."""
    async with mlnode(settings_for(), "engine") as http:
        await ready(http)
        body = ROUND | {"url": receiver.url}
        assert (await http.post(f"{PREFIX}/init/generate", json=body)).json() == STARTED
        await until(lambda: len(artifacts_in(receiver.accepted)) > 20)
        reply = await http.post(f"{PREFIX}/generate", json=asked([5, 2], wait=True))
        assert [one["nonce"] for one in reply.json()["artifacts"]] == [5, 2]
        assert (await http.post(f"{PREFIX}/stop")).json() == STOPPED
    sent = artifacts_in(receiver.accepted)
    assert sent == [(nonce, artifact_of(nonce)) for nonce in range(1, 1 + 3 * len(sent), 3)]


async def test_what_waits_of_an_earlier_block_holds_no_round_up(
    backend: Backend, settings_for: SettingsFactory, receiver: Receiver, tmp_path: Path
) -> None:
    """It is tried as the round begins, whatever pause it has."""
    with Outbox(tmp_path / OUTBOX_NAME) as outbox:
        outbox.open_session("old", "queue", "{}")
        artifacts = [{"nonce": 9, "vector_b64": "AAAA"}]
        body = {"block_hash": "old", "artifacts": artifacts}
        outbox.accept("old", "", "1", [NewMessage("1", "generated", receiver.url, body, [9])])
        outbox.close_session("old")
        [head] = outbox.heads()
        outbox.failed(head.id, "HTTP 503", time.time() + 250)
    with live_pool(backend, FakeEngine(artifact_of)):
        async with mlnode(settings_for()) as http:
            started = await http.post(f"{PREFIX}/init/generate", json=ROUND | {"url": receiver.url})
            assert started.json() == STARTED
            await until(lambda: len(receiver.accepted) > 1)
            await http.post(f"{PREFIX}/stop")
    assert receiver.accepted[0] == body


@pytest.mark.parametrize("work", ["queue", "engine", "auto"])
async def test_a_model_whose_pass_holds_less_than_the_default(
    backend: Backend, settings_for: SettingsFactory, receiver: Receiver, work: str
) -> None:
    """As vLLM's with experts: nobody asked for the default. So on a pool, by an engine, by a big node's pool."""
    engines = [FakeEngine(artifact_of), FakeEngine(artifact_of)]
    for engine, tokens in zip(engines, (64, 40), strict=True):
        engine.info = make_info(max_pass_tokens=tokens)
    with live_pool(backend, *engines), big_node(settings_for()) as url:
        delegation = delegating(url) if work == "auto" else None
        async with mlnode(settings_for(), work, engine=engines[0], delegation=delegation) as http:
            if work == "engine":
                await ready(http)
            body = ROUND | {"url": receiver.url}
            reply = await http.post(f"{PREFIX}/init/generate", json=body)
            assert (reply.status_code, reply.json()) == (200, STARTED)
            await until(lambda: len(artifacts_in(receiver.accepted)) > 20)
            if work != "auto":
                reply = await http.post(f"{PREFIX}/generate", json=asked(range(30), wait=True))
                assert [one["nonce"] for one in reply.json()["artifacts"]] == [*range(30)]
            await http.post(f"{PREFIX}/stop")
    num_used = 1 if work == "engine" else 2
    sizes = [{len(batch) for batch in engine.batches} for engine in engines[:num_used]]
    assert all(sizes)
    assert max(set.union(*sizes)) == (8 if work == "engine" else 5)


async def test_a_round_of_distances_is_another_matter(
    backend: Backend, settings_for: SettingsFactory
) -> None:
    """It keeps its routes, and is none of these routes' rounds; either ends the other."""
    live_gpus(backend)
    distances = {"r_target": 1.0, "params": {"seq_len": 8}, "url": "http://127.0.0.1:9/x"}
    async with mlnode(settings_for()) as http:
        reply = await http.post("/api/v1/pow/init/generate", json=ROUND | distances)
        assert reply.json()["pow_status"]["status"] == "GENERATING", reply.text
        assert (await status_of(http))["status"] == "IDLE"
        assert (await http.get("/api/v1/state")).json() == {"state": "POW"}
        body = ROUND | {"url": "http://127.0.0.1:9/x"}
        assert (await http.post(f"{PREFIX}/init/generate", json=body)).json() == STARTED
        assert (await status_of(http))["status"] == "GENERATING"
        assert (await http.get("/api/v1/state")).json() == {"state": "POW"}
        assert (await http.post("/api/v1/stop")).json() == {"status": "OK"}
        assert (await status_of(http))["status"] == "IDLE"
    assert backend.store.active_ids() == []


# Given nonces


async def test_given_nonces_are_computed(backend: Backend, settings_for: SettingsFactory) -> None:
    """Of any node, in their order, each with its artifact."""
    nonces = [9, 2**31 - 1, 4, 0, 7]
    with live_pool(backend, FakeEngine(artifact_of)):
        async with mlnode(settings_for()) as http:
            reply = await http.post(f"{PREFIX}/generate", json=asked(nonces, wait=True))
            answer = reply.json()
            assert reply.status_code == 200, answer
            assert answer.pop("request_id").startswith(f"{PORT}:")
            assert answer == {
                "status": "completed",
                "artifacts": [{"nonce": n, "vector_b64": artifact_of(n)} for n in nonces],
                "encoding": {"dtype": "f16", "k_dim": K_DIM, "endian": "le"},
            }
            empty = await http.post(f"{PREFIX}/generate", json=asked([], wait=True))
            assert empty.json()["artifacts"] == []


async def test_a_request_that_nobody_waits_for(
    backend: Backend, settings_for: SettingsFactory, receiver: Receiver
) -> None:
    """Its result comes to its URL, once, and can be asked for by the name that it was given."""
    async with mlnode(settings_for()) as http:
        with live_pool(backend, FakeEngine(artifact_of)):
            body = asked([3, 1], url=receiver.url)
            reply = await http.post(f"{PREFIX}/generate", json=body)
            answer = reply.json()
            name = answer.pop("request_id")
            assert answer == {"status": "queued", "queued_count": 2}
            port, _, own_id = name.partition(":")
            assert (port, str(uuid.UUID(own_id))) == (str(PORT), own_id)
            await until(lambda: receiver.accepted)
            found = (await http.get(f"{PREFIX}/generate/{name}")).json()
            assert (found["status"], found["request_id"]) == ("completed", name)
            assert [one["nonce"] for one in found["artifacts"]] == [3, 1]
    [(path, sent)] = receiver.received
    assert path.endswith("/generated")
    assert sent == {name: ROUND[name] for name in ("public_key", "block_hash", "block_height")} | {
        "node_id": 1,
        "request_id": own_id,
        "artifacts": [{"nonce": n, "vector_b64": artifact_of(n)} for n in (3, 1)],
        "encoding": {"dtype": "f16", "k_dim": K_DIM, "endian": "le"},
    }


async def test_claims_are_judged(
    backend: Backend, settings_for: SettingsFactory, receiver: Receiver
) -> None:
    """An honest participant and a cheat, both waited for and by callback; the chain's bounds are those of 200 nonces."""
    honest = {nonce: artifact_of(nonce) for nonce in range(200)}
    other = encode([[1.0, 0.0, 0.0, 0.0]])[0]

    def with_wrong(num: int) -> dict[int, str]:
        return honest | dict.fromkeys(range(num), other)

    with live_pool(backend, FakeEngine(artifact_of)):
        async with mlnode(settings_for()) as http:
            for wrong, fraud in ((0, False), (27, False), (28, True)):
                body = claims(with_wrong(wrong), url=receiver.url, public_key=f"key-{wrong}")
                reply = await http.post(f"{PREFIX}/generate", json=body)
                assert reply.json()["queued_count"] == 200
                waited = (await http.post(f"{PREFIX}/generate", json=body | {"wait": True})).json()
                assert (waited["n_total"], waited["n_mismatch"]) == (200, wrong)
                assert waited["fraud_detected"] is fraud
                assert waited["mismatch_nonces"] == list(range(wrong))
            # A request that is waited for tells nobody else.
            await until(lambda: len(receiver.accepted) == 3)
    assert {path.rpartition("/")[2] for path, _ in receiver.received} == {"validated"}
    verdicts = {body["public_key"]: body for body in receiver.accepted}
    assert [v["fraud_detected"] for v in verdicts.values()] == [False, False, True]
    assert set(verdicts["key-28"]) == {
        *("request_id", "block_hash", "block_height", "public_key", "node_id"),
        *("n_total", "n_mismatch", "mismatch_nonces", "p_value", "fraud_detected"),
    }


async def test_a_stop_ends_requests(
    backend: Backend, settings_for: SettingsFactory, receiver: Receiver
) -> None:
    """For good: they are not begun again, nobody is told of them, and the pool is free."""
    live_gpus(backend)
    async with mlnode(settings_for()) as http:
        # No scheduler hands anything out, so it waits.
        reply = await http.post(f"{PREFIX}/generate", json=asked([1], url=receiver.url))
        name = reply.json()["request_id"]
        await until(backend.store.active_ids)
        assert (await http.get(f"{PREFIX}/generate/{name}")).json()["status"] == "running"
        assert (await http.get("/api/v1/state")).json() == {"state": "POW"}
        assert (await http.post(f"{PREFIX}/stop")).json() == STOPPED
        found = (await http.get(f"{PREFIX}/generate/{name}")).json()
        assert found == {
            "status": "failed",
            "request_id": name,
            "error": "Cancelled by /stop.",
        }
        await until(lambda: not backend.store.active_ids())

        async def is_stopped() -> bool:
            return bool((await http.get("/api/v1/state")).json() == {"state": "STOPPED"})

        await until(is_stopped)  # the request knows it a moment later
    with live_pool(backend, FakeEngine(artifact_of)):
        async with mlnode(settings_for()) as http:
            assert (await http.get("/api/v1/state")).json() == {"state": "STOPPED"}
            await http.post(f"{PREFIX}/generate", json=asked([2], wait=True))
    assert receiver.received == []


async def test_a_request_is_answered_whatever_runs(
    backend: Backend, settings_for: SettingsFactory
) -> None:
    """As many as are computed at a time wait for a GPU."""
    gate = threading.Event()

    def waits(_: int) -> None:
        gate.wait(120)

    with live_pool(backend, FakeEngine(artifact_of, waits)):
        async with mlnode(settings_for()) as http:
            try:
                for number in range(AT_ONCE + 4):
                    request = http.post(f"{PREFIX}/generate", json=asked([number]))
                    assert (await asyncio.wait_for(request, 100)).json()["status"] == "queued"
                    running = min(number + 1, AT_ONCE)
                    await until(lambda: len(backend.store.active_ids()) == running)  # noqa: B023
            finally:
                gate.set()


# What cannot be


async def refused(reply: httpx.Response) -> tuple[int, Any]:
    [(key, detail)] = reply.json().items()
    assert key == "detail"
    assert ("Retry-After" in reply.headers) is (reply.status_code in {429, 503})
    return reply.status_code, detail


async def test_without_gpus(backend: Backend, settings_for: SettingsFactory) -> None:
    """In the network's words, whatever is asked for."""
    no_backends = (503, "No vLLM backends available")
    async with mlnode(settings_for()) as http:
        assert await status_of(http) == {"status": "NO_BACKENDS", "backends": []}
        body = ROUND | {"url": "http://127.0.0.1:9/x"}
        assert await refused(await http.post(f"{PREFIX}/init/generate", json=body)) == no_backends
        assert await refused(await http.post(f"{PREFIX}/generate", json=asked([1]))) == no_backends
        reply = await http.post(f"{PREFIX}/stop")
        assert reply.json() == {"status": "OK", "message": "No backends to stop"}
    assert backend.store.list_ids() == []


async def test_a_node_that_only_delegates(backend: Backend, settings_for: SettingsFactory) -> None:
    """Its big node searches; given nonces it computes none. A big node that is away is no backend."""
    live_gpus(backend)
    body = ROUND | {"url": "http://127.0.0.1:9/x"}
    with big_node(settings_for()) as url:
        async with mlnode(settings_for(), "auto", delegation=delegating(url)) as http:
            assert (await status_of(http))["status"] == "IDLE"
            assert (await http.post(f"{PREFIX}/init/generate", json=body)).json() == STARTED
            assert (await status_of(http))["status"] == "GENERATING"
            [round_id] = backend.store.active_ids()
            assert backend.store.status(round_id).spec.scheme == "artifact"
            assert (await http.post(f"{PREFIX}/stop")).json() == STOPPED
            await until(lambda: not backend.store.active_ids())
            reply = await http.post(f"{PREFIX}/generate", json=asked([1]))
            assert await refused(reply) == (503, "No vLLM backends available")
    async with mlnode(settings_for(), "auto", delegation=delegating(url)) as http:
        reply = await http.post(f"{PREFIX}/init/generate", json=body)
        assert await refused(reply) == (503, "No vLLM backends available")


async def test_another_model(backend: Backend, settings_for: SettingsFactory) -> None:
    """A round fails at its backend; a request is refused."""
    live_gpus(backend)
    params = {"params": {"model": "other", "seq_len": 8}}
    async with mlnode(settings_for()) as http:
        body = ROUND | params | {"url": "http://127.0.0.1:9/x"}
        status, detail = await refused(await http.post(f"{PREFIX}/init/generate", json=body))
        [error] = detail["errors"]
        assert (status, error["port"]) == (502, PORT)
        assert error["error"].startswith("Model conflict: asked for 'other'; deployed is twin")
        assert (await status_of(http))["status"] == "IDLE"
        status, detail = await refused(
            await http.post(f"{PREFIX}/generate", json=asked([1]) | params)
        )
        assert (status, detail[:14]) == (409, "Model conflict")


@pytest.mark.parametrize("route", ["init/generate", "generate"])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"params": {"model": "twin", "seq_len": 8, "dim": 4}}, "body.params.dim"),
        ({"params": {"model": "twin", "seq_len": 8, "max_tokens": 256}}, "decode scheme is not"),
        ({"params": {"model": "twin", "seq_len": 8, "scheme": "decode"}}, "decode scheme is not"),
        ({"params": {"model": "twin", "seq_len": 0}}, "params.seq_len is 0; allowed"),
        ({"params": {"model": "twin", "seq_len": 8, "k_dim": 65}}, "params.k_dim is 65; allowed"),
        ({"node_id": 3}, "node_id is 3; allowed"),
        ({"batch_size": 5000}, "batch_size is 5000; allowed"),
        ({"url": "ftp://x"}, "url is 'ftp://x'; allowed"),
    ],
)
async def test_fields_that_cannot_be(
    backend: Backend, settings_for: SettingsFactory, route: str, fields: dict[str, Any], words: str
) -> None:
    """422 and a sentence, and nothing is begun."""
    live_gpus(backend)
    body = asked([1], url="http://127.0.0.1:9/x") | fields
    async with mlnode(settings_for()) as http:
        status, detail = await refused(await http.post(f"{PREFIX}/{route}", json=body))
    assert status == 422
    assert words.removeprefix("body.") in detail
    assert backend.store.list_ids() == []


async def test_a_round_without_a_url(backend: Backend, settings_for: SettingsFactory) -> None:
    """Nobody would get its artifacts."""
    live_gpus(backend)
    async with mlnode(settings_for()) as http:
        status, detail = await refused(await http.post(f"{PREFIX}/init/generate", json=ROUND))
    assert (status, detail[:20]) == (422, "url is None; allowed")


async def test_requests_that_cannot_be(backend: Backend, settings_for: SettingsFactory) -> None:
    """Claims of other nonces, too many nonces, and names that no request has."""
    live_gpus(backend)
    async with mlnode(settings_for()) as http:
        body = claims({1: artifact_of(1)}) | {"nonces": [1, 2]}
        reply = await http.post(f"{PREFIX}/generate", json=body)
        wanted = "validation.artifacts nonces must match nonces field"
        assert await refused(reply) == (400, wanted)
        reply = await http.post(f"{PREFIX}/generate", json=asked(range(100_001)))
        assert await refused(reply) == (429, "Queue full: 0 nonces queued, limit is 100000")
        for name, answer in {
            "abc": (400, "Invalid request_id format (expected port:uuid)"),
            "x:abc": (400, "Invalid port in request_id"),
            f"{PORT}:{uuid.uuid4()}": (404, "Request not found"),
            f"{PORT + 1}:{uuid.uuid4()}": (404, "Request not found"),
            f"{'9' * 5000}:{uuid.uuid4()}": (404, "Request not found"),
        }.items():
            assert await refused(await http.get(f"{PREFIX}/generate/{name}")) == answer
