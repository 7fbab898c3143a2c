"""Chain, small node, big node, scheduler, two workers and back: nonce for nonce, whatever fails."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pocqueue.node.keys import SigningKey
from tests.support.delegation_parts import (
    POW,
    TOKEN,
    BigNode,
    Chain,
    Cheat,
    SmallNode,
    Wire,
    block,
)
from tests.support.stack import Stack

#: With r_target 2 every nonce is valid, so that a missing one shows.
ENOUGH = 400


@pytest.fixture(scope="module")
def big(shared_stack: Stack) -> Iterator[BigNode]:
    """One big node for the module."""
    yield BigNode(shared_stack, DELEGATION_MAX_SESSIONS="20")
    if "delegation" in shared_stack.processes:
        shared_stack.terminate("delegation")


@pytest.fixture(scope="module")
def wire(big: BigNode) -> Iterator[Wire]:
    """The way to the big node."""
    made = Wire(big.port)
    yield made
    made.close()


@pytest.fixture(scope="module")
def small(shared_stack: Stack, wire: Wire) -> Iterator[SmallNode]:
    """One small node for the module, without an engine."""
    made = SmallNode(shared_stack, wire.url, "small")
    yield made
    made.close()


@pytest.fixture
def chain() -> Iterator[Chain]:
    """A chain of the test's own."""
    made = Chain()
    yield made
    made.close()


def finish(stack: Stack, small: SmallNode, chain: Chain, block_hash: str) -> list[int]:
    """Stop the round, wait until all of it is with the chain; check it against the store."""
    session_id = small.status()["session_id"]
    small.stop()
    stack.wait(lambda: not stack.status(session_id).state.is_active, "the session to be stopped")
    return check_all_arrived(stack, small, chain, block_hash, session_id)


def check_all_arrived(
    stack: Stack, small: SmallNode, chain: Chain, block_hash: str, session_id: str
) -> list[int]:
    """Wait until the chain has as many nonces as the store; they are the same, once each."""
    found = stack.nonces(session_id)
    stack.wait(
        lambda: (
            len(chain.nonces(block_hash)) >= len(found) and small.status()["outbox"]["waiting"] == 0
        ),
        f"{len(found)} nonces at the chain",
    )
    arrived = chain.nonces(block_hash)
    assert arrived == found
    assert len(set(arrived)) == len(arrived)
    assert not chain.bad
    assert chain.signers == {small.signer}
    return arrived


def arrived(stack: Stack, chain: Chain, block_hash: str, num: int) -> None:
    """Wait until the chain has so many nonces."""
    stack.wait(lambda: len(chain.nonces(block_hash)) >= num, f"{num} nonces at the chain")


def test_every_nonce_arrives_signed_and_once(
    stack: Stack, big: BigNode, small: SmallNode, chain: Chain
) -> None:
    """Seed 000 from end to end, in the words that it gives."""
    block_hash = block()
    answer = small.generate(chain, block_hash=block_hash).raise_for_status().json()
    assert answer["status"] == "OK"
    wanted = {"status": "GENERATING", "is_model_initialized": True}
    wanted |= {"delegation_mode": True, "gpu_count": 2}
    assert wanted.items() <= small.status().items()
    arrived(stack, chain, block_hash, ENOUGH)
    with big.client() as client:
        sessions = client.get("/status").raise_for_status().json()["sessions"]
    mine = sessions[small.status()["session_id"]]
    assert (mine["status"], mine["node_id"], mine["gpu_count"]) == ("generating", 0, 2)
    assert mine["total_generated"] > 0
    # The same request again changes nothing.
    session_id = small.status()["session_id"]
    assert small.generate(chain, block_hash=block_hash).status_code == 200
    assert small.status()["session_id"] == session_id
    finish(stack, small, chain, block_hash)
    assert small.status()["status"] == "STOPPED"
    logs = stack.log("small").read_text() + stack.log("delegation").read_text()
    assert f"DELEGATION session {session_id}" in stack.log("small").read_text()
    assert f"DELEGATION session {session_id}" in stack.log("delegation").read_text()
    assert TOKEN not in logs


