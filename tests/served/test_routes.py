"""The proof routes over HTTP, beside the inference of the same server: every state and every error."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pocqueue.poc.backoff import Backoff
from pocqueue.poc.batch import Batch
from pocqueue.poc.nonces import MAX_NONCE
from pocqueue.poc.proofs import Proofs
from pocqueue.web.door import digest
from pocqueue.web.failure_limit import MAX_FAILURES
from tests.support.callback_receiver import receiving
from tests.support.engine_client import (
    MAX_BATCH_SIZE,
    MAX_SEQ_LEN,
    distance_of,
    passes_over,
)
from tests.support.served_server import BODY, Server, server_with
from tests.support.waiting import until

_REFUSED = "Invalid auth token; send it as `Authorization: Bearer TOKEN`."
#: Every route, with a body that it takes.
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "init", BODY),
    ("POST", "init/generate", BODY),
    ("POST", "init/validate", BODY),
    ("POST", "phase/generate", None),
    ("POST", "phase/validate", None),
    (
        "POST",
        "validate",
        {
            "public_key": "key-2",
            "block_hash": "block-1",
            "block_height": 7,
            "nonces": [1],
            "dist": [0.5],
        },
    ),
    ("GET", "status", None),
    ("POST", "stop", None),
    ("GET", "model", None),
    (
        "POST",
        "distances",
        {
            "block_hash": "block-1",
            "public_key": "key-1",
            "nonces": [1],
            "batch_size": 4,
            "seq_len": 8,
        },
    ),
]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with server_with() as server:
        yield server


def proof_of(nonces: list[int], **changes: Any) -> dict[str, Any]:
    """Return an honest proof of key-2 for block-1, or one with some fields changed."""
    return {
        "public_key": "key-2",
        "block_hash": "block-1",
        "block_height": 7,
        "nonces": nonces,
        "dist": [distance_of("block-1", "key-2", nonce) for nonce in nonces],
        "node_id": 0,
    } | changes


def valid_nonces(count: int, block_hash: str = "block-1", public_key: str = "key-2") -> list[int]:
    """Return the first valid nonces, for an r_target of 1."""
    found = (n for n in range(10 * count) if distance_of(block_hash, public_key, n) < 1.0)
    return [next(found) for _ in range(count)]


async def threads_and_tasks_get_on() -> None:
    """Give a search that must not begin yet every chance to do so."""
    for _ in range(20):
        await asyncio.to_thread(int)


# The states of a round.


async def test_a_fresh_server_is_idle(server: Server) -> None:
    """The fields of the manager's status, the requests that run, and what clients of artifacts read."""
    assert await server.status() == {
        "status": "IDLE",
        "config": None,
        "stats": None,
        "state": "IDLE",
        "valid_nonces": [],
        "valid_distances": [],
        "total_checked": 0,
        "total_valid": 0,
        "elapsed_seconds": 0.0,
        "rate_per_second": 0.0,
        "total_nonfinite": 0,
        "failed": False,
        "error": None,
        "running_requests": 0,
        "valid_from": 0,
        "callbacks_waiting": 0,
        "callbacks_dropped": 0,
        "callbacks_error": None,
    }


async def test_init_sets_up_and_starts_nothing(server: Server) -> None:
    """The gate stays open and the engine is not asked."""
    assert (await server.post("init"))["state"] == "IDLE"
    assert await server.serves()
    assert server.twin.calls == []


async def test_generate_searches_the_nodes_nonces(server: Server) -> None:
    """Batch by batch, of the round's shape; those below r_target are kept."""
    server.twin.hold_after = 4
    await server.post("init", node_id=2, node_count=5)
    assert (await server.post("phase/generate"))["state"] == "GENERATING"
    await until(lambda: server.twin.running)
    status = await server.status()
    searched = [2 + 5 * index for index in range(12)]
    valid = [n for n in searched if distance_of("block-1", "key-1", n) < 1.0]
    assert status["state"] == "GENERATING"
    assert (status["total_checked"], status["total_valid"]) == (12, len(valid))
    assert status["valid_nonces"] == valid
    assert status["valid_distances"] == [distance_of("block-1", "key-1", n) for n in valid]
    assert status["elapsed_seconds"] > 0
    assert status["rate_per_second"] > 0
    first, second = (
        Batch("block-1", "key-1", nonces, 4, 8).to_wire()
        for nonces in ((2, 7, 12, 17), (22, 27, 32, 37))
    )
    # The workers hear of the next batch while they compute one.
    assert server.twin.calls[0] == ("poc_values", (first, second))


