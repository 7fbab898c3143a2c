"""Proof rounds on a real vLLM server over HTTP, and workers with the vLLM engines.

One server for the module, in the order of the tests: the last ones restart it and break it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from pocqueue.poc.artifact.scheme import Artifact
from pocqueue.rounds.spec import RoundState
from tests.support.callback_receiver import receiving
from tests.support.chain import Chain, Participant, Receiver, Stage, play
from tests.support.stack import Stack
from tests.support.vllm_parts import VllmServer, need_vllm, served_model
from tests.support.waiting import PATIENCE_S, until, wait_until

need_vllm()
#: A server may take minutes to start where every core is busy.
pytestmark = [pytest.mark.timeout(1800), pytest.mark.long]

#: Long enough to fill several blocks of the KV cache, and to find them there again; 520 tokens for the first, of
#: the 1,024 that a prompt and its completion may have.
PROMPTS = [" ".join(f"w{(7 * i + j) % 1000}" for j in range(300)) for i in range(4)]
TOKEN = "a-token-of-sixteen-letters"
ROUND = {
    "block_hash": "0xabc",
    "block_height": 7,
    "public_key": "key",
    "r_target": 1.41,
    "batch_size": 8,
    "seq_len": 64,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A server as an operator starts it, compiled graphs and prefix caching included."""
    folder = tmp_path_factory.mktemp("vllm")
    env = {
        "POCQUEUE_STATE_DIR": str(folder),
        "POCQUEUE_VLLM_TOKEN": TOKEN,
        "POC_CALLBACK_INTERVAL_SEC": "0.2",
    }
    with VllmServer(served_model(folder), folder / "server.log", env) as server:
        server.client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield server


@pytest.fixture(scope="module")
def reference(server: VllmServer) -> list[str]:
    """What the server completes before it ever ran a round."""
    assert server.status()["total_checked"] == 0
    return [_text(server.completion(prompt)) for prompt in PROMPTS]


@pytest.fixture(autouse=True)
def no_round(server: VllmServer) -> Iterator[None]:
    """No round is left over from a test."""
    yield
    if server.process is not None and server.process.poll() is None:
        process = server.process
        try:
            server.pow("POST", "stop")
        except httpx.TransportError:
            # It hangs up before it ends.
            wait_until(lambda: process.poll() is not None, message="the end of the server")


def _text(response: httpx.Response) -> str:
    text: str = response.raise_for_status().json()["choices"][0]["text"]
    return text


def _search(server: VllmServer, num: int = 24, **changes: Any) -> dict[str, Any]:
    """Run a round until so many nonces are checked; return its status after the stop."""
    server.pow("POST", "init/generate", ROUND | changes).raise_for_status()
    wait_until(lambda: server.status()["total_checked"] >= num, message="nonces to be checked")
    status: dict[str, Any] = server.pow("POST", "stop").raise_for_status().json()["pow_status"]
    return status