@pytest.mark.long
def test_the_service_may_be_killed_in_between(
    stack: Stack, big: BigNode, small: SmallNode, chain: Chain
) -> None:
    """The session goes on while nobody answers, and nothing of it is lost."""
    block_hash = block()
    small.generate(chain, block_hash=block_hash).raise_for_status()
    arrived(stack, chain, block_hash, ENOUGH)
    big.kill()
    session_id = small.status()["session_id"]
    stack.wait(lambda: small.status()["error"] is not None, "the small node to notice")
    assert small.status()["status"] == "GENERATING"
    stack.wait_checked(session_id, 2 * stack.status(session_id).checked)
    big.start()
    arrived(stack, chain, block_hash, len(chain.nonces(block_hash)) + ENOUGH)
    assert small.status()["error"] is None
    finish(stack, small, chain, block_hash)


def test_the_small_node_may_be_killed_in_between(
    stack: Stack, big: BigNode, small: SmallNode, chain: Chain
) -> None:
    """It goes on where its disk says, with the same session."""
    block_hash = block()
    small.generate(chain, block_hash=block_hash).raise_for_status()
    arrived(stack, chain, block_hash, ENOUGH)
    session_id = small.status()["session_id"]
    small.kill()
    stack.wait_checked(session_id, 2 * stack.status(session_id).checked)
    small.start()
    assert small.status()["session_id"] == session_id
    assert small.status()["status"] == "GENERATING"
    arrived(stack, chain, block_hash, len(chain.nonces(block_hash)) + ENOUGH)
    small.stop()
    stack.wait(lambda: not stack.status(session_id).state.is_active, "the session to be stopped")
    found = stack.nonces(session_id)
    stack.wait(lambda: small.status()["outbox"]["waiting"] == 0, "the outbox to be empty")
    stack.wait(lambda: set(chain.nonces(block_hash)) == set(found), "all nonces at the chain")
    # What was posted when it died, and not noted yet, may come once more; nothing else does.
    repeated = len(chain.nonces(block_hash)) - len(found)
    assert repeated <= max(len(body["nonces"]) for body in chain.bodies(block_hash))


def test_replies_may_be_cut_off(stack: Stack, small: SmallNode, wire: Wire, chain: Chain) -> None:
    """A reply of which only the beginning came is asked for again."""
    block_hash = block()
    small.generate(chain, block_hash=block_hash).raise_for_status()
    for _ in range(3):
        cuts, before = wire.cuts, len(chain.nonces(block_hash))
        wire.cut_after = 400
        stack.wait(lambda cuts=cuts: wire.cuts > cuts, "a reply to be cut")  # type: ignore[misc]
        arrived(stack, chain, block_hash, before + 100)
    finish(stack, small, chain, block_hash)


def test_the_chain_may_fail_five_times(stack: Stack, small: SmallNode, chain: Chain) -> None:
    """Answers of 500 are tried again, in order."""
    chain.statuses = itertools.repeat(500, 5)
    block_hash = block()
    small.generate(chain, block_hash=block_hash).raise_for_status()
    arrived(stack, chain, block_hash, ENOUGH)
    finish(stack, small, chain, block_hash)


def test_redis_may_be_restarted(stack: Stack, small: SmallNode, chain: Chain) -> None:
    """What was committed before is on its disk; the rest goes on."""
    block_hash = block()
    small.generate(chain, block_hash=block_hash).raise_for_status()
    arrived(stack, chain, block_hash, ENOUGH)
    stack.kill_redis()
    stack.server.ensure()
    stack.wait_live("gpu0", "gpu1")
    arrived(stack, chain, block_hash, len(chain.nonces(block_hash)) + ENOUGH)
    session_id = small.status()["session_id"]
    small.stop()
    stack.wait(lambda: not stack.status(session_id).state.is_active, "the session to be stopped")
    stack.wait(lambda: small.status()["outbox"]["waiting"] == 0, "the outbox to be empty")
    # The last tenths of a second before a power cut may be lost to the store, after they were sent.
    stack.wait(lambda: set(stack.nonces(session_id)) <= set(chain.nonces(block_hash)), "all nonces")
    assert len(set(chain.nonces(block_hash))) == len(chain.nonces(block_hash))
    assert not chain.bad


