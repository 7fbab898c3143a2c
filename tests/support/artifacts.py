"""Artifacts without a model: what an engine in memory makes, and rounds and pages of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pocqueue.node.round import NodeRound
from pocqueue.poc.artifact.data import encode
from pocqueue.poc.artifact.scheme import Artifact
from pocqueue.poc.proofs import ReceivedBatch
from tests.support.node import NOWHERE

K_DIM = 4


def artifact_of(nonce: int) -> str:
    """Return the artifact that a nonce has: of length 1, and far from that of most other nonces."""
    numbers = [nonce % 7 - 3, nonce % 11 - 5, nonce % 13 - 6, 1.0]
    length = sum(number**2 for number in numbers) ** 0.5
    [text] = encode([[number / length for number in numbers]])
    return text


def artifact_round(url: str = NOWHERE, **changes: Any) -> NodeRound:
    """Make the round of `node.make_round`, of artifacts."""
    fields: dict[str, Any] = {
        "scheme": "artifact",
        "k_dim": K_DIM,
        "block_hash": "block-1",
        "block_height": 7,
        "public_key": "key-1",
        "node_id": 0,
        "node_count": 1,
        "batch_size": 10,
        "seq_len": 8,
        "params": {},
        "url": url,
    }
    return NodeRound(**(fields | changes))


def artifact_batch(*nonces: int, **changes: Any) -> dict[str, Any]:
    """Make a batch of `artifact_round` as it stands in a page."""
    fields: dict[str, Any] = {
        "public_key": "key-1",
        "block_hash": "block-1",
        "block_height": 7,
        "nonces": list(nonces),
        "vectors": [artifact_of(nonce) for nonce in nonces],
        "node_id": 0,
        "scheme": "artifact",
    }
    return fields | changes


def received_artifacts(body: dict[str, Any]) -> ReceivedBatch:
    """Return such a batch as it is received."""
    return Artifact.read(Artifact.batch_model()(**body))


def artifacts_in(bodies: Iterable[Any]) -> list[tuple[int, str]]:
    """Return the artifacts of `{url}/generated` bodies, in order."""
    return [(one["nonce"], one["vector_b64"]) for body in bodies for one in body["artifacts"]]
