"""Where a model folder keeps its weights, read from the files' own headers. Imports no torch.

The order in which formats are looked for is transformers' own, so that what is fingerprinted is what
is loaded, and other copies of the weights in the folder (``original/``, GGUF …) play no part.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocqueue.errors import ModelNotFound

#: A safetensors header is JSON of at most this many bytes (the limit of the format's own reader).
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Region:
    """A run of bytes in a file that is hashed as one thing: a tensor, or a whole file."""

    label: str  #: tensor: canonical JSON of [name, dtype, shape]; whole file: of [file name]
    path: Path
    offset: int  #: in bytes from the start of the file
    size_bytes: int


def weight_files(model_dir: Path) -> list[Path]:
    """List the files that transformers would load weights from, sorted by name.

    Raises:
        ModelNotFound: there are none, or an index names a file that is missing.
    """
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = model_dir / f"{single}.index.json"
        if (model_dir / single).is_file():
            return [model_dir / single]
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as exc:
                raise _broken(index, "it is not an index of weights") from exc
            files = [model_dir / str(name) for name in names]
            for file in files:
                if not file.is_file():
                    raise _broken(index, f"it names {file.name}, which is missing")
            return files
    raise ModelNotFound(
        f"Model folder {model_dir} has no weights; wanted: model.safetensors (or its index and shards), "
        "or pytorch_model.bin. Finish the download, or name another folder."
    )


def regions(files: list[Path]) -> list[Region]:
    """Split weight files into what is hashed: tensors sorted by name, or whole files by file name.

    Args:
        files: of one model, all safetensors or none.

    Raises:
        ModelNotFound: a safetensors file is cut or not one at all, or two files hold one tensor.
    """
    found: dict[str, Region] = {}
    for path in files:
        if path.suffix == ".safetensors":
            parts = _tensors(path)
        else:
            parts = {path.name: Region(_canonical([path.name]), path, 0, path.stat().st_size)}
        for name in found.keys() & parts.keys():
            raise _broken(path, f"tensor {name} is in {found[name].path.name} too")
        found |= parts
    return [found[name] for name in sorted(found)]


def _tensors(path: Path) -> dict[str, Region]:
    """Read the header of one safetensors file: https://github.com/huggingface/safetensors#format."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (header_size,) = struct.unpack("<Q", file.read(8))
            if header_size > min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError("header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(header_size))
        tensors = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= size - 8 - header_size:
                raise ValueError(f"tensor {name} lies outside the file")
            label = _canonical([name, entry["dtype"], entry["shape"]])
            tensors[name] = Region(label, path, 8 + header_size + begin, end - begin)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as exc:
        raise _broken(path, "it is cut or not a safetensors file") from exc
    return tensors


def _canonical(value: list[Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _broken(path: Path, what: str) -> ModelNotFound:
    return ModelNotFound(f"Model file {path} cannot be used: {what}. Download the model again.")
