"""Proof batches, the validation rule, the fraud test and their wire bodies."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields

import pytest
from hypothesis import given, strategies as st
from scipy.stats import binomtest

from pocqueue.errors import InvalidRound, PocqueueError
from pocqueue.poc.config import PoCConfig, PoCState
from pocqueue.poc.data import (
    PROBABILITY_MISMATCH,
    ProofBatch,
    ValidatedBatch,
    fraud_test,
    is_mismatch,
)


def proof(dist: list[float]) -> ProofBatch:
    return ProofBatch("pk", "bh", 7, list(range(len(dist))), dist, 2)


def validated(
    dist: list[float], received: list[float], fraud_threshold: float = 0.01
) -> ValidatedBatch:
    return ValidatedBatch(
        **asdict(proof(dist)),
        received_dist=received,
        r_target=1.0,
        fraud_threshold=fraud_threshold,
    )


def test_sub_batch_is_strict() -> None:
    """Below r_target is valid; equal, NaN and the infinities are not."""
    batch = proof([0.5, 1.0, math.nan, 0.9999, -math.inf, math.inf, 1.5])
    valid = batch.sub_batch(1.0)
    assert valid.nonces == [0, 3]
    assert valid.dist == [0.5, 0.9999]
    assert (valid.public_key, valid.block_hash, valid.block_height, valid.node_id) == (
        "pk",
        "bh",
        7,
        2,
    )
    assert len(batch) == 7


def test_empty() -> None:
    """An empty batch has no nonces and stays so."""
    assert len(ProofBatch.empty()) == 0
    assert ProofBatch.empty().sub_batch(2.0) == ProofBatch.empty()


def test_wire_bodies() -> None:
    """asdict is the body: these names, in this order, in plain JSON types."""
    text = (
        '{"public_key": "pk", "block_hash": "bh", "block_height": 7, "nonces": [0, 1], '
        '"dist": [0.25, 1.5], "node_id": 2}'
    )
    generated = json.loads(text)
    assert json.dumps(asdict(proof([0.25, 1.5]))) == text
    verdict = {
        "received_dist": [0.25, 0.5],
        "r_target": 1.0,
        "fraud_threshold": 0.01,
        "n_invalid": 1,
        "probability_honest": pytest.approx(0.00099975),
        "fraud_detected": True,
    }
    body = asdict(validated([0.25, 1.5], [0.25, 0.5]))
    assert body == {**generated, **verdict}
    assert list(body) == [*generated, *verdict]
    assert json.loads(json.dumps(body)) == body


def test_wire_body_is_read_back_and_judged_again() -> None:
    """A verdict that came over the wire is not believed."""
    body = asdict(validated([0.25, 1.5], [0.25, 0.5]))
    assert ValidatedBatch(**body | {"n_invalid": 0, "fraud_detected": False}).fraud_detected


@pytest.mark.parametrize(
    ("received", "computed", "mismatch"),
    [
        (0.9, 0.9, False),
        (0.9, 1.0, False),
        (0.9, math.nextafter(1.0, 2.0), True),
        (1.0, 0.9, True),
        (math.nextafter(1.0, 0.0), 0.9, False),
        (math.nan, 0.9, True),
        (0.9, math.nan, True),
        (-math.inf, 0.9, True),
        (0.9, math.inf, True),
    ],
)
def test_validation_rule(received: float, computed: float, mismatch: bool) -> None:
    """A claim must be below r_target, what was computed may equal it, and both be finite."""
    assert is_mismatch(received, computed, 1.0) is mismatch
    assert validated([computed], [received]).n_invalid == mismatch


def test_honest_and_fraudulent_batches() -> None:
    """One miss in a thousand is float error; one in ten or three in a thousand are not."""
    honest = validated([1.01] + [0.5] * 999, [0.99] + [0.5] * 999)
    assert (honest.n_invalid, honest.fraud_detected) == (1, False)
    assert honest.probability_honest == pytest.approx(1 - (1 - PROBABILITY_MISMATCH) ** 1000)
    assert not validated([0.5], [0.6]).fraud_detected
    assert validated([1.01] + [0.5] * 9, [0.5] * 10).fraud_detected
    assert not validated([1.01] + [0.5] * 9, [0.5] * 10, fraud_threshold=1e-7).fraud_detected


def test_empty_batch_is_honest() -> None:
    """Nothing was claimed, so nothing is wrong."""
    nothing = validated([], [])
    assert (nothing.n_invalid, nothing.probability_honest, nothing.fraud_detected) == (
        0,
        1.0,
        False,
    )


@pytest.mark.parametrize(
    ("dist", "received", "field"), [([0.1], [], "received_dist"), ([], [0.1], "received_dist")]
)
def test_lengths_must_agree(dist: list[float], received: list[float], field: str) -> None:
    """Each distance belongs to a nonce."""
    with pytest.raises(ValueError, match=rf"{field} is 'a list of \d'; allowed: one distance"):
        validated(dist, received)


def test_batch_without_all_its_distances_is_refused() -> None:
    """Also where the nonces and the computed distances do not pair."""
    torn = ProofBatch("pk", "bh", 7, [1, 2], [0.1], 0)
    with pytest.raises(PocqueueError, match=r"dist is 'a list of 1'.*there are 2"):
        torn.sub_batch(1.0)
    with pytest.raises(InvalidRound, match=r"^dist is"):
        ValidatedBatch(**asdict(torn), received_dist=[0.1, 0.2], r_target=1.0, fraud_threshold=0.01)


@given(data=st.data(), n_total=st.integers(1, 5000))
def test_fraud_test_is_the_binomial_test(data: st.DataObject, n_total: int) -> None:
    """The tail agrees with scipy's test, also far out."""
    n_invalid = data.draw(st.integers(0, min(n_total, 40)))
    p_value, fraud = fraud_test(n_invalid, n_total, 0.01)
    expected = binomtest(n_invalid, n_total, PROBABILITY_MISMATCH, alternative="greater").pvalue
    assert p_value == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert fraud is (p_value < 0.01)


@pytest.mark.parametrize(("n_invalid", "n_total"), [(-1, 5), (6, 5)])
def test_fraud_test_refuses_impossible_counts(n_invalid: int, n_total: int) -> None:
    """No more can be invalid than there are."""
    with pytest.raises(ValueError, match=f"n_invalid is {n_invalid}"):
        fraud_test(n_invalid, n_total, 0.01)


def test_config_has_the_public_order_and_defaults() -> None:
    """Positional use and equality are part of the face."""
    config = PoCConfig("bh", 7, "pk", 0.5)
    assert config == PoCConfig("bh", 7, "pk", 0.5, 0.01, 0, 1, 32, 256, None)
    assert [field.name for field in fields(config)] == [
        "block_hash",
        "block_height",
        "public_key",
        "r_target",
        "fraud_threshold",
        "node_id",
        "node_count",
        "batch_size",
        "seq_len",
        "callback_url",
    ]
    config.batch_size = 4
    assert config != PoCConfig("bh", 7, "pk", 0.5)


def test_state_values_are_their_names() -> None:
    """The wire words."""
    assert [s.value for s in PoCState] == ["IDLE", "GENERATING", "VALIDATING", "STOPPED"]
    assert all(s.value == s.name for s in PoCState)
