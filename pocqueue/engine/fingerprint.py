"""The fingerprint of a model: one SHA-256 over its configuration and weights. Imports no torch.

It goes into every round and proof file, so that a proof is never checked against another model. Two
folders have one fingerprint exactly if they hold the same model, however the weights are sharded
over safetensors files. Weights are looked for in transformers' own order, so that what is hashed is what is
loaded, and other copies in the folder (``original/``, GGUF …) play no part.
 Version 1 is the SHA-256 of these lines, each ended by a newline:

    pocqueue-fingerprint-v1
    the configuration as canonical JSON (below)
    ["tensor name","DTYPE",[shape]] <64 hex digits: SHA-256 of the tensor's bytes>

with one such line a tensor, sorted by name; weights in other formats give one line a file,
``["file name"] <SHA-256 of the file>``.

Left out of the configuration, at every level, as they change no logits:
- ``transformers_version`` and every key that starts with ``_`` (``_name_or_path``, ``_commit_hash``,
  ``_attn_implementation`` …): who wrote the file, where from, and how it was run;
- ``use_cache``, ``torchscript``, ``output_attentions``, ``output_hidden_states``, ``return_dict``:
  what a call returns beside the logits;
- the order of ``architectures``, and null values (a default spelled out);
- ``torch_dtype`` is read as ``dtype``, its newer name.
The dtype that an engine runs in is not part of the fingerprint; it is named beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocqueue.errors import ModelNotFound

#: Told (bytes hashed, bytes in all) now and then while weights are hashed.
OnBytes = Callable[[int, int], None]

_VOLATILE = frozenset(
    {
        "transformers_version",
        "use_cache",
        "torchscript",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
    }
)
#: hashlib lets other threads run while it hashes; more than this only waits for the disk.
_NUM_THREADS = min(8, os.cpu_count() or 1)
_CHUNK_BYTES = 8 << 20
#: By which weights are found: one file, or the index of several, in the order in which they are looked for.
WEIGHT_NAMES = [
    name
    for single in ("model.safetensors", "pytorch_model.bin")
    for name in (single, f"{single}.index.json")
]
#: A safetensors header is JSON of at most this many bytes (the limit of the format's own reader).
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Region:
    """A run of bytes in a file that is hashed as one thing: a tensor, or a whole file."""

    label: str  #: tensor: canonical JSON of [name, dtype, shape]; whole file: of [file name]
    path: Path
    offset: int  #: in bytes from the start of the file
    size_bytes: int


def fingerprint(
    model_dir: Path, *, config_dir: Path | None = None, on_bytes: OnBytes | None = None
) -> str:
    """Compute the fingerprint of a model folder.

    Every process hashes what it is about to load. What an earlier one found is not kept: size, times and
    number of a file can be those of another (reproducible images, Nix, `rsync --times`), and a proof must
    not name a model that it was not made with.

    Args:
        model_dir: a Hugging Face folder: config.json and weights.
        config_dir: where config.json is, if elsewhere.
        on_bytes: told (bytes hashed, bytes in all) after each tensor, in the calling thread.

    Returns:
        64 hex digits.

    Raises:
        ModelNotFound: config.json or the weights are missing, cut or unreadable.
    """
    digest = hashlib.sha256(b"pocqueue-fingerprint-v1\n")
    config_path = (config_dir or model_dir) / "config.json"
    try:
        parts = regions(weight_files(model_dir))
        total, done = sum(part.size_bytes for part in parts), 0
        digest.update(f"{canonical_config(read_config(config_path))}\n".encode())
        with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="fingerprint") as threads:
            for part, part_hex in zip(parts, threads.map(_hash_region, parts), strict=True):
                digest.update(f"{part.label} {part_hex}\n".encode())
                done += part.size_bytes
                if on_bytes is not None:
                    on_bytes(done, total)
    except OSError as exc:
        raise ModelNotFound(
            f"Model folder {model_dir} cannot be read: {exc.strerror or exc} ({exc.filename})."
        ) from exc
    return digest.hexdigest()


def read_config(config_path: Path) -> dict[str, Any]:
    """Read a config.json.

    Raises:
        ModelNotFound: it is missing, or not a JSON object.
    """
    try:
        config = json.loads(config_path.read_bytes())
    except FileNotFoundError:
        raise ModelNotFound(
            f"Folder {config_path.parent} has no config.json, so it is not a Hugging Face model folder."
        ) from None
    except ValueError as exc:
        raise ModelNotFound(
            f"{config_path} is not JSON ({exc}). Download the model again."
        ) from exc
    if not isinstance(config, dict):
        raise ModelNotFound(f"{config_path} is not a JSON object. Download the model again.")
    return config


def canonical_config(config: dict[str, Any]) -> str:
    """Write a configuration as one line of JSON: sorted keys, what changes no logits left out."""
    return _json(_canonical(config))


def _canonical(value: Any) -> Any:
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept: dict[str, Any] = {}
    for key, item in value.items():
        if key in _VOLATILE or key.startswith("_") or item is None:
            continue
        if key == "architectures" and isinstance(item, list):
            item = sorted(map(str, item))
        kept["dtype" if key == "torch_dtype" else key] = _canonical(item)
    return kept


def weight_files(model_dir: Path) -> list[Path]:
    """List the files that transformers would load weights from, sorted by name.

    Raises:
        ModelNotFound: there are none, or an index names a file that is missing.
    """
    for found in (model_dir / name for name in WEIGHT_NAMES):
        if not found.is_file():
            continue
        if found.suffix != ".json":
            return [found]
        try:
            names = sorted(set(json.loads(found.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise _broken(found, "it is not an index of weights") from exc
        files = [model_dir / str(name) for name in names]
        for file in files:
            if not file.is_file():
                raise _broken(found, f"it names {file.name}, which is missing")
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
            parts = {path.name: Region(_json([path.name]), path, 0, path.stat().st_size)}
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
            label = _json([name, entry["dtype"], entry["shape"]])
            tensors[name] = Region(label, path, 8 + header_size + begin, end - begin)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as exc:
        raise _broken(path, "it is cut or not a safetensors file") from exc
    return tensors


def _hash_region(part: Region) -> str:
    """Return the SHA-256 of a run of bytes in a file.

    Reads rather than maps: a file cut while it is mapped kills the process with SIGBUS.
    """
    digest = hashlib.sha256()
    with part.path.open("rb", buffering=0) as file:
        file.seek(part.offset)
        buffer = memoryview(bytearray(min(_CHUNK_BYTES, part.size_bytes)))
        left = part.size_bytes
        while left:
            count = file.readinto(buffer[: min(left, _CHUNK_BYTES)])
            if not count:
                raise ModelNotFound(f"Model file {part.path} was cut while it was read. Try again.")
            digest.update(buffer[:count])
            left -= count
    return digest.hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _broken(path: Path, what: str) -> ModelNotFound:
    return ModelNotFound(f"Model file {path} cannot be used: {what}. Download the model again.")
