"""The network's routes for artifacts over HTTP, beside inference and the routes of distances."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from pocqueue.poc.backoff import Backoff
from pocqueue.served.found import Found
from pocqueue.settings import ArtifactSettings
from tests.support.callback_receiver import answering, receiving
from tests.support.engine_client import (
    MAX_BATCH_SIZE,
    MAX_SEQ_LEN,
    artifact_of,
    passes_over,
    round_of,
)
from tests.support.ports import free_port
from tests.support.served_server import BODY, Server, server_with
from tests.support.waiting import until

#: Posts at once, and again at once.
QUICK: dict[str, Any] = {
    "settings": ArtifactSettings(callback_interval_sec=0),
    "backoff": Backoff(0.001, 0.004),
    "refusal_backoff": Backoff(0.001, 0.004),
}
ROUND: dict[str, Any] = {
    "block_hash": "9F2C",
    "block_height": 7,
    "public_key": "02ab",
    "node_id": 1,
    "node_count": 3,
    "batch_size": 4,
    "params": {"model": "twin", "seq_len": 16},
}
STARTED = {"status": "OK", "pow_status": {"status": "GENERATING"}}
STOPPED = {"status": "OK", "pow_status": {"status": "STOPPED"}}
IDLE = {"status": "IDLE", "config": None, "stats": None}


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with server_with(**QUICK) as server:
        yield server


def artifacts(nonces: Sequence[int], key: str = "02ab") -> list[dict[str, Any]]:
    return [{"nonce": nonce, "vector_b64": artifact_of("9F2C", key, nonce)} for nonce in nonces]


async def answered(server: Server, route: str, body: Any = None) -> Any:
    """Return the answer to a POST, which is 200."""
    response = await server.pow("POST", route, body)
    assert response.status_code == 200, response.text
    return response.json()


async def start(server: Server, **changes: Any) -> None:
    assert await answered(server, "init/generate", ROUND | changes) == STARTED


async def generate(server: Server, nonces: Sequence[int], **changes: Any) -> Any:
    return await answered(server, "generate", ROUND | {"nonces": list(nonces)} | changes)


async def request_of(server: Server, request_id: str) -> dict[str, Any]:
    """Return how a request stands."""
    response = await server.pow("GET", f"generate/{request_id}")
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def completed(server: Server, request_id: str) -> dict[str, Any]:
    """Return a request once it is over."""

    async def is_over() -> bool:
        return (await request_of(server, request_id))["status"] in {"completed", "failed"}

    await until(is_over)
    return await request_of(server, request_id)


# Rounds


async def test_a_round_from_start_to_stop(server: Server) -> None:
    """Every finite nonce of the node's counts, until the stop; then it is as if there had been no round."""
    server.twin.is_nan = lambda nonce: nonce == 4
    async with receiving() as receiver:
        server.twin.hold_after = 3
        await start(server, url=receiver.url)
        await until(lambda: server.twin.running)
        status = await server.status()
        assert {name: status[name] for name in ("status", "config")} == {
            "status": "GENERATING",
            "config": {
                "block_hash": "9F2C",
                "block_height": 7,
                "public_key": "02ab",
                "node_id": 1,
                "node_count": 3,
                "group_id": 0,
                "n_groups": 1,
                "seq_len": 16,
                "k_dim": 12,
            },
        }
        assert status["stats"]["total_processed"] == 8
        assert status["stats"]["nonces_per_second"] > 0
        assert await answered(server, "stop", {"any": "thing"}) == STOPPED
        stopped = await server.status()
        assert IDLE.items() <= stopped.items()
        assert (stopped["failed"], stopped["error"]) == (False, None)
        await until(lambda: sum(len(body["artifacts"]) for body in receiver.accepted) == 7)
    assert {path for path, _ in receiver.received} == {"/v1/poc-batches/generated"}
    sent = [artifact for body in receiver.accepted for artifact in body["artifacts"]]
    assert sent == artifacts([1, 7, 10, 13, 16, 19, 22])
    assert {k: v for k, v in receiver.accepted[0].items() if k != "artifacts"} == {
        "public_key": "02ab",
        "block_hash": "9F2C",
        "block_height": 7,
        "node_id": 1,
        "encoding": {"dtype": "f16", "k_dim": 12, "endian": "le"},
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"node_id": 0, "node_count": 1}, [0, 1, 2, 3]),
        ({"node_id": 0, "node_count": 2, "group_id": 1, "n_groups": 2}, [2, 6, 10, 14]),
        ({"node_id": 1, "node_count": 3, "group_id": 0, "n_groups": 1}, [1, 4, 7, 10]),
        ({"node_id": 1, "node_count": 2, "group_id": 1, "n_groups": 2}, [3, 7, 11, 15]),
    ],
)
async def test_nodes_and_groups_share_the_nonces(
    server: Server, changes: dict[str, Any], expected: list[int]
) -> None:
    server.twin.hold_after = 1
    await start(server, **changes)
    await until(lambda: server.twin.running)
    assert server.twin.batches == [expected]


