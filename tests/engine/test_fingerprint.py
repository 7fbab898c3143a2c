"""The fingerprint: the same for the same model, another for any other."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pocqueue.engine.fingerprint import canonical_config, fingerprint
from pocqueue.errors import ModelNotFound
from tests.support.model_folders import CONFIG, tensors, write_config, write_model


def test_sharding_does_not_matter(tmp_path: Path) -> None:
    """One file, two or four: the same tensors are the same model."""
    folders = [write_model(tmp_path / f"in{count}", count) for count in (1, 2, 4)]
    digests = {fingerprint(folder) for folder in folders}
    assert len(digests) == 1
    assert len(digests.pop()) == 64


def test_the_format_is_stable(tmp_path: Path) -> None:
    """Fingerprints stand in proof files, so a change of the format needs a new version."""
    assert fingerprint(write_model(tmp_path / "m")) == (
        "aa110a267d76eed589dc54e856f3427bd865f4f4105ad579987e3f8ab46b1623"
    )


@pytest.mark.parametrize("position", [0, 47, -1])
def test_one_changed_byte_matters(tmp_path: Path, position: int) -> None:
    """Any byte of the weights, the first and the last included."""
    folder = write_model(tmp_path / "m")
    before = fingerprint(folder)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start + position if position >= 0 else position] ^= 1
    path.write_bytes(data)
    assert fingerprint(folder) != before


def test_names_shapes_and_dtypes_matter(tmp_path: Path) -> None:
    """The same bytes under another name, shape or dtype are another model."""
    values = tensors()
    variants = [
        values,
        {**values, "a.weight": values["a.weight"].reshape(4, 3)},
        {**values, "a.weight": values["a.weight"].view(np.int32)},
        {("z.weight" if name == "a.weight" else name): value for name, value in values.items()},
    ]
    digests = {
        fingerprint(write_model(tmp_path / str(number), values=variant))
        for number, variant in enumerate(variants)
    }
    assert len(digests) == len(variants)


def test_what_changes_no_logits_does_not_matter() -> None:
    """Volatile keys, nulls, the order of keys and architectures, and the old name of dtype."""
    other = {
        "dtype": "float32",
        "hidden_size": 4,
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "transformers_version": "9",
        "use_cache": False,
        "sliding_window": None,
        "text_config": {"num_hidden_layers": 2, "_commit_hash": "x", "transformers_version": "1"},
    }
    assert canonical_config(CONFIG) == canonical_config(other)
    swapped = [{**CONFIG, "architectures": names} for names in (["A", "B"], ["B", "A"])]
    assert canonical_config(swapped[0]) == canonical_config(swapped[1])


def test_the_rest_of_the_configuration_matters(tmp_path: Path) -> None:
    """A changed setting of the model, at any level, is another model."""
    folder = write_model(tmp_path / "m")
    before = fingerprint(folder)
    write_config(folder, text_config={"num_hidden_layers": 3})
    assert fingerprint(folder) != before


def test_other_formats_are_hashed_whole(tmp_path: Path) -> None:
    """Without safetensors, every byte of the weight file counts."""
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    before = fingerprint(folder)
    (folder / "pytorch_model.bin").write_bytes(b"Weights")
    assert fingerprint(folder) != before


def test_files_beside_the_model_do_not_matter(tmp_path: Path) -> None:
    """A tokenizer, a README, weights in a format that is not loaded."""
    folder = write_model(tmp_path / "m")
    before = fingerprint(folder)
    for name in ("README.md", "tokenizer.json", "consolidated.safetensors", "pytorch_model.bin"):
        (folder / name).write_text("other")
    assert fingerprint(folder) == before


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    """Bytes done rise to bytes in all."""
    seen: list[tuple[int, int]] = []
    fingerprint(write_model(tmp_path / "m", 2), on_bytes=lambda *now: seen.append(now))
    total = sum(value.nbytes for value in tensors().values())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_another_model_of_the_same_size_and_times_is_another(tmp_path: Path) -> None:
    """Reproducible images, Nix and rsync give other contents the same names, sizes and times."""
    folder = write_model(tmp_path / "m")
    before = fingerprint(folder)
    path = folder / "model.safetensors"
    stat, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        stat.st_size,
        stat.st_mtime_ns,
        stat.st_ino,
    )
    assert fingerprint(folder) != before


def _remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def _cut_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff\xff\xff\xff\0\0\0\0{")


def _empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def _index_without_shard(folder: Path) -> None:
    _remove_weights(folder)
    index = {"weight_map": {"a": "model-0.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _index_of_nonsense(folder: Path) -> None:
    _remove_weights(folder)
    (folder / "model.safetensors.index.json").write_text("[1]")


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _config_of_nonsense(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_remove_weights, "has no weights"),
        (_cut_weights, "cut or not a safetensors file"),
        (_cut_header, "cut or not a safetensors file"),
        (_empty_weights, "cut or not a safetensors file"),
        (_index_without_shard, "model-0.safetensors, which is missing"),
        (_index_of_nonsense, "not an index"),
        (_no_config, "config.json"),
        (_config_of_nonsense, "is not JSON"),
    ],
)
def test_a_damaged_folder_is_a_clear_error(tmp_path: Path, damage: object, words: str) -> None:
    """One sentence that says which file and what about it."""
    folder = write_model(tmp_path / "m")
    assert callable(damage)
    damage(folder)
    with pytest.raises(ModelNotFound) as caught:
        fingerprint(folder)
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)