def test_a_session_ends_by_itself_with_everything_delivered(stack: Stack, chain: Chain) -> None:
    """At the deadline the last batch that was committed is in, and none after it."""
    with contextlib.ExitStack() as at_end:
        short = BigNode(stack, "short-delegation", DELEGATION_WINDOW_SECONDS="3")
        at_end.callback(stack.terminate, "short-delegation")
        small = SmallNode(stack, short.url, "short-small", DELEGATION_WINDOW_SECONDS="3")
        at_end.callback(small.close)
        block_hash = block()
        small.generate(chain, block_hash=block_hash).raise_for_status()
        session_id = small.status()["session_id"]
        stack.wait_over(session_id)
        assert stack.status(session_id).state.value == "expired"
        check_all_arrived(stack, small, chain, block_hash, session_id)
        stack.wait(lambda: small.status()["status"] == "STOPPED", "the node to be done")


def test_what_cannot_begin_says_why(stack: Stack, big: BigNode, chain: Chain) -> None:
    """A wrong token, another model, a full or an absent big node: one sentence each, for its reader."""
    with contextlib.ExitStack() as at_end:
        wrong = SmallNode(
            stack, big.url, "wrong", DELEGATION_AUTH_TOKEN="not-the-token-of-the-tests"
        )
        at_end.callback(wrong.close)
        refused = wrong.generate(chain, block_hash=block())
        assert refused.status_code == 502
        assert refused.json()["detail"].startswith(
            "Failed to start delegation session: Invalid auth token"
        )
        assert wrong.status()["error"] == refused.json()["detail"]
        away = {"delegation_url": "http://127.0.0.1:9", "delegation_auth_token": TOKEN}
        absent = wrong.generate(chain, block_hash=block(), **away)
        assert absent.status_code == 503
        assert absent.json()["detail"].startswith(
            "Failed to start delegation session: Connection refused. Check that"
        )
        ours = {"delegation_url": big.url, "delegation_auth_token": TOKEN}
        conflict = wrong.generate(
            chain, block_hash=block(), params={"dim": 1792, "seq_len": 16}, **ours
        )
        assert conflict.status_code == 409
        assert "dim 1792" in conflict.json()["detail"]
        validating = wrong.http.post(f"{POW}/phase/validate")
        assert validating.status_code == 400
        assert validating.json()["detail"] == "Validation phase not supported in delegation mode"
        with big.client() as client:
            started = []
            while (reply := start(client)).status_code == 200:
                started.append(reply.json()["session_id"])
            assert len(started) == 20
            assert reply.status_code == 429
            assert int(reply.headers["Retry-After"]) > 0
            full = wrong.generate(chain, block_hash=block(), **ours)
            assert full.status_code == 429
            assert "Maximum sessions (20) reached." in full.json()["detail"]
            for session_id in started:
                client.post("/stop", json={"session_id": session_id}).raise_for_status()


def start(client: httpx.Client, **fields: object) -> httpx.Response:
    """Start a session as WIRE.md's clients do."""
    body: dict[str, object] = {"node_id": 0, "node_count": 1, "block_hash": block()}
    body |= {"block_height": 1}
    body |= {"public_key": "key", "batch_size": 8, "r_target": 2.0, "fraud_threshold": 0.01}
    body |= {"params": {"seq_len": 16}}
    return client.post("/start", json=body | fields)


@pytest.mark.long
def test_a_cheat_is_found_out(stack: Stack, big: BigNode, chain: Chain) -> None:
    """5 % of made-up nonces: the session is stopped, the rest is held, local work takes over."""
    cheat = Cheat(big.url, 0.05)
    with contextlib.ExitStack() as at_end:
        at_end.callback(cheat.close)
        small = SmallNode(
            stack,
            cheat.url,
            "wary",
            POCQUEUE_NODE_WORK="engine",
            DELEGATION_FALLBACK="local",
        )
        at_end.callback(small.close)
        block_hash = block()
        small.generate(chain, block_hash=block_hash, r_target=1.4, batch_size=32).raise_for_status()
        session_id = small.status()["session_id"]
        stack.wait(lambda: "FRAUD" in stack.log("wary").read_text(), "the fraud to be found out")
        assert cheat.made_up
        stack.wait(
            lambda: not stack.status(session_id).state.is_active, "its session to be stopped"
        )
        stack.wait(lambda: not small.status()["delegation_mode"], "local work to take over")
        last = small.status()
        assert last["error"].startswith("The big node's session was fraud: ")
        sent = len(chain.bodies(block_hash))
        stack.wait(lambda: len(chain.bodies(block_hash)) > sent, "batches of its own")
        own = [nonce for body in chain.bodies(block_hash)[sent:] for nonce in body["nonces"]]
        assert not set(own) & cheat.made_up
        small.stop()