async def test_what_a_request_says_reaches_the_engine(server: Server) -> None:
    """The stronger RNG, the size of an artifact and of a pass; by default 32 nonces, or what the model takes."""
    server.twin.hold_after = 1
    body = {name: value for name, value in ROUND.items() if name != "batch_size"}
    params = {"model": "/models/twin", "seq_len": 16, "k_dim": 8}
    await answered(server, "init/generate", body | {"params": params, "poc_stronger_rng": True})
    await until(lambda: server.twin.running)
    (fields, _) = server.twin.calls[0][1]
    assert fields[3:] == [
        MAX_BATCH_SIZE,
        16,
        "artifact",
        (("k_dim", 8), ("stronger_rng", True)),
    ]


async def test_no_nonce_has_more_than_31_bits(server: Server) -> None:
    """The round ends with the last one, and says why."""
    count = 2**30
    await start(server, node_id=1, node_count=count)
    await until(lambda: not server.prover.is_generating)
    assert server.twin.batches == [[1, 1 + count]]
    status = await server.status()
    assert IDLE.items() <= status.items()
    assert "all that this node has are searched" in status["error"]
    assert await server.serves()


def test_the_last_batch_is_what_is_left() -> None:
    """Of distances too, at the end of 64 bits."""
    asked = round_of(node_id=0, node_count=2**31 - 1)
    last = (2**63 - 1) // (2**31 - 1)
    found = Found(next_index=last - 5)
    sizes = [len(found.take(asked)[0].nonces) for _ in range(2)]
    assert sizes == [4, 2]
    assert found.next_index == last + 1


@pytest.mark.parametrize("model", ["twin", "/models/twin"])
async def test_the_model_has_several_names(server: Server, model: str) -> None:
    """Its path, and those that it is served under."""
    await start(server, params={"model": model, "seq_len": 16})


@pytest.mark.parametrize(("route", "more"), [("init/generate", {}), ("generate", {"nonces": [1]})])
async def test_refusals_come_in_their_order(
    server: Server, route: str, more: dict[str, Any]
) -> None:
    """Another model, before a dead engine, before a round that runs; none changes anything."""
    await start(server)
    server.twin.errored = True
    other = ROUND | more | {"params": {"model": "other", "seq_len": 16}}
    response = await server.pow("POST", route, other)
    assert response.status_code == 409
    assert response.json() == {
        "detail": {
            "error": "params mismatch",
            "requested": {"model": "other", "seq_len": 16, "k_dim": 12},
            "deployed": {"model": ["/models/twin", "twin"], "seq_len": None, "k_dim": None},
        }
    }
    response = await server.pow("POST", route, ROUND | more)
    assert response.status_code == 503
    assert response.json()["detail"].startswith("Engine not available")
    assert response.headers["Retry-After"]
    server.twin.errored = False
    assert await server.refusal("POST", "init/generate", ROUND) == (409, "Already generating")


async def test_without_an_engine_the_model_is_looked_at_all_the_same(server: Server) -> None:
    server.state.artifacts = None
    other = ROUND | {"params": {"model": "other", "seq_len": 16}}
    assert (await server.pow("POST", "init/generate", other)).status_code == 409
    assert (await server.pow("POST", "init/generate", ROUND)).status_code == 503


