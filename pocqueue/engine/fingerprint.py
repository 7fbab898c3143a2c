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

import contextlib
import hashlib
import json
import os
import re
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pocqueue.errors import ModelNotFound
from pocqueue.files import FileLock, replace_file

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
_CACHE_VERSION = 1
#: A safetensors header is JSON of at most this many bytes (the limit of the format's own reader).
_MAX_HEADER_BYTES = 100_000_000
_HEX_DIGITS = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Region:
    """A run of bytes in a file that is hashed as one thing: a tensor, or a whole file."""

    label: str  #: tensor: canonical JSON of [name, dtype, shape]; whole file: of [file name]
    path: Path
    offset: int  #: in bytes from the start of the file
    size_bytes: int


def fingerprint(
    model_dir: Path, *, state_dir: Path | None = None, on_bytes: OnBytes | None = None
) -> str:
    """Compute the fingerprint of a model folder, or recall it if no file has changed.

    Hashing runs at about 1-2 GB/s a core. Processes that start together wait for the first to hash.

    Args:
        model_dir: a Hugging Face folder: config.json and weights.
        state_dir: pocqueue's state folder; None hashes every time.
        on_bytes: told (bytes hashed, bytes in all) after each tensor, in the calling thread.

    Returns:
        64 hex digits.

    Raises:
        ModelNotFound: config.json or the weights are missing, cut or unreadable.
    """
    config_path = model_dir / "config.json"
    try:
        files = weight_files(model_dir)
        compute = partial(_compute, config_path, files, on_bytes)
        if state_dir is None:
            return compute()
        return _recalled(state_dir, model_dir, [config_path, *files], compute)
    except OSError as exc:
        raise ModelNotFound(
            f"Model folder {model_dir} cannot be read: {exc.strerror or exc} ({exc.filename})."
        ) from exc


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


def _recalled(
    state_dir: Path, model_dir: Path, files: list[Path], compute: Callable[[], str]
) -> str:
    """Recall the fingerprint that depends on these files, or compute and keep it.

    One JSON file a model folder, ``<state_dir>/fingerprints/<SHA-256 of the folder's path>.json``:
    ``{"version": 1, "folder": str, "files": [[name, size in bytes, mtime in ns], ...], "fingerprint": str}``.
    It counts only if everything else in it is what is on disk now. If anything is wrong with the file or
    the folder, the model is hashed again: a cache must never stop a worker.
    """
    folder = str(model_dir.resolve())
    stats = [(file.name, file.stat()) for file in files]
    key: dict[str, Any] = {
        "version": _CACHE_VERSION,
        "folder": folder,
        "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
    }
    name = hashlib.sha256(folder.encode("utf-8", "surrogateescape")).hexdigest()
    path = state_dir / "fingerprints" / f"{name}.json"
    with contextlib.ExitStack() as lock:
        # Eight workers hash a model once, not eight times. In a read-only state folder there is no lock.
        with contextlib.suppress(OSError):
            lock.enter_context(FileLock(path.with_suffix(".lock")))
        known = _read_cache(path, key)
        if known is None:
            known = compute()
            text = json.dumps({**key, "fingerprint": known}, indent=1)
            with contextlib.suppress(OSError):
                replace_file(path, text.encode())
    return known


def _read_cache(path: Path, key: dict[str, Any]) -> str | None:
    """Return the fingerprint that is kept, or None if there is none for the files as they are."""
    try:
        cached = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    found = cached.get("fingerprint") if isinstance(cached, dict) else None
    is_hex = isinstance(found, str) and _HEX_DIGITS.fullmatch(found)
    return found if is_hex and cached == {**key, "fingerprint": found} else None


def _compute(config_path: Path, files: list[Path], on_bytes: OnBytes | None) -> str:
    parts = regions(files)
    total = sum(part.size_bytes for part in parts)
    digest = hashlib.sha256(b"pocqueue-fingerprint-v1\n")
    digest.update(f"{canonical_config(read_config(config_path))}\n".encode())
    done = 0
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="fingerprint") as threads:
        for part, part_hex in zip(parts, threads.map(_hash_region, parts), strict=True):
            digest.update(f"{part.label} {part_hex}\n".encode())
            done += part.size_bytes
            if on_bytes is not None:
                on_bytes(done, total)
    return digest.hexdigest()


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
