"""What is said about a validation beside its verdict."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pocqueue.rounds.validation import engine_note
from tests.support.factories import make_info, make_spec


def _file(runtime: str | None) -> Any:
    return SimpleNamespace(spec=make_spec(model_runtime=runtime))


def test_another_runtime_is_named_with_what_to_do() -> None:
    """A verdict that float error alone can make is not left without a word."""
    note = engine_note(_file("vllm-x2"), make_info(engine="torch"))
    assert note is not None
    assert "made by vllm-x2 and are recomputed by torch" in note
    assert "POCQUEUE_ENGINE=vllm on as many devices" in note


def test_the_same_runtime_needs_no_note() -> None:
    """Nor do proofs of a round that took any; a served vLLM is a vLLM."""
    assert engine_note(_file("torch"), make_info(engine="torch")) is None
    assert engine_note(_file(None), make_info(engine="torch")) is None
    assert engine_note(_file("vllm"), make_info(engine="vllm-server")) is None
    assert engine_note(_file("vllm-x2"), make_info(engine="vllm", tensor_parallel=2)) is None