async def test_rounds_of_both_proofs_take_turns(server: Server) -> None:
    """One at a time; each is refused in its own words, and told of in them."""
    await start(server)
    assert (await server.refusal("POST", "init/generate", BODY))[0] == 409
    assert await answered(server, "stop") == STOPPED
    assert (await server.post("init/generate", r_target=2.0))["state"] == "GENERATING"
    assert await server.refusal("POST", "init/generate", ROUND) == (409, "Already generating")
    assert IDLE.items() <= (await server.status()).items()
    stopped = await server.post("stop")
    assert (stopped["state"], stopped["status"]) == ("STOPPED", "STOPPED")
    await start(server)
    assert "state" not in await server.status()


@pytest.mark.parametrize(
    ("route", "sentence"),
    [
        ("phase/generate", "PoC not initialized"),
        ("phase/validate", "PoC not initialized"),
        ("validate", "No round configured"),
    ],
)
async def test_a_round_of_artifacts_has_no_phases(
    server: Server, route: str, sentence: str
) -> None:
    """To a client of distances it is none, while it is searched and when it is over."""
    proof = {"public_key": "k", "block_hash": "b", "block_height": 7, "nonces": [1], "dist": [0.5]}
    await start(server)
    for _ in range(2):
        assert await server.refusal("POST", route, proof) == (400, sentence)
        assert await answered(server, "stop") == STOPPED


async def test_a_stop_before_any_round(server: Server) -> None:
    """In the words of both."""
    for _ in range(2):
        answer = await answered(server, "stop", [1, "any body"])
        assert answer["status"] == "OK"
        status = answer["pow_status"]
        assert (status["status"], status["state"]) == ("STOPPED", "STOPPED")
    assert IDLE.items() <= (await server.status()).items()


async def test_a_round_that_fails_says_why(server: Server) -> None:
    """The chain sees IDLE and starts another one; inference goes on meanwhile."""
    server.twin.failure = RuntimeError("CUDA out of memory")
    await start(server)
    await until(lambda: not server.prover.is_generating)
    status = await server.status()
    assert IDLE.items() <= status.items()
    assert "CUDA out of memory" in status["error"]
    assert await server.serves()
    server.twin.failure = None
    await start(server)


async def test_the_same_search_goes_on_after_a_failure(server: Server) -> None:
    """Behind what its receiver has; another search begins with its first nonce."""
    broken = RuntimeError("CUDA out of memory")
    async with receiving() as receiver:
        server.twin.failures = iter([None, None, broken, broken, broken])
        await start(server, url=receiver.url)
        await until(lambda: not server.prover.is_generating)
        server.twin.hold_after = 7
        await start(server, url=receiver.url)
        await until(lambda: server.twin.running)
        assert (await server.status())["stats"]["total_processed"] == 12
        await answered(server, "stop")
        await until(lambda: sum(len(body["artifacts"]) for body in receiver.accepted) == 12)
        sent = [one for body in receiver.accepted for one in body["artifacts"]]
        assert sorted(sent, key=lambda one: one["nonce"]) == artifacts(range(1, 37, 3))
    server.twin.gate.set()
    await passes_over(server.twin)
    server.twin.failures = iter([None, broken, broken, broken])
    await start(server)
    await until(lambda: not server.prover.is_generating)
    await start(server, block_hash="A1")
    await until(lambda: len(server.twin.batches) > 11)
    assert server.twin.batches[11] == [1, 4, 7, 10]


async def test_a_pass_of_artifacts_has_a_time_of_its_own(server: Server) -> None:
    """A round whose pass takes longer has failed."""
    server.prover.model.timeouts_s = {"artifact": 0.01}
    server.twin.hold_after = 1
    await start(server)
    await until(lambda: not server.prover.is_generating)
    assert "no answer to a batch within" in (await server.status())["error"]


