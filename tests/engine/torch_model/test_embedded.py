"""The embedded model's folder: the same bytes everywhere, whole at every moment."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from pocqueue.engine.fingerprint import fingerprint
from pocqueue.engine.torch_model.embedded import (
    CONFIG,
    EMBEDDED_FINGERPRINT,
    ensure_embedded_model,
    tensor_shapes,
)
from pocqueue.errors import EngineError


def test_the_fingerprint_is_the_known_one(tmp_path: Path) -> None:
    """Every machine makes the same model."""
    assert fingerprint(ensure_embedded_model(tmp_path)) == EMBEDDED_FINGERPRINT


def test_it_has_about_a_million_parameters() -> None:
    """Small enough for a laptop, big enough to be a model."""
    assert sum(int(np.prod(shape)) for shape in tensor_shapes().values()) == 1_049_984


def test_the_folder_is_an_ordinary_one(tmp_path: Path) -> None:
    """The official readers understand it, and it holds nothing else."""
    folder = ensure_embedded_model(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text()) == CONFIG
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert found == tensor_shapes()


def test_it_is_written_once(tmp_path: Path) -> None:
    """A good folder is left alone."""
    weights = ensure_embedded_model(tmp_path) / "model.safetensors"
    before = weights.stat()
    ensure_embedded_model(tmp_path)
    after = weights.stat()
    # Not the whole record: reading the file to compare it may move its access time.
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "removed", "edited"])
def test_a_damaged_folder_is_made_again(tmp_path: Path, name: str, damage: str) -> None:
    """Nothing of the old folder, and no scratch folder, is left behind."""
    path = ensure_embedded_model(tmp_path) / name
    good = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(good[:100] if damage == "cut" else bytes([good[0] ^ 1]) + good[1:])
    assert (ensure_embedded_model(tmp_path) / name).read_bytes() == good
    assert [entry.name for entry in (tmp_path / "models").iterdir()] == ["embedded-v1"]


def _make(state_dir: Path) -> str:
    return fingerprint(ensure_embedded_model(state_dir))


def test_processes_at_once_all_find_it_whole(tmp_path: Path) -> None:
    """Whoever is first, everybody reads the same model and no scratch folder stays."""
    processes = multiprocessing.get_context("forkserver")
    # The four of them import torch once.
    processes.set_forkserver_preload([__name__])
    with processes.Pool(4) as pool:
        assert set(pool.map(_make, [tmp_path] * 8, chunksize=1)) == {EMBEDDED_FINGERPRINT}
    assert [entry.name for entry in (tmp_path / "models").iterdir()] == ["embedded-v1"]


def test_a_state_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    """It names the folder and says what to do."""
    (tmp_path / "state").write_text("a file")
    with pytest.raises(EngineError, match=r"cannot be written to .*state.* Choose a state folder"):
        ensure_embedded_model(tmp_path / "state")
