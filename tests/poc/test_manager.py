"""The manager with a real, tiny model: searching, validating, stopping, NaN, bounds."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from pocqueue.errors import InvalidRound
from pocqueue.poc.config import PoCConfig
from pocqueue.poc.data import ProofBatch
from pocqueue.poc.manager import PoCManager
from tests.support.callback_receiver import receiving
from tests.support.tiny_model import (
    HIDDEN_SIZE,
    VOCAB_SIZE,
    HeadModel,
    NanModel,
    OldTinyModel,
    TinyConfig,
    TinyModel,
)

SEQ_LEN = 6


def round_of(**changes: Any) -> PoCConfig:
    fields: dict[str, Any] = {
        "block_hash": "bh",
        "block_height": 7,
        "public_key": "pk",
        "r_target": 1.4,
        "node_id": 1,
        "node_count": 3,
        "batch_size": 4,
        "seq_len": SEQ_LEN,
    }
    return PoCConfig(**fields | changes)


def generating(model: TinyModel, **changes: Any) -> PoCManager:
    manager = PoCManager(model, TinyConfig())
    manager.init_round(round_of(**changes))
    manager.start_generate()
    return manager


@pytest.fixture
def model() -> TinyModel:
    return TinyModel(SEQ_LEN)


def test_run_batch_computes_and_counts(model: TinyModel) -> None:
    """Each batch holds the node's next nonces; the valid ones are kept."""
    manager = generating(model)
    batches = [manager.run_batch() for _ in range(5)]
    nonces = [nonce for batch in batches for nonce in batch.nonces]
    dist = [distance for batch in batches for distance in batch.dist]
    assert nonces == [1 + 3 * index for index in range(20)]
    assert all(0 <= distance <= 2 for distance in dist)
    assert len(set(dist)) == 20
    valid = [(n, d) for n, d in zip(nonces, dist, strict=True) if d < 1.4]
    assert 0 < len(valid) < 20
    status = manager.get_status()
    assert list(zip(status["valid_nonces"], status["valid_distances"], strict=True)) == valid
    assert (status["total_checked"], status["total_valid"]) == (20, len(valid))
    assert status["state"] == "GENERATING"
    assert status["elapsed_seconds"] > 0
    assert status["rate_per_second"] > 0
    first = batches[0]
    assert (first.public_key, first.block_hash, first.block_height, first.node_id) == (
        "pk",
        "bh",
        7,
        1,
    )


def test_the_target_is_the_blocks(model: TinyModel) -> None:
    """float32, on the model's device, of norm 1."""
    manager = generating(model)
    assert manager.target is not None
    assert manager.target.shape == (VOCAB_SIZE,)
    assert manager.target.device == manager.device == model.head.device
    assert manager.target.norm().item() == pytest.approx(1)


def test_validation_finds_the_same_distances(model: TinyModel) -> None:
    """Whatever the number of nonces and their order, on another manager, and in a fixed shape."""
    searcher = generating(model)
    batches = [searcher.run_batch() for _ in range(3)]
    nonces = [nonce for batch in batches for nonce in batch.nonces]
    dist = dict(zip(nonces, (d for batch in batches for d in batch.dist), strict=True))
    validator = PoCManager(TinyModel(SEQ_LEN), TinyConfig())
    validator.init_round(round_of(public_key="another", node_id=0))
    validator.start_validate()
    asked = [*nonces[::-1], nonces[5]]
    distances, valid = validator.validate(asked, "pk")
    assert distances == pytest.approx([dist[nonce] for nonce in asked], abs=1e-6)
    assert valid == [distance < 1.4 for distance in distances]
    assert validator.validate(asked[:1], "pk")[0] == pytest.approx(distances[:1], abs=1e-6)
    assert validator.validate(asked[:1], "another")[0] != distances[:1]
    assert set(validator.model.shapes) == {(4 * SEQ_LEN, HIDDEN_SIZE)}
    assert validator.stats.total_checked == 0


def test_validating_nothing_takes_no_pass(model: TinyModel) -> None:
    """No nonces, no distances; no round, an error."""
    manager = PoCManager(model, TinyConfig())
    with pytest.raises(RuntimeError, match="No round configured"):
        manager.validate([1], "pk")
    manager.init_round(round_of())
    assert manager.validate([], "pk") == ([], [])
    assert model.shapes == []