async def test_inference_is_refused_in_the_words_of_both(server: Server) -> None:
    """OpenAI's clients read `error`, those of the network `reason` and `retry_after_ms`; requests that run end."""
    running = server.completion()
    await until(lambda: server.prover.gate.running)
    await start(server)
    refused = await server.completion()
    assert refused.status_code == 503
    retry_after = int(refused.headers["Retry-After"])
    answer = refused.json()
    message = answer["error"].pop("message")
    assert message.startswith("PoC generation is active. Inference requests are temporarily")
    assert answer == {
        "error": {"type": "service_unavailable", "param": None, "code": 503},
        "reason": "poc_generation_active",
        "retry_after_ms": 1000 * retry_after,
    }
    server.finish.set()
    assert (await running).status_code == 200
    await answered(server, "stop")
    assert await server.serves()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"block_hash": ""}, "block_hash is ''; allowed: 1 to 256 printable"),
        ({"node_id": 3}, "node_id is 3; allowed: a whole number from 0 to node_count - 1"),
        ({"group_id": 1}, "group_id is 1; allowed: a whole number from 0 to n_groups - 1"),
        (
            {"node_id": 1, "node_count": 2**30, "group_id": 2, "n_groups": 3},
            "nonce is 2147483649; allowed: up to 2147483647",
        ),
        ({"batch_size": MAX_BATCH_SIZE + 1}, f"batch_size is {MAX_BATCH_SIZE + 1}; allowed: 1 to"),
        ({"url": "ftp://x"}, "url is 'ftp://x'; allowed: an http:// or https:// URL"),
        ({"params": {"model": "twin"}}, "params.seq_len is missing."),
        ({"params": {"model": "twin", "seq_len": MAX_SEQ_LEN + 1}}, "seq_len is 65; allowed:"),
        ({"params": {"model": "twin", "seq_len": 8, "k_dim": 65}}, "params.k_dim is 65; allowed:"),
        ({"params": {"model": "twin", "seq_len": 8, "dim": 4}}, "params.dim is 4; allowed: "),
        (
            {"params": {"model": "twin", "seq_len": 8, "scheme": "decode"}},
            "params.scheme is 'decode'; allowed: artifacts of the prefill scheme alone; the decode scheme",
        ),
        (
            {"params": {"model": "twin", "seq_len": 8, "max_tokens": 256}},
            "params.max_tokens is '…'; allowed: artifacts of the prefill scheme alone",
        ),
    ],
)
async def test_a_round_that_cannot_be_is_refused(
    server: Server, changes: dict[str, Any], sentence: str
) -> None:
    """422 and one sentence; nothing changes."""
    code, text = await server.refusal("POST", "init/generate", ROUND | changes)
    assert code == 422
    assert text.startswith(sentence)
    assert server.twin.calls == []
    assert await server.serves()


@pytest.mark.parametrize("field", ["block_hash", "block_height", "public_key", "node_id", "params"])
async def test_a_missing_field_is_named(server: Server, field: str) -> None:
    body = {name: value for name, value in ROUND.items() if name != field}
    assert await server.refusal("POST", "init/generate", body) == (422, f"{field} is missing.")


# Callbacks of rounds


async def test_artifacts_are_posted_at_intervals(server: Server) -> None:
    """What was found meanwhile goes out together: here within an interval that lasts until the stop."""
    async with (
        receiving() as receiver,
        server_with(settings=ArtifactSettings(callback_interval_sec=600)) as slow,
    ):
        slow.twin.hold_after = 6
        await start(slow, url=receiver.url)
        await until(lambda: slow.twin.running)
        assert receiver.received == []
        assert (await slow.status())["callbacks_waiting"] == 20
        await answered(slow, "stop")
        await until(lambda: receiver.accepted)
    assert [body["artifacts"] for body in receiver.accepted] == [artifacts(range(1, 61, 3))]


@pytest.mark.parametrize("status", [201, 204, 302, 399])
async def test_what_is_below_400_is_a_success(server: Server, status: int) -> None:
    async with receiving() as receiver:
        receiver.statuses = iter([status])
        server.twin.hold_after = 2
        await start(server, url=receiver.url)
        await until(lambda: receiver.received)
        await until(lambda: not server.prover.status()["callbacks_waiting"])
        await answered(server, "stop")
    assert [body["artifacts"] for _, body in receiver.received] == [artifacts(range(1, 13, 3))]