async def test_the_status_has_all_valid_nonces(server: Server) -> None:
    """However many; so has the answer to a stop. With `since` those that the client does not have yet."""
    server.twin.gate.clear()
    await server.post("init/generate")
    nonces, distances = list(range(2**62, 2**62 + 40_000)), [n / 80_000 for n in range(40_000)]
    server.prover.found.keep(Proofs(nonces[:20_000], distances[:20_000]))
    server.prover.found.keep(Proofs(nonces[20_000:], distances[20_000:]))
    for status in (await server.status(), await server.post("stop")):
        assert (status["total_valid"], status["valid_from"]) == (40_000, 0)
        assert status["valid_nonces"] == nonces
        assert status["valid_distances"] == distances
    for since in (1, 19_999, 39_999, 40_000):
        status = (await server.pow("GET", f"status?since={since}")).json()
        assert (status["total_valid"], status["valid_from"]) == (40_000, since)
        assert status["valid_nonces"] == nonces[since:]
        assert status["valid_distances"] == distances[since:]
    assert await server.refusal("GET", "status?since=-1") == (
        422,
        "since is '-1'; allowed: a whole number of at least 0.",
    )


async def test_the_status_tells_of_callbacks() -> None:
    """How many nonces wait for the receiver, and why it did not take them; after the stop as well."""
    async with receiving() as receiver, server_with(backoff=Backoff(0.001, 0.004)) as server:
        receiver.statuses = itertools.repeat(503)
        server.twin.hold_after = 3
        await server.post("init/generate", r_target=2.0, callback_url=receiver.url)
        await until(lambda: server.twin.running)
        await until(lambda: server.prover.status()["callbacks_error"])
        for status in (await server.post("stop"), await server.status()):
            told = [status[f"callbacks_{name}"] for name in ("waiting", "dropped", "error")]
            assert told == [8, 0, "HTTP 503"]
        receiver.statuses = iter(())
        await until(lambda: not server.prover.status()["callbacks_waiting"])
        assert (await server.status())["callbacks_error"] is None
        assert [n for body in receiver.accepted for n in body["nonces"]] == list(range(8))


async def test_every_way_between_the_states(server: Server) -> None:
    """Searching, validating, searching on, stopping, starting again: state and gate go together."""
    steps = [
        ("init", "IDLE"),
        ("phase/validate", "VALIDATING"),
        ("phase/validate", "VALIDATING"),
        ("phase/generate", "GENERATING"),
        ("phase/generate", "GENERATING"),
        ("phase/validate", "VALIDATING"),
        ("init", "IDLE"),
        ("stop", "STOPPED"),
        ("phase/validate", "VALIDATING"),
        ("stop", "STOPPED"),
        ("phase/generate", "GENERATING"),
        ("stop", "STOPPED"),
        ("stop", "STOPPED"),
        ("init/generate", "GENERATING"),
        ("stop", "STOPPED"),
        ("init/validate", "VALIDATING"),
        ("init/generate", "GENERATING"),
        ("phase/validate", "VALIDATING"),
        ("init/validate", "VALIDATING"),
        ("stop", "STOPPED"),
        ("init", "IDLE"),
    ]
    for route, state in steps:
        assert (await server.post(route))["state"] == state, route
        assert (await server.status())["state"] == state, route
        assert await server.serves() is (state in {"IDLE", "STOPPED"}), route
        assert (await server.status())["failed"] is False, route


async def test_init_while_validating_opens_the_gate(server: Server) -> None:
    """The round that validated is over, its results are forgotten."""
    server.twin.hold_after = 3
    await server.post("init/generate")
    await until(lambda: server.twin.running)
    assert (await server.post("phase/validate"))["total_checked"] == 8
    assert not await server.serves()
    status = await server.post("init", block_hash="block-2")
    assert (status["state"], status["total_checked"]) == ("IDLE", 0)
    assert await server.serves()


