"""Small files of data, as clients make them, and broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

Tensors = dict[str, npt.NDArray[Any]]
OWN_SEED = 3


def vectors(
    *, features: int = 6, num_classes: int = 3, num_train: int = 30, num_val: int = 11
) -> Tensors:
    """Return float32 samples whose class is where they are largest."""
    random, found = np.random.default_rng(OWN_SEED), Tensors()
    for part, rows in (("train", num_train), ("val", num_val)):
        x = random.normal(size=(rows, features)).astype(np.float32)
        y = x[:, :num_classes].argmax(1)
        y[:num_classes] = np.arange(num_classes)
        found |= {f"x_{part}": x, f"y_{part}": y}
    return found


def images(side: int = 4) -> Tensors:
    """Return the same as pictures."""
    found = vectors(features=side**2)
    for name in ("x_train", "x_val"):
        found[name] = found[name].reshape(-1, side, side)
    return found


def pieces() -> Tensors:
    """Return whole numbers, 0 to 7, of two classes."""
    random, found = np.random.default_rng(OWN_SEED), Tensors()
    for part, rows in (("train", 20), ("val", 10)):
        x = random.integers(0, 8, size=(rows, 5), dtype=np.int32)
        x[0, 0] = 7
        found |= {f"x_{part}": x, f"y_{part}": (np.arange(rows) % 2).astype(np.uint8)}
    return found


def hidden(tensors: Tensors) -> Tensors:
    """Return the validation part as one for testing."""
    return {"x_test": tensors["x_val"], "y_test": tensors["y_val"]}


def write(path: Path, tensors: Tensors) -> Path:
    """Write a file; return its path."""
    path.write_bytes(save(tensors))
    return path


def with_header(header: object, tensors: bytes, *, length: int | None = None) -> bytes:
    """Return a file with this header, which says to have so many bytes."""
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(data) if length is None else length).to_bytes(8, "little") + data + tensors


def entry(dtype: str, shape: list[int], first: int, end: int) -> dict[str, Any]:
    """Return a tensor's entry in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, end]}