@pytest.mark.parametrize("statuses", [[503, 500, 429], [400] * 9])
async def test_a_receiver_that_does_not_take_them_loses_none(
    server: Server, statuses: list[int]
) -> None:
    """One that is not ready yet, and one that refuses for a while: the phase has not come, say."""
    async with receiving() as receiver:
        receiver.statuses = iter(statuses)
        server.twin.hold_after = 6
        await start(server, url=receiver.url)
        await until(lambda: len(receiver.received) > len(statuses))
        await answered(server, "stop")
        await until(lambda: sum(len(body["artifacts"]) for body in receiver.accepted) == 20)
    sent = [one for body in receiver.accepted for one in body["artifacts"]]
    assert sent == artifacts(range(1, 61, 3))


async def test_a_post_that_is_refused_again_and_again_is_dropped() -> None:
    """After as many tries as are set; what comes later is tried in its turn."""
    settings = ArtifactSettings(callback_interval_sec=0, callback_max_retries=3)
    async with (
        receiving() as receiver,
        server_with(settings=settings, refusal_backoff=Backoff(0.001, 0.004)) as server,
    ):
        receiver.statuses = iter([422] * 3)
        server.twin.hold_after = 2
        await start(server, url=receiver.url)
        await until(lambda: server.prover.status()["callbacks_dropped"])
        assert len(receiver.received) == 3
        server.twin.hold_after = 4
        server.twin.gate.set()
        await until(lambda: receiver.accepted)


async def test_artifacts_that_wait_are_bounded() -> None:
    settings = ArtifactSettings(callback_interval_sec=600, callback_max_artifacts=8)
    async with server_with(settings=settings, flush_s=0.01) as server:
        server.twin.hold_after = 6
        await start(server, url="http://127.0.0.1:9/gone")
        await until(lambda: server.twin.running)
        status = await server.status()
        assert (status["callbacks_waiting"], status["callbacks_dropped"]) == (8, 12)


# Requests for given nonces


async def test_nonces_that_somebody_waits_for(server: Server) -> None:
    """Artifacts in the order of the nonces, of which some may have none; inference goes on beside them."""
    server.twin.is_nan = lambda nonce: nonce == 4
    answer = await generate(server, [9, 4, 2, 5, 7], wait=True)
    assert len(answer.pop("request_id")) == 36
    assert answer == {
        "status": "completed",
        "artifacts": artifacts([9, 2, 5, 7]),
        "encoding": {"dtype": "f16", "k_dim": 12, "endian": "le"},
    }
    assert server.twin.batches == [[9, 4, 2, 5], [7]]
    server.twin.hold_after = 3
    waiting = asyncio.create_task(generate(server, [1], wait=True))
    await until(lambda: server.twin.running)
    assert await server.serves()
    server.twin.gate.set()
    await waiting


async def test_nonces_for_later(server: Server) -> None:
    """Queued, running, completed; the result stays for a while."""
    server.twin.gate.clear()
    first = await generate(server, [1, 2])
    second = await generate(server, [3])
    assert first == {"status": "queued", "request_id": first["request_id"], "queued_count": 2}
    await until(lambda: server.twin.running)
    for asked, status in (first, "running"), (second, "queued"):
        expected = {"status": status, "request_id": asked["request_id"]}
        assert await request_of(server, asked["request_id"]) == expected
    server.twin.gate.set()
    answer = await completed(server, second["request_id"])
    assert (answer["status"], answer["artifacts"]) == ("completed", artifacts([3]))
    assert await server.refusal("GET", "generate/nobody") == (404, "Request nobody not found")


