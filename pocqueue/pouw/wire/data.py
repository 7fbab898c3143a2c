"""A client's own data as nodes speak of them: named by the hash of their manifest, with the sizes that rules count with."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated

import msgspec

from pocqueue.pouw.wire.codec import Hash, Message
from pocqueue.pouw.wire.hashes import tagged

#: Bytes of a file of data, and of each of its chunks but the last one.
MAX_DATA_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 256 * 1024
MAX_CHUNKS = MAX_DATA_BYTES // CHUNK_BYTES
#: Samples of each part.
MAX_SAMPLES = 1_000_000
#: How the chain names data: `Manifest.name`.
DATA_NAME = re.compile(r"0x[0-9a-f]{64}")


class DataShape(Message, frozen=True):
    """A data set by its sizes."""

    features: Annotated[int, msgspec.Meta(ge=1, le=65_536)]  #: numbers of a sample; 4 bytes each
    num_classes: Annotated[int, msgspec.Meta(ge=2, le=4096)]
    num_train: Annotated[int, msgspec.Meta(ge=1, le=MAX_SAMPLES)]  #: samples to train on
    side: Annotated[int, msgspec.Meta(ge=0, le=256)]  #: an image's height and width; 0: no images
    #: Features are indices of an embedding below this, 0 for none; 0: they are float32.
    num_buckets: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class Manifest(Message, frozen=True, dict=True):
    """A file by its chunks. Of a stranger's, `is_whole` and `name` are to be looked at before anything else."""

    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_DATA_BYTES)]  #: bytes
    chunks: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=MAX_CHUNKS)]  #: SHA-256 of each

    @property
    def is_whole(self) -> bool:
        """Say whether there are as many chunks as the size has."""
        return len(self.chunks) == -(-self.size // CHUNK_BYTES)

    @cached_property
    def name(self) -> str:
        """Return how the chain names these data: ``0x`` and H("manifest", size ‖ chunks), the size in 8 bytes,
        little-endian."""
        return "0x" + tagged("manifest", self.size.to_bytes(8, "little"), *self.chunks).hex()


def name_of(data_hash: bytes) -> str:
    """Return how the chain names data whose manifest has this hash."""
    return "0x" + data_hash.hex()


def hash_of(name: str) -> bytes:
    """Return the hash that data are named by."""
    return bytes.fromhex(name.removeprefix("0x"))