def _proof(status: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a proof of the first nonces found: how many there are is for the machine's load to say."""
    return {
        "public_key": "key",
        "block_hash": "0xabc",
        "block_height": 7,
        "nonces": status["valid_nonces"][:40],
        "dist": status["valid_distances"][:40],
        "node_id": 0,
    } | changes


def _verdict(server: VllmServer, proof: dict[str, Any], **changes: Any) -> dict[str, Any]:
    server.pow("POST", "init/validate", ROUND | changes).raise_for_status()
    verdict: dict[str, Any] = server.pow("POST", "validate", proof).raise_for_status().json()
    return verdict


def test_completions_are_the_same_before_during_and_after_a_round(
    server: VllmServer, reference: list[str]
) -> None:
    """One that runs when a round begins is let finish; one that comes later gets 503, and then goes on."""
    long = _text(server.completion(PROMPTS[0], max_tokens=480))
    pieces: list[str] = []
    # Its first piece says that it runs: asking the status could miss a request that is soon done.
    inflight = threading.Thread(target=lambda: pieces.extend(server.stream(PROMPTS[0], 480, begun)))
    begun = threading.Event()
    inflight.start()
    assert begun.wait(PATIENCE_S), "the request did not begin to run"
    server.pow("POST", "init/generate", ROUND).raise_for_status()
    refused = server.completion(PROMPTS[1])
    assert refused.status_code == 503
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    error = refused.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == 503
    assert server.client.get("/v1/models").status_code == 200
    inflight.join(timeout=600)
    assert "".join(pieces) == long
    wait_until(lambda: server.status()["total_checked"] >= 40, message="nonces to be checked")
    stopped = server.pow("POST", "stop").json()["pow_status"]
    assert stopped["state"] == "STOPPED"
    # At once, and over the blocks that were cached before.
    assert [_text(server.completion(prompt)) for prompt in PROMPTS] == reference
    assert server.status()["total_checked"] == stopped["total_checked"]


def test_states_and_their_errors(server: VllmServer) -> None:
    """IDLE, GENERATING, VALIDATING, STOPPED, and what cannot be asked for in which."""
    server.pow("POST", "init", ROUND).raise_for_status()
    assert server.status()["state"] == "IDLE"
    assert server.completion("w5").status_code == 200
    assert server.pow("POST", "phase/generate").json()["pow_status"]["state"] == "GENERATING"
    again = server.pow("POST", "init/generate", ROUND)
    assert again.status_code == 409
    assert "Round already in progress" in again.json()["detail"]
    assert server.pow("POST", "phase/validate").json()["pow_status"]["state"] == "VALIDATING"
    assert server.completion("w5").status_code == 503
    assert server.pow("POST", "phase/generate").json()["pow_status"]["state"] == "GENERATING"
    wait_until(lambda: server.status()["total_checked"] > 0, message="the search to go on")
    assert server.pow("POST", "stop").json()["pow_status"]["state"] == "STOPPED"
    assert server.completion("w5").status_code == 200


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"block_hash": ""}, 422, "block_hash is ''; allowed: 1 to 256 printable characters."),
        ({"r_target": 0}, 422, "r_target is 0; allowed: a number above 0."),
        ({"r_target": None}, 400, "PoC config missing r_target"),
        ({"seq_len": 1025}, 422, "seq_len is 1025; allowed: 1 to 1024"),
        ({"batch_size": 65}, 422, "batch_size is 65; allowed: 1 to 64."),
        ({"node_id": 3, "node_count": 3}, 422, "node_id is 3"),
        ({"node_id": -1, "node_count": -1}, 400, "Node ID and node count must be set"),
        ({"callback_url": "ftp://x"}, 422, "callback_url is 'ftp://x'"),
    ],
)
def test_a_round_that_cannot_be_is_refused(
    server: VllmServer, change: dict[str, Any], status: int, words: str
) -> None:
    """One sentence, the right status, and inference goes on."""
    answer = server.pow("POST", "init/generate", ROUND | change)
    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert server.completion("w5").status_code == 200


def test_another_token_is_refused(server: VllmServer) -> None:
    """401 on every proof route; inference has keys of its own."""
    headers = {"Authorization": "Bearer another-token-of-that-size"}
    for method, route in (("GET", "status"), ("POST", "stop"), ("GET", "model")):
        answer = server.client.request(method, f"/api/v1/pow/{route}", headers=headers)
        assert answer.status_code == 401
        assert TOKEN not in answer.text


def test_an_honest_proof_is_honest(server: VllmServer) -> None:
    """The same server computes the same distances again, bit for bit."""
    status = _search(server, 40)
    assert status["total_valid"] == len(status["valid_nonces"]) > 5
    assert all(distance < 1.41 for distance in status["valid_distances"])
    verdict = _verdict(server, _proof(status))
    assert verdict["status"] == "OK"
    assert verdict["computed_distances"] == status["valid_distances"][:40]
    assert not verdict["fraud_detected"]
    assert verdict["n_invalid"] == 0


@pytest.mark.parametrize(
    ("changes", "round_changes"),
    [
        ({"public_key": "somebody else"}, {}),
        ({"nonces": list(range(100_000, 100_020)), "dist": [1.3] * 20}, {}),
        ({}, {"block_hash": "0xdef"}),
        ({"block_hash": "0xdef"}, {"block_hash": "0xdef"}),
    ],
    ids=["another key", "made-up nonces", "of another block", "of another block, relabelled"],
)
def test_fraud_is_found(
    server: VllmServer, changes: dict[str, Any], round_changes: dict[str, Any]
) -> None:
    """Wrong key, fabricated distances, or a proof that was made for another block."""
    proof = _proof(_search(server, 40), **changes)
    verdict = _verdict(server, proof, **round_changes)
    assert verdict["fraud_detected"]
    assert verdict["n_invalid"] > 3