async def test_claims_are_validated(server: Server) -> None:
    """What cannot be read, or has another length, is a mismatch; a nonce that we have not does not count."""
    server.twin.is_nan = lambda nonce: nonce == 5
    claims = artifacts(range(1, 6))
    claims[1]["vector_b64"] = ""
    claims[2]["vector_b64"] = "not base64"
    claims[3]["vector_b64"] = artifact_of("9F2C", "02ab", 4, k_dim=8)
    bounds = {"dist_threshold": 0.4, "p_mismatch": 0.1, "p_value_threshold": 0.003}
    body = {"nonces": [5, 4, 3, 2, 1], "validation": {"artifacts": claims}, "wait": True}
    answer = await answered(server, "generate", ROUND | body | {"stat_test": bounds})
    assert answer.pop("p_value") == pytest.approx(0.0037)
    assert answer == {
        "status": "completed",
        "request_id": answer["request_id"],
        "n_total": 4,
        "n_mismatch": 3,
        "mismatch_nonces": [2, 3, 4],
        "fraud_detected": False,
    }
    both = {"fraud_threshold": 0.01, "p_value_threshold": 1e-9}
    answer = await answered(server, "generate", ROUND | body | {"stat_test": bounds | both})
    assert answer["fraud_detected"]
    # Where nothing is said: 0.02, 0.001 and 0.01.
    assert (await answered(server, "generate", ROUND | body))["p_value"] == pytest.approx(4e-9, 0.1)


async def test_nothing_to_validate_is_fine(server: Server) -> None:
    answer = await generate(server, [], validation={"artifacts": []}, wait=True)
    assert (answer["n_total"], answer["p_value"], answer["fraud_detected"]) == (0, 1.0, False)
    assert server.twin.calls == []


async def test_claims_of_other_nonces_are_refused(server: Server) -> None:
    body = ROUND | {"nonces": [1, 2], "validation": {"artifacts": artifacts([1])}}
    text = "validation.artifacts nonces must match nonces field"
    assert await server.refusal("POST", "generate", body) == (400, text)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"nonces": [-1]}, "nonces.0 is -1; allowed: a whole number from 0 to 2147483647"),
        ({"nonces": [2**31]}, "nonces.0 is 2147483648; allowed:"),
        ({"stat_test": {"p_mismatch": 0}}, "stat_test.p_mismatch is 0; allowed: a number above 0"),
        (
            {
                "validation": {
                    "artifacts": [{"nonce": 1, "vector_b64": "", "k_points_steps": [3, 1]}]
                }
            },
            "validation.artifacts.k_points_steps is [3, 1]; allowed: artifacts of the prefill",
        ),
        ({"params": {"model": "twin", "seq_len": 65}}, "seq_len is 65; allowed: 1 to 64"),
    ],
)
async def test_a_request_that_cannot_be_is_refused(
    server: Server, changes: dict[str, Any], sentence: str
) -> None:
    code, text = await server.refusal("POST", "generate", ROUND | {"nonces": [1]} | changes)
    assert code == 422
    assert text.startswith(sentence)
    assert server.twin.calls == []


async def test_requests_stand_still_while_a_round_is_searched(server: Server) -> None:
    """And go on when it is stopped; a stop takes those along that came before it."""
    server.twin.hold_after = 2
    await start(server)
    await until(lambda: server.twin.running)
    asked = await generate(server, [1, 2])
    waiting = asyncio.create_task(generate(server, [3], wait=True))
    await until(lambda: server.artifacts.jobs.num_waiting)
    server.twin.hold_after = 5
    server.twin.gate.set()
    await until(lambda: len(server.twin.batches) == 5)
    assert (await request_of(server, asked["request_id"]))["status"] == "running"
    server.prover.stop()
    server.twin.gate.set()
    assert (await waiting)["artifacts"] == artifacts([3])
    assert (await request_of(server, asked["request_id"]))["status"] == "completed"
    assert server.twin.batches[5:] == [[1, 2], [3]]