async def test_generating_twice_is_one_search(server: Server) -> None:
    """The second request changes nothing: each nonce is searched once, in order."""
    await server.post("init/generate", r_target=2.0)
    await server.post("phase/generate")
    await asyncio.gather(*(server.post("phase/generate") for _ in range(4)))
    await until(lambda: server.twin.answered >= 20)
    searches = [task for task in asyncio.all_tasks() if task.get_name() == "poc-generate"]
    assert len(searches) == 1
    status = await server.post("stop")
    assert status["valid_nonces"] == list(range(status["total_checked"]))
    await passes_over(server.twin)
    flat = [nonce for batch in server.twin.batches for nonce in batch]
    assert flat == list(range(len(flat)))
    assert server.twin.most_running == 1


async def test_a_search_goes_on_after_validating(server: Server) -> None:
    """From where it stood; what was found before is kept."""
    server.twin.hold_after = 3
    await server.post("init/generate", r_target=2.0)
    await until(lambda: server.twin.running)
    await server.post("phase/validate")
    server.twin.hold_after = 5
    server.twin.gate.set()
    await passes_over(server.twin)
    await server.post("phase/generate")
    await until(lambda: server.twin.running)
    # The batch that the change of phase overtook, 8 to 11, was thrown away.
    assert (await server.post("stop"))["valid_nonces"] == [*range(8), *range(12, 16)]


async def test_init_while_generating_is_a_conflict(server: Server) -> None:
    """The search goes on; the sentence says how to end it."""
    await server.post("init/generate")
    for route in ("init", "init/generate", "init/validate"):
        code, sentence = await server.refusal("POST", route, BODY | {"block_hash": "block-2"})
        assert code == 409
        assert sentence == "Round already in progress. POST /api/v1/pow/stop ends it."
    assert (await server.status())["state"] == "GENERATING"
    assert {args[0][0] for _, args in server.twin.calls} <= {"block-1"}


async def test_what_needs_a_round_says_that_there_is_none(server: Server) -> None:
    """In the words that clients know; a stop needs none."""
    for route in ("phase/generate", "phase/validate"):
        assert await server.refusal("POST", route) == (400, "PoC not initialized")
    assert await server.refusal("POST", "validate", proof_of([1])) == (400, "No round configured")
    assert (await server.post("stop"))["state"] == "STOPPED"
    assert await server.serves()


# What a round is described with.


@pytest.mark.parametrize("route", ["init", "init/generate", "init/validate"])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"r_target": None}, "PoC config missing r_target"),
        ({"node_id": -1}, "Node ID and node count must be set"),
        ({"node_count": -1}, "Node ID and node count must be set"),
        ({"node_id": -1, "node_count": -1}, "Node ID and node count must be set"),
    ],
)
async def test_what_older_clients_leave_out(
    server: Server, route: str, changes: dict[str, Any], sentence: str
) -> None:
    """400 in the words that they know; nothing changes."""
    assert await server.refusal("POST", route, BODY | changes) == (400, sentence)
    assert (await server.status())["state"] == "IDLE"
    assert await server.serves()


async def test_a_target_left_out_is_a_target_missing(server: Server) -> None:
    """Null or not there is the same."""
    body = {name: value for name, value in BODY.items() if name != "r_target"}
    assert await server.refusal("POST", "init", body) == (400, "PoC config missing r_target")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("block_hash", "", "1 to 256 printable characters"),
        ("block_hash", "a\nb", "1 to 256 printable characters"),
        ("block_hash", 7, "1 to 256 printable characters"),
        ("public_key", " ", "1 to 256 characters, not all of them blank"),
        ("block_height", -1, "a whole number from 0 to"),
        ("block_height", 2**63, "a whole number from 0 to"),
        ("r_target", 0, "a number above 0"),
        ("r_target", -1, "a number above 0"),
        ("r_target", "low", "a number above 0"),
        ("fraud_threshold", 1, "a number above 0 and below 1"),
        ("node_id", -2, "a whole number from 0 to node_count - 1"),
        ("node_id", 1, "a whole number from 0 to node_count - 1 = 0"),
        ("node_count", 0, "a whole number from 1 to"),
        ("node_count", -2, "a whole number from 1 to"),
        ("batch_size", 0, "a whole number of at least 1"),
        ("batch_size", MAX_BATCH_SIZE + 1, f"1 to {MAX_BATCH_SIZE}"),
        ("seq_len", 0, "a whole number from 1 to the model's limit"),
        ("seq_len", MAX_SEQ_LEN + 1, f"1 to {MAX_SEQ_LEN}, the limit of model twin"),
        ("callback_url", "ftp://host/", "an http:// or https:// URL"),
        ("callback_url", "http://user:word@host/", "a URL without a user name or password"),
    ],
)
async def test_a_bad_field_is_named_with_what_is_allowed(
    server: Server, field: str, value: Any, allowed: str
) -> None:
    """422 and one sentence; nothing changes, not even a round that validates."""
    await server.post("init/validate")
    code, sentence = await server.refusal("POST", "init/generate", BODY | {field: value})
    assert code == 422
    given = repr(value).replace("user:word@", "…@")
    assert sentence.startswith(f"{field} is {given}; allowed: {allowed}")
    assert (await server.status())["state"] == "VALIDATING"
    assert not await server.serves()
    assert server.twin.calls == []


