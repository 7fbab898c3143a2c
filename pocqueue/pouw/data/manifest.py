"""The manifest of a file that is here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from pocqueue.pouw.errors import DataError
from pocqueue.pouw.wire.data import CHUNK_BYTES, MAX_DATA_BYTES, Manifest


def manifest_of(data: bytes) -> Manifest:
    """Return the manifest of a file with these bytes: at least one, at most `MAX_DATA_BYTES`."""
    return Manifest(len(data), tuple(hashlib.sha256(chunk).digest() for chunk in chunks(data)))


def chunks(data: bytes) -> Iterator[bytes]:
    """Yield the chunks of a file."""
    for first in range(0, len(data), CHUNK_BYTES):
        yield data[first : first + CHUNK_BYTES]


def file_bytes(path: Path) -> bytes:
    """Return what is in a file of data.

    Raises:
        DataError: it cannot be read, is empty, or is larger than anybody takes.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DATA_BYTES + 1)
    except OSError as exc:
        raise DataError(f"{path} cannot be read: {exc.strerror}.") from None
    if not 1 <= len(data) <= MAX_DATA_BYTES:
        size = "more" if data else "0 bytes"
        raise DataError(f"{path} has {size}; allowed for data: 1 to {MAX_DATA_BYTES:,} bytes.")
    return data