async def test_callbacks_reach_a_receiver_that_fails_twice(server: VllmServer) -> None:
    """Every valid nonce is pushed once, in the words of both eras; and so is the verdict."""
    async with receiving() as receiver:
        receiver.statuses = iter([500, 503])
        server.pow("POST", "init/generate", ROUND | {"callback_url": receiver.url})
        await until(lambda: receiver.accepted)
        status = server.pow("POST", "stop").json()["pow_status"]
        await until(
            lambda: sum(len(body["nonces"]) for body in receiver.accepted) == status["total_valid"]
        )
        pushed = [nonce for body in receiver.accepted for nonce in body["nonces"]]
        assert pushed == status["valid_nonces"]
        path, body = receiver.received[0]
        assert path.endswith("/generated")
        assert {k: body[k] for k in ("public_key", "block_hash", "block_height", "r_target")} == {
            "public_key": "key",
            "block_hash": "0xabc",
            "block_height": 7,
            "r_target": 1.41,
        }
        receiver.received.clear()
        _verdict(server, _proof(status), callback_url=receiver.url)
        await until(lambda: receiver.received)
        [(path, body)] = receiver.received
        assert path.endswith("/validated")
        assert body["computed_distances"] == body["received_distances"] == body["dist"]
        assert all(body["valid"])
        assert not body["fraud_detected"]


def test_a_receiver_that_is_gone_does_not_stop_the_search(server: VllmServer) -> None:
    """Push fails, pull still has everything."""
    status = _search(server, 40, callback_url="http://127.0.0.1:9/gone")
    assert status["total_valid"] == len(status["valid_nonces"])
    assert not status["failed"]


async def test_the_chains_timetable(server: VllmServer, reference: list[str]) -> None:
    """A stage, a stop, a validation of three, with a receiver that is late, loses answers and is away for a while.

    Who has computed artifacts is honest; who has those of another block, or altered a fifth of them, is a cheat.
    Completions are what they were before.
    """
    stage = Stage(model="tiny", seq_len=64)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        Receiver(stage) as receiver,
        httpx.AsyncClient(base_url=server.url, headers=headers, timeout=300) as http,
    ):
        chain = Chain(http, "/api/v1/pow", stage, receiver)
        nonces = range(0, 300, 3)
        of_another_block = await chain.participant("03" + "cd" * 32, nonces, "lower" * 12)
        altered = (await chain.participant("02" + "ef" * 32, nonces)).altered(0.2)
        await play(
            chain,
            lambda: [Participant(stage.public_key, receiver.artifacts), of_another_block, altered],
        )
        assert receiver.votes == {
            stage.public_key: min(200, len(receiver.artifacts)),
            of_another_block.public_key: -1,
            altered.public_key: -1,
        }
        [[honest], [other], [cheat]] = receiver.verdicts.values()
        assert honest["n_mismatch"] == 0
        assert other["n_mismatch"] == 100
        assert cheat["n_mismatch"] == 20
    assert [_text(server.completion(prompt)) for prompt in PROMPTS] == reference