async def test_wishes_of_older_clients_are_taken(server: Server) -> None:
    """With what became of them in the answer; 16 is the most that this server runs."""
    body = BODY | {"r_target": 10, "batch_size": 5000}
    answer = (await server.pow("POST", "init/generate", body)).json()
    assert answer["warnings"] == [
        "r_target is 10, and no distance is above 2: every nonce is valid",
        "batch_size 5000 is above 4096, so 16 is taken",
    ]
    await until(lambda: server.twin.calls)
    assert server.twin.calls[0][1][0][3] == MAX_BATCH_SIZE
    assert (await server.pow("POST", "stop")).json()["warnings"] == []


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
async def test_no_number_is_no_target(server: Server, value: str) -> None:
    """JSON has no words for it, but Python reads them."""
    text = json.dumps(BODY).replace('"r_target": 1.0', f'"r_target": {value}')
    headers = {"Content-Type": "application/json"}
    response = await server.http.post("/api/v1/pow/init", content=text, headers=headers)
    assert response.status_code == 422
    assert "allowed: a number above 0" in response.json()["detail"]


@pytest.mark.parametrize("field", ["block_hash", "block_height", "public_key"])
async def test_a_missing_field_is_named(server: Server, field: str) -> None:
    """Without repeating the others."""
    body = {name: value for name, value in BODY.items() if name != field}
    assert await server.refusal("POST", "init", body) == (422, f"{field} is missing.")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "body is missing."),
        (b"{", "The body is not a JSON object."),
        (b"[]", "The body is not a JSON object."),
    ],
)
async def test_a_body_that_is_none(server: Server, content: bytes, sentence: str) -> None:
    """422 as well."""
    headers = {"Content-Type": "application/json"}
    response = await server.http.post("/api/v1/pow/init", content=content, headers=headers)
    assert response.status_code == 422
    assert response.json()["detail"].startswith(sentence)


async def test_fields_of_other_generations_are_ignored(server: Server) -> None:
    """Clients send more than this server needs."""
    status = await server.post("init", params={"dim": 2048}, url="http://elsewhere", group_id=0)
    assert status["state"] == "IDLE"


# Inference beside rounds.


async def test_running_requests_end_before_the_first_batch(server: Server) -> None:
    """They are told of in the status; new ones are refused meanwhile."""
    running = [server.completion() for _ in range(3)]
    await until(lambda: server.prover.gate.running == 3)
    assert (await server.post("init/generate"))["state"] == "GENERATING"
    assert (await server.status())["running_requests"] == 3
    assert (await server.completion()).status_code == 503
    await threads_and_tasks_get_on()
    server.finish.set()
    assert [(await task).status_code for task in running] == [200] * 3
    await until(lambda: server.twin.answered)
    assert server.events[:4] == ["completion"] * 3 + ["batch"]
    assert (await server.status())["running_requests"] == 0


