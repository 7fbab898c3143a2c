"""Small model folders for tests, with weights in as many safetensors files as wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 4,
    "torch_dtype": "float32",
    "transformers_version": "5.0.0",
    "_name_or_path": "somewhere",
    "text_config": {"use_cache": True, "num_hidden_layers": 2},
}


def tensors() -> dict[str, np.ndarray[Any, Any]]:
    """Make four tensors of several shapes and dtypes."""
    return {
        "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b.weight": np.arange(5, dtype=np.float16),
        "c.weight": np.arange(7, dtype=np.int64),
        "d.empty": np.zeros((0, 3), dtype=np.float32),
    }


def write_config(folder: Path, **changes: Any) -> None:
    """Write config.json, with changed or added keys."""
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def write_model(
    folder: Path, num_files: int = 1, values: dict[str, np.ndarray[Any, Any]] | None = None
) -> Path:
    """Write a folder whose tensors are dealt out over ``num_files`` safetensors files."""
    folder.mkdir()
    write_config(folder)
    values = tensors() if values is None else values
    if num_files == 1:
        save_file(values, folder / "model.safetensors")
        return folder
    shards: list[dict[str, np.ndarray[Any, Any]]] = [{} for _ in range(num_files)]
    weight_map = {}
    for number, (name, value) in enumerate(reversed(values.items())):
        shards[number % num_files][name] = value
        weight_map[name] = f"model-{number % num_files}.safetensors"
    for number, shard in enumerate(shards):
        save_file(shard, folder / f"model-{number}.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
