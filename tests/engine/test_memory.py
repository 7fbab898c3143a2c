"""How large a pass may be is measured at the start, on the device itself."""

from __future__ import annotations

from pathlib import Path

from pocqueue.engine import EngineOptions, load_engine
from pocqueue.engine.memory import free_bytes, measured_pass_tokens
from tests.support.fake_engine import FakeEngine


def test_a_pass_holds_what_the_free_memory_does(tmp_path: Path) -> None:
    """More than the default batch, and less than its hidden states alone would fill."""
    engine = load_engine(
        "torch", EngineOptions(model="embedded", device="cpu", state_dir=tmp_path, num_threads=1)
    )
    engine.warm_up(1, 256)
    tokens = measured_pass_tokens(engine, 32, 256)
    free = free_bytes()
    assert free is not None
    # Others take and give back memory meanwhile.
    assert 32 * 256 < tokens < 2 * free / (engine.info.hidden_size * 2)
    engine.close()


def test_a_model_in_another_process_is_not_measured() -> None:
    """Its passes are in nobody's memory here."""
    assert measured_pass_tokens(FakeEngine(), 32, 256) == 0