async def test_a_round_begins_beside_requests_that_take_too_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After drain_s, and they still run to their end."""
    async with server_with(drain_s=0.01) as server:
        running = server.completion()
        await until(lambda: server.prover.gate.running)
        await server.post("init/generate")
        await until(lambda: server.twin.answered >= 2)
        assert "1 requests still run" in caplog.text
        assert (await server.status())["running_requests"] == 1
        server.finish.set()
        assert (await running).json() == {"text": "w1 w2"}
        assert (await server.status())["state"] == "GENERATING"


async def test_a_stop_while_requests_are_waited_for(server: Server) -> None:
    """The round ends without a batch."""
    running = server.completion()
    await until(lambda: server.prover.gate.running)
    await server.post("init/generate")
    await threads_and_tasks_get_on()
    assert (await server.post("stop"))["total_checked"] == 0
    server.finish.set()
    assert (await running).status_code == 200
    assert await server.serves()
    assert server.twin.batches == []


async def test_a_stream_that_began_before_runs_to_its_end() -> None:
    """A round, its first batches and its end later."""
    async with server_with(drain_s=0.01) as server:
        stream = asyncio.create_task(server.http.post("/v1/stream"))
        await until(lambda: server.events)
        await server.post("init/generate")
        await until(lambda: server.twin.answered >= 2)
        assert (await server.http.post("/v1/stream")).status_code == 503
        await server.post("stop")
        server.finish.set()
        response = await stream
        assert (response.status_code, response.text) == (200, "first second")
        assert (await server.status())["running_requests"] == 0


@pytest.mark.parametrize("route", ["init/generate", "init/validate"])
async def test_refused_requests_are_told_when_to_come_again(server: Server, route: str) -> None:
    """503 with Retry-After and the error body that OpenAI clients read."""
    await server.post(route)
    response = await server.completion()
    assert response.status_code == 503
    assert 1 <= int(response.headers["Retry-After"]) <= 60
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("service_unavailable", None, 503)
    assert error["message"].startswith("PoC generation is active. ")
    assert "completion" not in server.events


async def test_other_routes_pass_a_closed_gate(server: Server) -> None:
    """Health, lists, text tools, and the proof's own routes."""
    await server.post("init/generate")
    for path in ("/health", "/v1/models"):
        assert (await server.http.get(path)).status_code == 200
    assert (await server.http.post("/tokenize")).status_code == 200
    for method, route, body in ROUTES:
        if method == "GET" or route in {"distances", "validate"}:
            assert (await server.pow(method, route, body)).status_code == 200, route


async def test_a_stop_does_not_wait_for_the_batch_at_hand(server: Server) -> None:
    """It is answered at once, the gate is open for the next request, the batch is thrown away."""
    server.twin.hold_after = 3
    await server.post("init/generate", r_target=2.0)
    await until(lambda: server.twin.running)
    status = await server.post("stop")
    assert (status["state"], status["total_checked"]) == ("STOPPED", 8)
    assert await server.serves()
    assert server.twin.running == 1
    server.twin.gate.set()
    await until(lambda: server.twin.answered == 3)
    await passes_over(server.twin)
    status = await server.status()
    assert (status["total_checked"], status["valid_nonces"]) == (8, list(range(8)))
    assert len(server.twin.batches) == 3


async def test_a_round_that_nobody_stops_ends_by_itself() -> None:
    """As failed, with the reason, though the engine hangs; the gate is open."""
    async with server_with(max_round_s=0.02) as server:
        server.twin.gate.clear()
        await server.post("init/generate")
        await until(lambda: not server.prover.gate.closed)
        status = await server.status()
        assert (status["state"], status["failed"]) == ("STOPPED", True)
        assert "nobody stopped the round within" in status["error"]
        assert await server.serves()


# Engines that fail.


async def test_an_engine_that_raises_ends_the_round(server: Server) -> None:
    """The reason stays in the status, inference goes on, and the next round works."""
    server.twin.failure = RuntimeError("CUDA out of memory")
    await server.post("init/generate")
    await until(lambda: not server.prover.gate.closed)
    status = await server.status()
    assert (status["state"], status["failed"]) == ("STOPPED", True)
    assert status["error"] == "The engine failed: CUDA out of memory"
    assert await server.serves()
    server.twin.failure = None
    status = await server.post("init/generate")
    assert (status["state"], status["failed"], status["error"]) == ("GENERATING", False, None)
    answered = server.twin.answered
    await until(lambda: server.twin.answered > answered + 2)


