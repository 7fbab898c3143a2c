"""Engine information and the checks every engine shares."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pocqueue.engine import EngineInfo, EngineOptions, load_engine
from pocqueue.engine.base import check_batch
from pocqueue.errors import InvalidRound, SettingsError
from pocqueue.poc.batch import Batch

INFO = EngineInfo("torch", "embedded", "ab" * 32, "cpu", "a CPU", "bfloat16", 128, 1024, 4096)


def _batch(*nonces: int, batch_size: int = 4, seq_len: int = 16) -> Batch:
    return Batch("block", "key", nonces, batch_size, seq_len)


def test_info_survives_a_round_trip_and_fields_of_newer_workers() -> None:
    """What one worker writes another reads, even with a field it does not know."""
    assert EngineInfo.from_dict(INFO.to_dict()) == INFO
    assert EngineInfo.from_dict({**INFO.to_dict(), "added_later": 1}) == INFO


@pytest.mark.parametrize(
    ("field", "value"), [("dtype", 16), ("vocab_size", "1024"), ("device", None)]
)
def test_info_with_a_wrong_field_is_refused_by_name(field: str, value: object) -> None:
    """A field of the wrong type is named."""
    with pytest.raises(ValueError, match=field):
        EngineInfo.from_dict({**INFO.to_dict(), field: value})


def test_batches_within_bounds_pass() -> None:
    """The limits themselves are allowed."""
    check_batch(INFO, _batch(1, 2, 3, 4, batch_size=4, seq_len=4096))


@pytest.mark.parametrize(
    ("batch", "field"),
    [
        (_batch(0, seq_len=4097), "seq_len"),
        (_batch(0, seq_len=0), "seq_len"),
        (_batch(batch_size=0), "batch_size"),
        (_batch(0, 1, 2, batch_size=2), "nonces"),
    ],
)
def test_batches_out_of_bounds_are_refused_by_field(batch: Batch, field: str) -> None:
    """Each refusal names its field."""
    with pytest.raises(InvalidRound) as caught:
        check_batch(INFO, batch)
    assert caught.value.field == field


def test_an_unknown_engine_is_refused_with_those_there_are(tmp_path: Path) -> None:
    """The message lists the allowed engines."""
    with pytest.raises(SettingsError, match=r"engine is 'llama'; allowed: .*torch"):
        load_engine("llama", EngineOptions(model="embedded", device="cpu", state_dir=tmp_path))


def test_importing_the_package_does_not_import_torch() -> None:
    """The scheduler and the APIs import it, and have to start at once."""
    modules = (
        "engine, engine.base, engine.devices, engine.fingerprint, engine.models, "
        "engine.vllm.remote, poc.batch"
    )
    imports = "; ".join(f"import pocqueue.{module}" for module in modules.split(", "))
    code = (
        f"import sys; {imports}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