def test_a_node_works_and_validates_by_itself(stack: Stack, chain: Chain) -> None:
    """Local mode: an engine of its own searches, and checks the proofs of others."""
    small = SmallNode(stack, None, "alone")
    with contextlib.ExitStack() as at_end:
        at_end.callback(small.close)
        block_hash = block()
        small.generate(chain, block_hash=block_hash, r_target=1.4).raise_for_status()
        assert small.status()["delegation_mode"] is False
        arrived(stack, chain, block_hash, 20)
        small.http.post(f"{POW}/phase/validate").raise_for_status()
        assert small.status()["status"] == "VALIDATING"
        proof = chain.bodies(block_hash)[0]
        num = 50
        made_up = proof | {"nonces": list(range(10**9, 10**9 + num)), "dist": num * [1.3]}
        for body in (proof, made_up):
            assert small.http.post(f"{POW}/validate", json=body).raise_for_status().json() is None
        stack.wait(lambda: len(chain.bodies(block_hash, "validated")) == 2, "both verdicts")
        honest, fraud = chain.bodies(block_hash, "validated")
        assert not honest["fraud_detected"]
        assert fraud["fraud_detected"]
        assert not chain.bad
        prefixed = small.http.get("/v3.0.8/api/v1/state")
        assert prefixed.json() == {"state": "POW"}
        assert small.http.post("/api/v1/stop").json() == {"status": "OK"}
        assert small.http.post(f"{POW}/stop").json()["pow_status"] == "PoW is not running"
        assert "pocqueue_node_signed_total" in small.http.get("/metrics").text


def test_two_customers_do_not_see_each_other(stack: Stack, big: BigNode) -> None:
    """A token of the tokens file has sessions of its own, and works at once; a revoked one does not."""
    argv = [sys.executable, "-m", "pocqueue", "delegation", "token"]
    added = subprocess.run(
        [*argv, "add", "other", "--sessions", "1"],
        env=stack.env,
        capture_output=True,
        text=True,
        check=True,
    )
    token = max(added.stdout.split(), key=len)
    with big.client() as main, big.client(token) as other:
        session_id = start(main).json()["session_id"]
        assert other.get(f"/batches/{session_id}").status_code == 404
        assert other.post("/stop", json={"session_id": session_id}).status_code == 404
        assert session_id not in other.get("/status").json()["sessions"]
        assert start(other).status_code == 200
        assert start(other).status_code == 429
        subprocess.run([*argv, "revoke", "other"], env=stack.env, check=True, capture_output=True)
        stack.wait(lambda: other.get("/status").status_code == 401, "the token to be refused")
        main.post("/stop", json={"session_id": session_id}).raise_for_status()


def test_a_trial_shows_that_all_of_it_works(stack: Stack, small: SmallNode, tmp_path: Path) -> None:
    """`node try` plays the chain; what it wrote down verifies, and not with another's key."""
    file = str(tmp_path / "signed.jsonl")
    argv = [sys.executable, "-m", "pocqueue", "node"]
    shape = ("--seconds", "2", "--seq-len", "16", "--batch-size", "8", "--r-target", "2")
    tried = subprocess.run(
        [*argv, "try", "--url", small.url, "--output", file, *shape],
        env=stack.env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "delegated, 2 GPUs" in tried.stdout
    assert f"signed by {small.signer[:12]}" in tried.stdout
    verify = [*argv, "verify", file, "--signer"]
    verified = subprocess.run(
        [*verify, small.signer], env=stack.env, capture_output=True, text=True
    )
    assert verified.returncode == 0, verified.stderr
    other = SigningKey.generate().public_hex
    assert subprocess.run([*verify, other], env=stack.env, capture_output=True).returncode == 1