async def test_an_engine_that_dies_ends_the_round(server: Server) -> None:
    """From then on what needs it is answered with 503; status and stop work."""
    server.twin.hold_after = 2
    await server.post("init/generate", r_target=2.0)
    await until(lambda: server.twin.running)
    server.twin.dies = True
    server.twin.gate.set()
    await until(lambda: not server.prover.gate.closed)
    status = await server.status()
    assert (status["state"], status["failed"]) == ("STOPPED", True)
    assert "vLLM's engine died" in status["error"]
    assert status["valid_nonces"] == [0, 1, 2, 3]
    for method, route, body in ROUTES:
        response = await server.pow(method, route, body)
        if route in {"status", "stop", "model"}:
            assert response.status_code == 200, route
        else:
            assert response.status_code == 503, route
            assert response.json()["detail"].startswith("Engine not available: "), route
    assert not server.prover.gate.closed


async def test_an_engine_that_does_not_answer_ends_the_round() -> None:
    """Its time for a batch is bounded."""
    async with server_with(pass_timeout_s=0.02) as server:
        server.twin.gate.clear()
        await server.post("init/generate")
        await until(lambda: not server.prover.gate.closed)
        status = await server.status()
        assert (status["state"], status["failed"]) == ("STOPPED", True)
        assert status["error"] == "Engine not available: no answer to a batch within 0 s."
        assert await server.serves()


async def test_nan_is_counted_and_never_valid(server: Server) -> None:
    """Null where distances are asked for, an invalid nonce where a proof is checked."""
    server.twin.is_nan = lambda nonce: nonce % 2 == 1
    server.twin.hold_after = 3
    await server.post("init/generate", r_target=2.0)
    await until(lambda: server.twin.running)
    status = await server.post("stop")
    assert (status["total_checked"], status["total_nonfinite"]) == (8, 4)
    assert status["valid_nonces"] == [0, 2, 4, 6]
    server.twin.gate.set()
    answer = (await server.pow("POST", "validate", proof_of([2, 3]))).json()
    assert answer["computed_distances"] == [distance_of("block-1", "key-2", 2), None]
    assert (answer["n_invalid"], answer["fraud_detected"]) == (1, True)
    body = ROUTES[-1][2] | {"nonces": [2, 3]}
    answer = (await server.pow("POST", "distances", body)).json()
    assert answer["distances"] == [distance_of("block-1", "key-1", 2), None]


# Proofs of others.


@pytest.mark.parametrize("route", ["init", "init/generate", "init/validate"])
async def test_an_honest_proof_is_no_fraud(server: Server, route: str) -> None:
    """In any state, also while searching; more nonces than a batch, in any order."""
    await server.post(route)
    nonces = valid_nonces(11)[::-1]
    response = await server.pow("POST", "validate", proof_of(nonces))
    assert response.json() == {
        "status": "OK",
        "fraud_detected": False,
        "computed_distances": [distance_of("block-1", "key-2", nonce) for nonce in nonces],
        "n_invalid": 0,
        "probability_honest": 1.0,
    }


@pytest.mark.parametrize("fraud", ["fabricated", "key", "block", "own"])
async def test_fraud_is_found(server: Server, fraud: str) -> None:
    """Made-up nonces, somebody else's, those of another block, and claims that are not valid at all."""
    proofs = {
        "fabricated": proof_of(list(range(20)), dist=[0.1] * 20),
        "key": proof_of(valid_nonces(20), public_key="key-3"),
        "block": proof_of(
            nonces := valid_nonces(20, "block-0"),
            block_hash="block-0",
            dist=[distance_of("block-0", "key-2", nonce) for nonce in nonces],
        ),
        "own": proof_of(valid_nonces(20), dist=[1.0] * 20),
    }
    await server.post("init/validate")
    answer = (await server.pow("POST", "validate", proofs[fraud])).json()
    assert answer["fraud_detected"] is True
    assert answer["n_invalid"] >= 5
    assert answer["probability_honest"] < 0.01
    assert {args[0][0] for _, args in server.twin.calls} == {"block-1"}
    assert (await server.status())["state"] == "VALIDATING"


async def test_the_threshold_is_the_rounds(server: Server) -> None:
    """One nonce in twenty is fraud or not, as the round says."""
    invalid = next(n for n in range(100) if distance_of("block-1", "key-2", n) > 1.0)
    proof = proof_of([*valid_nonces(19), invalid])
    for threshold, fraud in ((0.01, True), (0.009, False)):
        await server.post("init/validate", fraud_threshold=threshold)
        answer = (await server.pow("POST", "validate", proof)).json()
        assert (answer["n_invalid"], answer["fraud_detected"]) == (1, fraud)


