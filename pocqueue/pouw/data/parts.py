"""Samples out of a client's file of data, each number checked before anybody counts with it.

A file is a safetensors file: 8 bytes with the length of its header, the header in JSON, the tensors in a row.

| tensors | what |
| --- | --- |
| ``x_train``, ``x_val``; in a file for testing ``x_test`` | F32 ``[samples, features]`` or images ``[samples, side, side]``; or I32, I64 ``[samples, features]``: indices of an embedding, 0 for none |
| ``y_train``, ``y_val``; ``y_test`` | U8, I32 or I64 ``[samples]``: classes from 0 |
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from pocqueue.pouw.data.manifest import file_bytes
from pocqueue.pouw.errors import DataError
from pocqueue.pouw.wire.data import MAX_SAMPLES, DataShape

#: Parts of a file to train on, and of one for testing.
TRAINING, TESTING = ("train", "val"), ("test",)
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 16 * 1024
_DTYPES = {"F32": "<f4", "I32": "<i4", "I64": "<i8", "U8": "u1"}
_X_DTYPES, _Y_DTYPES = ("F32", "I32", "I64"), ("U8", "I32", "I64")
_MAX_INDEX = 2**31 - 1

_Size = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class Part(NamedTuple):
    """Some samples."""

    x: npt.NDArray[
        Any
    ]  #: ``[samples, features]``: float32, or whole-number indices with 0 for none
    y: npt.NDArray[np.int64]  #: ``[samples]``: classes

    @property
    def majority(self) -> int:
        """Return how many are of the commonest class."""
        return int(np.bincount(self.y).max())


class DataFile(NamedTuple):
    """What is in a file of data."""

    parts: dict[str, Part]  #: by the name behind ``x_`` and ``y_``
    side: int  #: of its images; 0: its samples are no images

    @property
    def is_indices(self) -> bool:
        """Say whether its features are indices of an embedding."""
        return any(part.x.dtype != np.float32 for part in self.parts.values())

    @property
    def shape(self) -> DataShape:
        """Return the sizes of a file to train on, the smallest that it fits.

        Raises:
            DataError: there are too many classes or indices.
        """
        train, parts = self.parts["train"], self.parts.values()
        num_classes = max(2, 1 + max(int(part.y.max()) for part in parts))
        num_buckets = 0
        if self.is_indices:
            num_buckets = max(2, 1 + max(int(part.x.max()) for part in parts))
        sizes = (train.x.shape[1], num_classes, len(train.y), self.side, num_buckets)
        try:
            return msgspec.convert(sizes, DataShape)
        except msgspec.ValidationError as exc:
            names = ", ".join(DataShape.__struct_fields__)
            raise DataError(f"{names} are {sizes}: {exc}.") from None


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """A tensor in the header."""

    dtype: str
    shape: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=3)]
    data_offsets: tuple[_Size, _Size]


def read(path: Path, parts: tuple[str, ...] = TRAINING) -> DataFile:
    """Return the samples of a file.

    Args:
        path: of the file.
        parts: that it has, no more and no fewer.

    Raises:
        DataError: it cannot be read, or is no such file; says what is wrong with it.
    """
    try:
        return _read(file_bytes(path), parts)
    except _BadFile as exc:
        raise DataError(f"{path.name}: {exc}.") from None


def check_fit(file: DataFile, shape: DataShape) -> None:
    """Return if a file is what its task's order says.

    Raises:
        DataError: it is not.
    """
    if file.is_indices != bool(shape.num_buckets):
        due, found = ("I32 or I64", "F32") if shape.num_buckets else ("F32", "whole numbers")
        raise DataError(f"x is {found}; {due} is ordered.")
    for name, part in file.parts.items():
        if part.x.shape[1] != shape.features:
            raise DataError(
                f"samples of {name} have {part.x.shape[1]:,} numbers; {shape.features:,} are ordered."
            )
        if (most := int(part.y.max())) >= shape.num_classes:
            raise DataError(f"y_{name} has {most}; {shape.num_classes:,} classes are ordered.")
        if shape.num_buckets and (most := int(part.x.max())) >= shape.num_buckets:
            raise DataError(f"x_{name} has {most}; {shape.num_buckets:,} buckets are ordered.")
    num_train = len(file.parts["train"].y) if "train" in file.parts else shape.num_train
    if num_train != shape.num_train:
        raise DataError(f"{num_train:,} samples to train on; {shape.num_train:,} are ordered.")


class _BadFile(Exception):
    """A file is not what it should be; fits behind its name."""


def _read(data: bytes, parts: tuple[str, ...]) -> DataFile:
    header, tensors = _header(data)
    wanted = [f"{axis}_{part}" for part in parts for axis in "xy"]
    if sorted(header) != sorted(wanted):
        found = ", ".join(sorted(header)) or "nothing"
        raise _BadFile(f"it has {found[:200]}; allowed: {', '.join(wanted)}")
    _check_places(header, len(tensors))
    found_parts, sides = {}, set()
    for part in parts:
        x, y = header[f"x_{part}"], header[f"y_{part}"]
        _check_kind(part, x, y)
        sides.add(x.shape[1] if len(x.shape) == 3 else 0)
        found_parts[part] = Part(_x(part, x, tensors), _y(part, y, tensors))
    if len(sides) > 1 or len({part.x.dtype for part in found_parts.values()}) > 1:
        raise _BadFile("its parts are not of one kind")
    return DataFile(found_parts, sides.pop())


def _header(data: bytes) -> tuple[dict[str, _Entry], memoryview]:
    """Return the tensors' entries and their bytes."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    end = _LENGTH_BYTES + length
    if len(data) < _LENGTH_BYTES or length > _MAX_HEADER_BYTES or end > len(data):
        raise _BadFile(
            f"it is no safetensors file, or its header has more than {_MAX_HEADER_BYTES:,} bytes"
        )
    try:
        raw = msgspec.json.decode(data[_LENGTH_BYTES:end], type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        header = {name: msgspec.json.decode(one, type=_Entry) for name, one in raw.items()}
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise _BadFile(f"its header is none of a safetensors file: {exc}") from None
    return header, memoryview(data)[end:]


def _check_places(header: dict[str, _Entry], num_bytes: int) -> None:
    """Raise unless the tensors fill the file one behind the other."""
    at = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1].data_offsets):
        first, end = entry.data_offsets
        if entry.dtype not in _DTYPES:
            raise _BadFile(f"{name} is {entry.dtype[:10]}; allowed: {', '.join(_DTYPES)}")
        size = np.dtype(_DTYPES[entry.dtype]).itemsize * math.prod(entry.shape)
        if first != at or end != first + size or end > num_bytes:
            raise _BadFile(f"{name} does not lie where its sizes say")
        at = end
    if at != num_bytes:
        raise _BadFile(f"{num_bytes - at:,} bytes behind its tensors")


