"""Bodies of the network's artifact wire."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pocqueue.poc import artifact
from pocqueue.poc.artifact.bodies import (
    GenerateBody,
    GenerateRoundBody,
    ReceivedArtifact,
    StatTest,
    validated_body,
    verdict_on,
)
from pocqueue.poc.artifact.data import generated_body
from pocqueue.poc.artifact.scheme import Artifact
from pocqueue.poc.proofs import Proofs

_ROUND: dict[str, Any] = {
    "block_hash": "9F2C",
    "block_height": 7,
    "public_key": "02ab",
    "node_id": 3,
    "node_count": 5,
    "params": {"model": "embedded", "seq_len": 16},
}


def test_a_round_as_the_chain_asks_for_it() -> None:
    """Neither k_dim nor batch_size is ever sent; what is not known is ignored."""
    body = GenerateRoundBody.model_validate(_ROUND | {"url": "", "something": "new"})
    assert (body.params.k_dim, body.batch_size, body.url) == (12, None, None)
    assert (body.group_id, body.n_groups) == (0, 1)
    assert body.proof() == Artifact()
    assert (
        GenerateRoundBody.model_validate(_ROUND | {"poc_stronger_rng": True}).proof().stronger_rng
    )


@pytest.mark.parametrize("name", ["scheme", "max_tokens", "k_points_steps", "decode"])
def test_a_decode_request_is_refused_with_a_sentence(name: str) -> None:
    asked = _ROUND | {"params": _ROUND["params"] | {name: "prefill"}}
    with pytest.raises(ValidationError, match=rf"params.{name} is .*the decode scheme is not"):
        GenerateRoundBody.model_validate(asked)
    with pytest.raises(ValidationError, match=rf"{name} is .*the decode scheme is not"):
        GenerateBody.model_validate(_ROUND | {"nonces": [1], name: "prefill"})


def test_a_claim_of_the_decode_scheme_is_refused() -> None:
    """It has no vector: taken for one of ours it would be a mismatch, and its maker a cheat."""
    claim = {"nonce": 3, "vector_b64": "", "k_points_steps": [0, 15]}
    asked = _ROUND | {"nonces": [3], "validation": {"artifacts": [claim]}}
    with pytest.raises(ValidationError, match=r"validation.artifacts.k_points_steps is .0, 15.;"):
        GenerateBody.model_validate(asked)


def test_other_parameters_are_refused() -> None:
    asked = _ROUND | {"params": _ROUND["params"] | {"dim": 4}}
    with pytest.raises(ValidationError, match="dim"):
        GenerateRoundBody.model_validate(asked)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 0.01),
        ({"p_value_threshold": 0.05}, 0.05),
        ({"fraud_threshold": 0.02, "p_value_threshold": 0.05}, 0.02),
        ({"fraud_threshold": None, "p_value_threshold": 0.05}, 0.05),
        ({"fraud_threshold": None, "p_value_threshold": None, "dist_threshold": None}, 0.01),
    ],
)
def test_both_names_of_the_bound_are_understood(
    given: dict[str, float | None], expected: float
) -> None:
    """The one of this wire wins, unless it is null."""
    assert StatTest.model_validate(given).fraud_threshold == expected
    body = GenerateBody.model_validate(_ROUND | {"nonces": [3], "stat_test": given})
    assert body.stat_test.fraud_threshold == expected


def test_null_is_as_good_as_nothing() -> None:
    """Of every field that may be left out."""
    names = ("batch_size", "url", "poc_stronger_rng")
    nulls: dict[str, Any] = dict.fromkeys((*names, "group_id", "n_groups"))
    assert GenerateRoundBody.model_validate(_ROUND | nulls) == GenerateRoundBody.model_validate(
        _ROUND
    )
    asked = _ROUND | {"nonces": [3]}
    nulls = dict.fromkeys((*names, "wait", "validation", "stat_test"))
    assert GenerateBody.model_validate(asked | nulls) == GenerateBody.model_validate(asked)


@pytest.mark.parametrize("nonce", [-1, 2**31])
def test_nonces_have_31_bits(nonce: int) -> None:
    with pytest.raises(ValidationError):
        GenerateBody.model_validate(_ROUND | {"nonces": [nonce]})


def test_nothing_to_validate_is_a_request() -> None:
    body = GenerateBody.model_validate(
        _ROUND | {"nonces": [], "validation": {"artifacts": []}, "stat_test": None}
    )
    assert body.validation is not None
    assert verdict_on(body.proof(), body.validation.artifacts, {}) == {
        "n_total": 0,
        "n_mismatch": 0,
        "mismatch_nonces": [],
        "p_value": 1.0,
        "fraud_detected": False,
    }


def test_what_cannot_be_read_is_a_mismatch_and_what_we_have_not_does_not_count() -> None:
    """Of five claims one matches, three do not and one nonce has no artifact of ours."""
    texts = [artifact.encode_vector(torch.eye(12)[i]) for i in range(3)]
    claims = [
        ReceivedArtifact(nonce=nonce, vector_b64=text)
        for nonce, text in enumerate([texts[0], texts[2], "", "AA==", texts[0]])
    ]
    computed = {0: texts[0], 1: texts[1], 2: texts[2], 3: texts[0]}
    verdict = verdict_on(Artifact(), claims, computed)
    assert (verdict["n_total"], verdict["n_mismatch"]) == (4, 3)
    assert verdict["mismatch_nonces"] == [1, 2, 3]
    assert verdict["p_value"] == pytest.approx(0.0037)
    assert verdict["fraud_detected"] is True
    search = GenerateRoundBody.model_validate(_ROUND)
    assert (
        validated_body(search, "an id", verdict)
        == {
            "request_id": "an id",
            "public_key": "02ab",
            "block_hash": "9F2C",
            "block_height": 7,
            "node_id": 3,
        }
        | verdict
    )


def test_a_claim_may_have_any_text() -> None:
    """It cannot be right, and the request is none the worse for it."""
    claims = [
        ReceivedArtifact.model_validate({"nonce": nonce, "vector_b64": text})
        for nonce, text in enumerate([None, "A" * 100_000, "\ud800"])
    ]
    assert all(claim.model_dump_json() for claim in claims)
    text = artifact.encode_vector(torch.eye(12)[0])
    verdict = verdict_on(Artifact(), claims, dict.fromkeys(range(3), text))
    assert verdict["mismatch_nonces"] == [0, 1, 2]


def test_a_nonce_that_is_claimed_twice_counts_once() -> None:
    """As a mismatch if the claims differ."""
    right, wrong = (artifact.encode_vector(torch.eye(12)[i]) for i in range(2))
    claims = [
        ReceivedArtifact(nonce=nonce, vector_b64=text)
        for nonce, text in [(1, right), (2, wrong), (1, right), (3, right), (2, wrong), (3, wrong)]
    ]
    verdict = verdict_on(Artifact(), claims, dict.fromkeys((1, 2, 3), right))
    assert (verdict["n_total"], verdict["n_mismatch"]) == (3, 2)
    assert verdict["mismatch_nonces"] == [2, 3]


def test_artifacts_as_a_receiver_gets_them() -> None:
    search = GenerateRoundBody.model_validate(_ROUND)
    body = generated_body(search, Proofs([3, 8], ["AAAA", "BBBB"]), 12)
    assert body == {
        "public_key": "02ab",
        "block_hash": "9F2C",
        "block_height": 7,
        "node_id": 3,
        "artifacts": [
            {"nonce": 3, "vector_b64": "AAAA"},
            {"nonce": 8, "vector_b64": "BBBB"},
        ],
        "encoding": {"dtype": "f16", "k_dim": 12, "endian": "le"},
    }
    assert generated_body(search, Proofs(), 12, "an id")["request_id"] == "an id"