async def test_an_empty_proof_is_no_fraud(server: Server) -> None:
    """And takes no pass."""
    await server.post("init/validate")
    answer = (await server.pow("POST", "validate", proof_of([]))).json()
    assert (answer["fraud_detected"], answer["computed_distances"]) == (False, [])
    assert server.twin.calls == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dist": [0.5]}, "dist is 'a list of 1'; allowed: one distance for each nonce"),
        ({"dist": None}, "dist is None; allowed: "),
        ({"nonces": [1, -1]}, "nonces.1 is -1; allowed: "),
        ({"nonces": [1, MAX_NONCE + 1]}, f"nonces.1 is {MAX_NONCE + 1}; allowed: "),
        ({"nonces": [1, 2.5]}, "nonces.1 is 2.5; allowed: "),
        ({"nonces": [1, "x"]}, "nonces.1 is 'x'; allowed: "),
        ({"nonces": [0] * 100_001}, "nonces is [0, 0"),
        ({"public_key": ""}, "public_key is ''; allowed: "),
    ],
)
async def test_a_proof_that_is_none_is_refused(
    server: Server, changes: dict[str, Any], sentence: str
) -> None:
    """422 with field, value and what is allowed; the round goes on."""
    await server.post("init/validate")
    code, text = await server.refusal("POST", "validate", proof_of([1, 2]) | changes)
    assert code == 422
    assert text.startswith(sentence)
    assert len(text) < 300
    assert server.twin.calls == []
    assert (await server.status())["state"] == "VALIDATING"


async def test_the_verdict_goes_to_the_callback(server: Server) -> None:
    """Beside the answer."""
    async with receiving() as receiver:
        await server.post("init/validate", callback_url=receiver.url)
        answer = (await server.pow("POST", "validate", proof_of([1, 2]))).json()
        await until(lambda: receiver.accepted)
        [(path, body)] = receiver.received
        assert path == "/v1/poc-batches/validated"
        assert body["computed_distances"] == answer["computed_distances"]
        assert body["received_distances"] == proof_of([1, 2])["dist"]
        assert body["fraud_detected"] == answer["fraud_detected"]


# What workers with engine vllm-server use.


async def test_the_model_is_described(server: Server) -> None:
    """What the engine is made of, and the most sequences of a pass."""
    answer = (await server.pow("GET", "model")).json()
    limits = {"max_batch_size": MAX_BATCH_SIZE, "max_tokens": None}
    assert answer == server.prover.model.info.to_dict() | limits


async def test_distances_are_computed_beside_everything_else(server: Server) -> None:
    """With no round and an open gate; with the model that they are of."""
    body = ROUTES[-1][2] | {"block_hash": "block-9", "nonces": [4, 2]}
    answer = (await server.pow("POST", "distances", body)).json()
    assert answer == {
        "distances": [distance_of("block-9", "key-1", nonce) for nonce in (4, 2)],
        "fingerprint": server.prover.model.info.fingerprint,
        "dtype": "float32",
    }
    assert await server.serves()


async def test_what_comes_next_is_passed_on(server: Server) -> None:
    """The workers get the upcoming batch with the present one; the answer is of the present one."""
    body = ROUTES[-1][2] | {"nonces": [4]}
    upcoming = body | {"nonces": [8, 9]}
    answer = (await server.pow("POST", "distances", body | {"upcoming": upcoming})).json()
    assert len(answer["distances"]) == 1
    assert server.twin.calls[-1][1][1][2] == [8, 9]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"nonces": list(range(5))}, "nonces is '5 of them'; allowed: at most batch_size, here 4"),
        ({"batch_size": MAX_BATCH_SIZE + 1}, "batch_size is 17; allowed: 1 to 16"),
        ({"seq_len": MAX_SEQ_LEN + 1}, "seq_len is 65; allowed: 1 to 64"),
        ({"nonces": [-1]}, "nonces.0 is -1; allowed: "),
    ],
)
async def test_distances_that_cannot_be_computed(
    server: Server, changes: dict[str, Any], sentence: str
) -> None:
    """422 with field, value and what is allowed."""
    code, text = await server.refusal("POST", "distances", ROUTES[-1][2] | changes)
    assert code == 422
    assert text.startswith(sentence)
    assert server.twin.calls == []