@pytest.mark.parametrize("state", ["IDLE", "VALIDATING", "STOPPED"])
def test_only_a_started_round_is_searched(model: TinyModel, state: str) -> None:
    """In every other state a batch is empty and costs nothing."""
    manager = PoCManager(model, TinyConfig())
    assert manager.run_batch() == ProofBatch.empty()
    manager.init_round(round_of())
    if state == "VALIDATING":
        manager.start_validate()
    elif state == "STOPPED":
        manager.stop_round()
    assert manager.state.value == state
    assert manager.run_batch() == ProofBatch.empty()
    assert model.shapes == []


def test_nonces_need_a_round(model: TinyModel) -> None:
    """Before the first one there are none."""
    with pytest.raises(RuntimeError, match="Round not initialized"):
        PoCManager(model, TinyConfig()).get_next_nonces()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"node_id": 3}, "node_id"),
        ({"node_count": 0}, "node_count"),
        ({"batch_size": 0}, "batch_size"),
        ({"seq_len": 0}, "seq_len"),
    ],
)
def test_impossible_round_changes_nothing(
    model: TinyModel, changes: dict[str, Any], field: str
) -> None:
    """The round before stays as it was."""
    manager = generating(model)
    manager.run_batch()
    manager.stop_round()
    before = manager.get_status()
    with pytest.raises(InvalidRound) as caught:
        manager.init_round(round_of(**changes))
    assert caught.value.field == field
    assert manager.get_status() == before
    assert manager.config == round_of()


def test_nan_and_infinity_are_dropped_and_counted() -> None:
    """They are never valid and never handed out."""
    manager = generating(NanModel(SEQ_LEN), r_target=2.0)
    batches = [manager.run_batch() for _ in range(2)]
    assert [batch.nonces for batch in batches] == [[7, 10], [19, 22]]
    assert (manager.stats.total_checked, manager.stats.total_nonfinite) == (8, 4)
    assert manager.stats.total_valid == len(manager.valid_nonces) == 4
    distances, valid = manager.validate([1, 4, 7], "pk")
    assert [torch.isfinite(torch.tensor(d)).item() for d in distances] == [False, False, True]
    assert valid == [False, False, True]


def test_status_is_a_copy(model: TinyModel) -> None:
    """What was handed out does not change behind the reader's back."""
    manager = generating(model, r_target=2.0)
    manager.run_batch()
    status = manager.get_status()
    manager.run_batch()
    assert len(status["valid_nonces"]) == 4


def test_clock_stops_with_the_round(model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elapsed freezes on stop, stays frozen, and leaves out the pause when resumed."""
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    manager = generating(model)
    now = 1010.0
    assert manager.stats.elapsed == 10.0
    manager.stop_round()
    now = 1500.0
    manager.stop_round()
    assert manager.get_status()["elapsed_seconds"] == 10.0
    manager.start_generate()
    now = 1505.0
    assert manager.stats.elapsed == 15.0
    manager.start_validate()
    now = 1600.0
    assert manager.stats.elapsed == 15.0
    manager.init_round(round_of())
    assert manager.stats.elapsed == 0.0


async def test_valid_nonces_go_to_the_callback_url(model: TinyModel) -> None:
    """Only the valid ones, with the round's target beside them."""
    async with receiving() as receiver:
        manager = generating(model, callback_url=receiver.url)
        batch = await manager.run_batch_async()
        while not manager.valid_nonces:
            batch = await manager.run_batch_async()
        assert len(batch) == 4
        await manager.close()
        [(path, body)] = receiver.received
        assert path.endswith("/generated")
        assert (body["nonces"], body["r_target"]) == (manager.valid_nonces, 1.4)


@pytest.mark.parametrize("kind", [OldTinyModel, HeadModel])
def test_other_kinds_of_models(kind: type[TinyModel], model: TinyModel) -> None:
    """Logits come with an older vLLM's argument, or from the head; the distances are the same."""
    assert generating(kind(SEQ_LEN)).run_batch() == generating(model).run_batch()