async def test_a_stop_ends_requests_and_keeps_results(server: Server) -> None:
    """Those that wait for one are told at once."""
    done = await generate(server, [1])
    await completed(server, done["request_id"])
    server.twin.gate.clear()
    asked = await generate(server, [2])
    waiting = asyncio.create_task(
        server.pow("POST", "generate", ROUND | {"nonces": [3], "wait": True})
    )
    await until(lambda: server.twin.running and server.artifacts.jobs.num_waiting)
    assert (await answered(server, "stop"))["status"] == "OK"
    response = await waiting
    assert (response.status_code, response.json()) == (503, {"detail": "Cancelled by /stop."})
    assert (await request_of(server, asked["request_id"])) == {
        "status": "failed",
        "request_id": asked["request_id"],
        "error": "Cancelled by /stop.",
    }
    assert (await request_of(server, done["request_id"]))["status"] == "completed"
    server.twin.gate.set()
    await passes_over(server.twin)
    # The batch at hand could not be interrupted; the next one had to wait for it.
    assert (await generate(server, [4], wait=True))["artifacts"] == artifacts([4])
    assert server.twin.most_running == 1


async def test_what_waits_is_bounded() -> None:
    """429 in the network's words, and when to come again."""
    async with server_with(settings=ArtifactSettings(max_queued_nonces=3)) as server:
        server.twin.gate.clear()
        await generate(server, [1])
        await until(lambda: server.twin.running)
        await generate(server, [2, 3])
        response = await server.pow("POST", "generate", ROUND | {"nonces": [4, 5]})
        assert response.status_code == 429
        assert response.json() == {"detail": "Queue full: 2 nonces queued, limit is 3"}
        assert response.headers["Retry-After"]


async def test_nobody_waits_for_ever() -> None:
    """As long as a round lasts, a client would."""
    async with server_with(wait_s=0.01) as server:
        await start(server)
        body = ROUND | {"nonces": [1], "wait": True}
        code, sentence = await server.refusal("POST", "generate", body)
        assert code == 503
        assert sentence.startswith("Not computed within 0.01 s: a round generates")


async def test_a_pass_that_takes_too_long_fails_its_request() -> None:
    settings = ArtifactSettings(generate_chunk_timeout_sec=0.01)
    async with server_with(settings=settings) as server:
        server.twin.gate.clear()
        asked = await generate(server, [1, 2])
        answer = await completed(server, asked["request_id"])
        assert answer["status"] == "failed"
        assert answer["error"] == "2 nonces were not computed within 0.01 s."
        code, _ = await server.refusal("POST", "generate", ROUND | {"nonces": [1], "wait": True})
        assert code == 503


async def test_results_are_forgotten() -> None:
    async with server_with(settings=ArtifactSettings(generate_result_ttl_sec=0)) as server:
        asked = await generate(server, [1])

        async def is_gone() -> bool:
            return (await server.pow("GET", f"generate/{asked['request_id']}")).status_code == 404

        await until(is_gone)


async def test_results_are_posted(server: Server) -> None:
    """One post each, with the request's id; not what failed, nor what somebody waited for."""
    async with receiving() as receiver:
        url = {"url": receiver.url}
        asked = [
            await generate(server, [1, 2], **url),
            await generate(server, [3], validation={"artifacts": artifacts([3])}, **url),
        ]
        await generate(server, [4], wait=True, **url)
        await until(lambda: len(receiver.received) == 2)
        server.twin.failure = RuntimeError("odd")
        failed = await generate(server, [5], **url)
        assert (await completed(server, failed["request_id"]))["status"] == "failed"
    names = {"public_key": "02ab", "block_hash": "9F2C", "block_height": 7, "node_id": 1}
    assert receiver.received == [
        (
            "/v1/poc-batches/generated",
            names
            | {
                "artifacts": artifacts([1, 2]),
                "encoding": {"dtype": "f16", "k_dim": 12, "endian": "le"},
                "request_id": asked[0]["request_id"],
            },
        ),
        (
            "/v1/poc-batches/validated",
            names
            | {
                "request_id": asked[1]["request_id"],
                "n_total": 1,
                "n_mismatch": 0,
                "mismatch_nonces": [],
                "p_value": 1.0,
                "fraud_detected": False,
            },
        ),
    ]


