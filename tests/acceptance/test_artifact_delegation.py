"""Artifacts through a delegation: receiver, small node, big node, two workers and back, vector for vector."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typing_extensions import override

from pocqueue.poc.artifact.data import encode
from pocqueue.rounds.proof_file import digest
from tests.support.delegation_parts import BigNode, Chain, Cheat, SmallNode, block
from tests.support.stack import Stack, pocqueue, pocqueue_here

ENOUGH = 200


class ArtifactReceiver(Chain):
    """Takes artifacts in the network's words, and nothing that is signed."""

    @override
    def check(self, body: dict[str, Any]) -> None:
        wanted = {"public_key", "block_hash", "block_height", "node_id", "artifacts", "encoding"}
        assert body.keys() == wanted
        assert body["encoding"] == {"dtype": "f16", "k_dim": 12, "endian": "le"}

    def count(self, block_hash: str) -> int:
        """Return how many artifacts of a block were taken."""
        return sum(len(body["artifacts"]) for body in self.bodies(block_hash))

    def artifacts(self, block_hash: str) -> list[tuple[int, str]]:
        """Return every artifact that was taken of a block, in order."""
        return [
            (one["nonce"], one["vector_b64"])
            for body in self.bodies(block_hash)
            for one in body["artifacts"]
        ]


class ArtifactCheat(Cheat):
    """Makes a share of the vectors up."""

    @override
    def spoil(self, page: dict[str, Any]) -> dict[str, Any]:
        for batch in page["batches"]:
            for at, nonce in enumerate(batch["nonces"]):
                if self._rng.random() < self.share:
                    self.made_up.add(nonce)
                    vector = np.random.default_rng(nonce).standard_normal(12)
                    [batch["vectors"][at]] = encode([vector / np.linalg.norm(vector)])
        return page

    _rng = random.Random(4)  # noqa: S311 - it is to repeat


@pytest.fixture(scope="module")
def big(shared_stack: Stack) -> Iterator[BigNode]:
    """One big node for the module."""
    yield BigNode(shared_stack, "artifact-delegation", DELEGATION_MAX_SESSIONS="20")
    shared_stack.terminate("artifact-delegation")


@pytest.fixture
def receiver() -> Iterator[ArtifactReceiver]:
    """Where artifacts go."""
    made = ArtifactReceiver()
    yield made
    made.close()


def check_computed(stack: Stack, session_id: str, folder: Path, found: dict[int, str]) -> None:
    """Check that vectors of a session are what an engine computes for them, bit for bit."""
    path = folder / "proofs.json"
    written = pocqueue(stack, "round", "proofs", session_id, "--output", str(path))
    assert written.returncode == 0, written.stderr
    content = json.loads(path.read_text())
    nonces = sorted(found)
    content["proofs"] |= {"nonces": nonces, "vectors": [found[nonce] for nonce in nonces]}
    content["result"]["valid"] = len(nonces)
    content["sha256"] = digest(content)
    path.write_text(json.dumps(content))
    # Two vectors that are not equal are farther apart than 0.
    judged = pocqueue_here(stack, "round", "validate", str(path), "--dist-threshold", "0", "--json")
    said = json.loads(judged.stdout)
    assert (said["n"], said["n_invalid"]) == (len(nonces), 0)


def test_every_artifact_arrives_exactly_and_once(
    stack: Stack, big: BigNode, receiver: ArtifactReceiver, tmp_path: Path
) -> None:
    """Of one of two groups of a node; the small node and a worker are killed in between."""
    small = SmallNode(stack, big.url, "artifact-small")
    with contextlib.ExitStack() as at_end:
        at_end.callback(small.close)
        block_hash = block()
        round_of = {"proof": "artifact", "node_id": 1, "node_count": 3}
        small.generate(
            receiver, block_hash=block_hash, **round_of, n_groups=2, group_id=1
        ).raise_for_status()
        session_id = small.status()["session_id"]
        stack.wait(lambda: receiver.count(block_hash) >= ENOUGH, "the first artifacts")
        small.kill()
        stack.kill("gpu1")
        stack.wait_checked(session_id, stack.status(session_id).checked + ENOUGH)
        small.start()
        assert small.status()["session_id"] == session_id
        stack.worker("gpu1")
        before = receiver.count(block_hash)
        stack.wait(lambda: receiver.count(block_hash) >= before + ENOUGH, "more artifacts")
        small.stop()
        stack.wait(
            lambda: not stack.status(session_id).state.is_active, "the session to be stopped"
        )
        in_store = stack.nonces(session_id)
        stack.wait(
            lambda: (
                receiver.count(block_hash) >= len(in_store)
                and small.status()["outbox"]["waiting"] == 0
            ),
            "all artifacts at the receiver",
        )
        arrived = receiver.artifacts(block_hash)
        found = dict(arrived)
        assert receiver.bad == []
        assert found.keys() == set(in_store)
        # Each of them the same in every post: what was posted when the node died may have come once more.
        assert set(arrived) == set(found.items())
        largest = max(len(body["artifacts"]) for body in receiver.bodies(block_hash))
        assert len(arrived) - len(found) <= largest
        assert len(found) == stack.status(session_id).checked
        assert all(nonce % 6 == 4 for nonce in found)
        assert small.status()["outbox"]["refused"] == 0
        assert "pocqueue_node_signed_total 0.0" in small.http.get("/metrics").text
        some = dict(random.Random(1).sample(sorted(found.items()), 200))  # noqa: S311
        check_computed(stack, session_id, tmp_path, some)


@pytest.mark.long
def test_made_up_vectors_are_found(
    stack: Stack, big: BigNode, receiver: ArtifactReceiver, tmp_path: Path
) -> None:
    """An honest round passes; of one with 10 % made up nothing more is sent, and local work takes over."""
    cheat = ArtifactCheat(big.url, 0.0)
    with contextlib.ExitStack() as at_end:
        at_end.callback(cheat.close)
        small = SmallNode(
            stack,
            cheat.url,
            "artifact-wary",
            POCQUEUE_NODE_WORK="engine",
            DELEGATION_FALLBACK="local",
            DELEGATION_DIST_THRESHOLD="0.3",
            DELEGATION_P_MISMATCH="0.005",
        )
        at_end.callback(small.close)
        honest = block()
        small.generate(receiver, block_hash=honest, proof="artifact").raise_for_status()
        stack.wait(lambda: small.status()["sampled_nonces"] > 60, "a sample")
        stack.wait(lambda: receiver.artifacts(honest), "artifacts at the receiver")
        assert not small.status()["fraud_detected"]
        small.stop()

        cheat.share = 0.1
        block_hash = block()
        small.generate(receiver, block_hash=block_hash, proof="artifact").raise_for_status()
        session_id = small.status()["session_id"]
        log = stack.log("artifact-wary")
        stack.wait(lambda: "FRAUD" in log.read_text(), "the fraud to be found out")
        assert cheat.made_up
        stack.wait(
            lambda: not stack.status(session_id).state.is_active, "its session to be stopped"
        )
        stack.wait(lambda: not small.status()["delegation_mode"], "local work to take over")
        assert small.status()["error"].startswith("The big node's session was fraud: ")
        assert small.status()["distrusted"] == [cheat.url]
        sent = receiver.count(block_hash)
        stack.wait(lambda: receiver.count(block_hash) >= sent + 50, "artifacts of its own")
        small.stop()
        own = dict(receiver.artifacts(block_hash)[sent:])
        check_computed(stack, session_id, tmp_path, own)
        assert receiver.bad == []