def test_artifacts_are_refused_and_found_in_the_networks_words(server: VllmServer) -> None:
    """Of another model, of the decode scheme; by each of the model's names; beside the routes of distances."""
    stage = Stage(model="tiny", seq_len=64)
    other = server.pow("POST", "init/generate", Stage(model="other", seq_len=64).body())
    assert other.status_code == 409
    deployed = other.json()["detail"]["deployed"]["model"]
    assert "tiny" in deployed
    [path] = [name for name in deployed if name.startswith("/")]
    decode = stage.body(params={"model": "tiny", "seq_len": 64, "scheme": "decode"})
    assert "params.scheme is 'decode'" in server.pow("POST", "generate", decode).json()["detail"]
    body = stage.body(nonces=[3, 1], wait=True, params={"model": path, "seq_len": 64})
    first = server.pow("POST", "generate", body).raise_for_status().json()
    again = server.pow("POST", "generate", body | {"batch_size": 8}).raise_for_status().json()
    assert [one["nonce"] for one in first["artifacts"]] == [3, 1]
    pairs = zip(first["artifacts"], again["artifacts"], strict=True)
    assert all(Artifact().difference(a["vector_b64"], b["vector_b64"]) < 0.1 for a, b in pairs)
    versions = server.pow("GET", "versions").raise_for_status().json()
    assert versions["vllm_version"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A scheduler and Redis of this module's own."""
    stack = Stack(tmp_path_factory.mktemp("stack"))
    try:
        stack.scheduler()
        yield stack
    finally:
        stack.close()


def _distances(stack: Stack, round_id: str) -> dict[int, Any]:
    entries = stack.backend.store.iter_proofs(stack.status(round_id))
    return {n: d for e in entries for n, d in e.proofs}


def test_a_worker_runs_its_ranges_through_the_served_model(
    server: VllmServer, stack: Stack, reference: list[str]
) -> None:
    """Same round, scheduler and store; the server goes on serving between two batches."""
    worker_env = {"POCQUEUE_ENGINE": "vllm-server", "POCQUEUE_VLLM_URL": server.url}
    stack.worker("gpu0", worker_env | {"POCQUEUE_VLLM_TOKEN": TOKEN})
    stack.wait_live("gpu0")
    info = stack.backend.pool.live()[0].info
    assert (info.engine, info.model) == ("vllm-server", "tiny")
    round_id = stack.start(max_nonces=200, block_hash="0xabc", seq_len=64)
    assert [_text(server.completion(prompt)) for prompt in PROMPTS] == reference
    assert stack.wait_over(round_id).state is RoundState.COMPLETED
    stack.check_exactly_once(round_id, 200)
    found = _distances(stack, round_id)
    searched = _search(server, 40)
    for nonce, distance in zip(searched["valid_nonces"], searched["valid_distances"], strict=True):
        if nonce in found:
            assert found[nonce] == distance
    # And a round of artifacts, which the server computes for the network as well.
    round_id = stack.start(
        scheme="artifact", max_nonces=100, r_target=None, block_hash="0xabc", seq_len=64
    )
    assert stack.wait_over(round_id).state is RoundState.COMPLETED
    stack.check_exactly_once(round_id, 100)
    asked = Stage(model="tiny", block_hash="0xabc", public_key="key", seq_len=64)
    body = asked.body(nonces=[*range(16)], wait=True, batch_size=8)
    served = server.pow("POST", "generate", body).raise_for_status().json()["artifacts"]
    computed = _distances(stack, round_id)
    assert [one["vector_b64"] for one in served] == [computed[nonce] for nonce in range(16)]
    assert stack.terminate("gpu0") == 0


def test_a_worker_with_a_vllm_of_its_own(server: VllmServer, stack: Stack) -> None:
    """`POCQUEUE_ENGINE=vllm …`: the bits that the server gives, and SIGTERM ends all of it."""
    process = stack.worker("gpu0", {"POCQUEUE_ENGINE": "vllm"})
    stack.wait_live("gpu0")
    assert stack.backend.pool.live()[0].info.engine == "vllm"
    round_id = stack.start(max_nonces=200, block_hash="0xabc", seq_len=64)
    assert stack.wait_over(round_id).state is RoundState.COMPLETED
    stack.check_exactly_once(round_id, 200)
    found = _distances(stack, round_id)
    body = {"block_hash": "0xabc", "public_key": "key", "batch_size": 8, "seq_len": 64}
    served = server.pow("POST", "distances", body | {"nonces": [*range(100, 108)]}).json()
    assert served["distances"] == [found[nonce] for nonce in range(100, 108)]
    children = psutil.Process(process.pid).children(recursive=True)
    assert stack.terminate("gpu0") == 0
    wait_until(
        lambda: not any(child.is_running() for child in children), message="its children to end"
    )


def test_a_restarted_server_computes_the_same_distances(
    server: VllmServer, reference: list[str], tmp_path: Path
) -> None:
    """The round is gone with the process; the proof of it holds, and so do the completions."""
    status = _search(server, 40)
    server.stop()
    server.start()
    assert server.status()["state"] == "IDLE"
    assert server.pow("POST", "validate", _proof(status)).status_code == 400
    assert server.pow("POST", "phase/generate").json() == {"detail": "PoC not initialized"}
    assert [_text(server.completion(prompt)) for prompt in PROMPTS] == reference
    verdict = _verdict(server, _proof(status))
    assert verdict["computed_distances"] == status["valid_distances"][:40]
    assert not verdict["fraud_detected"]


def test_a_worker_crash_ends_the_round_and_the_server_does_not_hang(server: VllmServer) -> None:
    """The round is reported as failed, or the whole server ends; either in bounded time."""
    assert server.process is not None
    server.pow("POST", "init/generate", ROUND).raise_for_status()
    wait_until(lambda: server.status()["total_checked"] > 0, message="the search to begin")
    below = psutil.Process(server.process.pid).children(recursive=True)
    # The server starts its engine, and that its worker; each has a process for bookkeeping, too.
    workers = [child for child in below if "resource_tracker" not in " ".join(child.cmdline())]
    os.kill(workers[-1].pid, signal.SIGKILL)

    def ended() -> bool:
        assert server.process is not None
        if server.process.poll() is not None:
            return True
        try:
            status = server.status()
        except httpx.HTTPError:
            return False
        return bool(status["failed"]) and bool(status["error"])

    wait_until(ended, message="the round, or the server, to end")
