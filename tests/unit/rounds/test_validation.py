"""What is said about a validation beside its verdict."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pocqueue.rounds.proof_file import ModelPart
from pocqueue.rounds.validation import engine_note
from tests.unit.rounds.factories import make_info


def _file(engine: str | None) -> Any:
    return SimpleNamespace(model=ModelPart(name="m", fingerprint="0" * 64, engine=engine))


def test_another_runtime_is_named_with_what_to_do() -> None:
    """A verdict that float error alone can make is not left without a word."""
    note = engine_note(_file("vllm"), make_info(engine="torch"))
    assert note is not None
    assert "made with engine vllm and are recomputed with torch" in note
    assert "POCQUEUE_ENGINE=vllm" in note


def test_the_same_runtime_needs_no_note() -> None:
    """Nor do proofs whose engine the pool no longer knew."""
    assert engine_note(_file("torch"), make_info(engine="torch")) is None
    assert engine_note(_file(None), make_info(engine="torch")) is None
    assert engine_note(_file("vllm-server"), make_info(engine="vllm")) is None