async def test_a_model_without_a_fingerprint_is_not_described(server: Server) -> None:
    """Workers wait; rounds do not need it."""
    server.state.model_error = "the model's weights are being hashed"
    expected = (503, "Engine not available: the model's weights are being hashed.")
    assert await server.refusal("GET", "model") == expected
    assert await server.refusal("POST", "distances", ROUTES[-1][2]) == expected
    assert (await server.post("init/generate"))["state"] == "GENERATING"


# Who may, and whether the routes work at all.


@pytest.mark.parametrize("method, route, body", ROUTES)  # noqa: PT006 - one row a route
async def test_a_token_opens_the_routes(server: Server, method: str, route: str, body: Any) -> None:
    """Any of those there are; 401 and no effect without one."""
    server.state.tokens = [digest(token) for token in ("one", "two")]
    for header in (None, "one", "Bearer", "Bearer three", "Basic one", "Bearer onetwo", "Bearer é"):
        headers = {} if header is None else {"Authorization": header.encode()}
        response = await server.pow(method, route, body, headers=headers)
        assert response.status_code == 401, header
        assert response.json()["detail"].startswith("Invalid auth token"), header
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert server.twin.calls == []
    assert server.prover.status()["state"] == "IDLE"
    for header in ("Bearer one", "bearer two", "Bearer  two "):
        response = await server.pow(method, route, body, headers={"Authorization": header})
        assert response.status_code != 401, header
        server.prover.stop()


async def test_without_a_token_nothing_is_said_of_the_fields(server: Server) -> None:
    """The token is looked at first."""
    server.state.tokens = [digest("one")]
    assert (await server.pow("POST", "init", {"r_target": 3})).status_code == 401
    headers = {"Authorization": "Bearer one"}
    assert (await server.pow("POST", "init", {"r_target": 3}, headers=headers)).status_code == 422


async def test_guesses_are_limited(server: Server) -> None:
    """After so many wrong tokens in a minute; the right one gets in, and inference goes on."""
    server.state.tokens = [digest("one")]
    for number in range(MAX_FAILURES + 1):
        headers = {"Authorization": f"Bearer guess-{number}"}
        response = await server.pow("GET", "status", headers=headers)
        assert response.status_code == (401 if number < MAX_FAILURES else 429)
    right = await server.pow("GET", "status", headers={"Authorization": "Bearer one"})
    assert right.status_code == 200
    assert 1 <= int(response.headers["Retry-After"]) <= 60
    assert await server.serves()


async def test_a_refusal_leaves_a_line(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Address, route and reason, and no token; large bodies are refused at these routes only."""
    server.state.tokens = [digest("one")]
    await server.pow("POST", "init", BODY, headers={"Authorization": "Bearer a-guess"})
    right = {"Authorization": "Bearer one"}
    await server.pow("POST", "init", {"r_target": 3}, headers=right)
    large = b" " * (17 << 20)
    reply = await server.http.post("/api/v1/pow/validate", content=large, headers=right)
    assert reply.status_code == 413
    assert (await server.http.post("/tokenize", content=large)).status_code != 413
    lines = [line for line in caplog.messages if line.startswith("Refused")]
    assert lines[0] == f"Refused POST /api/v1/pow/init from 127.0.0.1: 401 {_REFUSED}"
    assert lines[1].startswith("Refused POST /api/v1/pow/init from 127.0.0.1: 422 block_hash is")
    assert lines[2].startswith("Refused POST /api/v1/pow/validate from 127.0.0.1: 413 The body is")
    assert "a-guess" not in caplog.text


@pytest.mark.parametrize("method, route, body", ROUTES)  # noqa: PT006 - one row a route
async def test_a_server_without_an_engine_says_why(
    server: Server, method: str, route: str, body: Any
) -> None:
    """503 while it starts and where the proof cannot be made."""
    server.state.artifacts = None
    assert await server.refusal(method, route, body) == (
        503,
        "Engine not available: the server is still starting.",
    )
    server.state.reason = "PoC not enabled: this server has no engine."
    assert await server.refusal(method, route, body) == (503, server.state.reason)


async def test_unknown_routes_are_404(server: Server) -> None:
    """Also with the right token."""
    assert (await server.pow("GET", "nothing")).status_code == 404
    assert (await server.pow("GET", "init")).status_code == 405