def _check_kind(part: str, x: _Entry, y: _Entry) -> None:
    """Raise unless these are samples and their classes."""
    if x.dtype not in _X_DTYPES:
        raise _BadFile(f"x_{part} is {x.dtype}; allowed: {', '.join(_X_DTYPES)}")
    if y.dtype not in _Y_DTYPES:
        raise _BadFile(f"y_{part} is {y.dtype}; allowed: {', '.join(_Y_DTYPES)}")
    is_images = len(x.shape) == 3 and x.shape[1] == x.shape[2] and x.dtype == "F32"
    if not (len(x.shape) == 2 or is_images) or not x.shape[1]:
        raise _BadFile(
            f"x_{part} is {list(x.shape)}; allowed: [samples, features], for F32 also [samples, side, side]"
        )
    if y.shape != x.shape[:1] or not 1 <= y.shape[0] <= MAX_SAMPLES:
        raise _BadFile(
            f"y_{part} is {list(y.shape)} beside x of {list(x.shape)}; allowed: [samples], 1 to {MAX_SAMPLES:,}"
        )


def _x(part: str, entry: _Entry, tensors: memoryview) -> npt.NDArray[Any]:
    x = _values(entry, tensors).reshape(entry.shape[0], -1)
    if entry.dtype != "F32":
        return _checked(f"x_{part}", x).astype(np.int32)
    if not all(np.isfinite(rows).all() for rows in _slices(x)):
        raise _BadFile(f"x_{part} has numbers that are not finite")
    return x.astype(np.float32)


def _y(part: str, entry: _Entry, tensors: memoryview) -> npt.NDArray[np.int64]:
    return _checked(f"y_{part}", _values(entry, tensors)).astype(np.int64)


def _checked(name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return whole numbers; raise if they are none of indices or classes."""
    least, most = int(values.min()), int(values.max())
    if least < 0 or most > _MAX_INDEX:
        raise _BadFile(f"{name} has {least if least < 0 else most}; allowed: 0 to {_MAX_INDEX:,}")
    return values


def _values(entry: _Entry, tensors: memoryview) -> npt.NDArray[Any]:
    """Return a tensor's numbers in a row; no copy, so they may lie at odd addresses."""
    first, end = entry.data_offsets
    return np.frombuffer(tensors[first:end], dtype=_DTYPES[entry.dtype])


def _slices(x: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield some rows at a time: what is made of all would be as large as they."""
    step = max(1, 2**20 // x.shape[1])
    return (x[first : first + step] for first in range(0, len(x), step))