async def test_a_receiver_that_is_away_holds_up_neither_jobs_nor_others(server: Server) -> None:
    """Three jobs for one that says 503 are done, a fourth is posted elsewhere; in the end all are."""
    async with receiving() as receiver, answering(503) as away:
        receiver.statuses = iter([503] * 5)
        asked = [await generate(server, [n], url=url) for n, url in ((1, away), (2, away))]
        asked.append(await generate(server, [3], url=receiver.url))
        for one in asked:
            assert (await completed(server, one["request_id"]))["status"] == "completed"
        await until(lambda: receiver.accepted)
        # What waits outlives a stop.
        last = await generate(server, [4], url=away)
        assert (await completed(server, last["request_id"]))["status"] == "completed"
        port = int(away.rpartition(":")[2])
        await answered(server, "stop")
    async with receiving(port=port) as receiver:
        await until(lambda: len(receiver.accepted) == 3)
        assert [body["artifacts"] for body in receiver.accepted] == [
            artifacts([1]),
            artifacts([2]),
            artifacts([4]),
        ]


async def test_posts_that_wait_are_bounded() -> None:
    settings = ArtifactSettings(callback_queue_size=2)
    async with (
        answering(503) as away,
        server_with(settings=settings, flush_s=0.01) as server,
    ):
        for nonce in range(4):
            asked = await generate(server, [nonce], url=f"{away}/{nonce % 2}")
            await completed(server, asked["request_id"])
        assert server.artifacts.posts.num_waiting == 2


@asynccontextmanager
async def listening(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """Serve over a socket, whose other end may go away."""
    port = free_port()
    app = server.http._transport.app  # type: ignore[attr-defined]
    uvicorn_server = uvicorn.Server(
        uvicorn.Config(app, port=port, lifespan="off", log_level="warning", ws="none")
    )
    serving = asyncio.create_task(uvicorn_server.serve())
    await until(lambda: uvicorn_server.started)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        uvicorn_server.should_exit = True
        await serving


async def test_a_client_that_goes_away_frees_its_request(server: Server) -> None:
    """What it asked for is not computed; others come to their turn."""
    server.twin.gate.clear()
    await generate(server, [1])
    await until(lambda: server.twin.running)
    body = ROUND | {"nonces": [2], "wait": True}
    async with listening(server) as client:
        gone = asyncio.create_task(client.post("/api/v1/pow/generate", json=body, timeout=None))
        await until(lambda: server.artifacts.jobs.num_waiting)
        gone.cancel()
        await until(lambda: not server.artifacts.jobs.num_waiting)
    server.twin.gate.set()
    assert (await generate(server, [3], wait=True))["artifacts"] == artifacts([3])
    assert server.twin.batches == [[1], [3]]


async def test_what_runs_here(server: Server) -> None:
    answer = (await server.pow("GET", "versions")).json()
    assert set(answer) == {"vllm_version", "gonka_poc_version", "poc_validation_inference"}
    assert answer["gonka_poc_version"].startswith("pocqueue ")
    assert answer["poc_validation_inference"] is True


# Values for workers


async def test_values_of_a_scheme_for_workers(server: Server) -> None:
    """Engine vllm-server asks for them; those of nonces without an artifact are null."""
    server.twin.is_nan = lambda nonce: nonce == 2
    batch = {"block_hash": "9F2C", "public_key": "02ab", "nonces": [1, 2], "seq_len": 8}
    batch |= {"batch_size": 4, "scheme": "artifact", "k_dim": 8, "stronger_rng": True}
    body = batch | {"upcoming": batch | {"nonces": [3]}}
    info = server.prover.model.info
    assert await answered(server, "values", body) == {
        "values": [artifact_of("9F2C", "02ab", 1, k_dim=8), None],
        "fingerprint": info.fingerprint,
        "dtype": info.dtype,
    }
    (fields, upcoming) = server.twin.calls[0][1]
    options = ["artifact", (("k_dim", 8), ("stronger_rng", True))]
    assert (fields[5:], upcoming[2:]) == (options, [[3], 4, 8, *options])
    assert await server.refusal("POST", "values", batch | {"k_dim": 65}) == (
        422,
        "k_dim is 65; allowed: an integer from 1 to 64.",
    )
    # Tests in the same process may have schemes of their own.
    status, reason = await server.refusal("POST", "values", batch | {"scheme": "x"})
    assert status == 422
    assert reason.startswith("scheme is 'x'; allowed: artifact or distance")
