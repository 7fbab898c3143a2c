"""A client's own data as the chain has them: named by a hash, with the sizes that rules count with."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from pocqueue.pouw.wire.codec import Message

#: Bytes of a file of data.
MAX_DATA_BYTES = 64 * 1024 * 1024
#: How the chain names data: the hash of their manifest.
DATA_NAME = re.compile(r"0x[0-9a-f]{64}")


class DataShape(Message, frozen=True):
    """A data set by its sizes."""

    features: Annotated[int, msgspec.Meta(ge=1, le=65_536)]  #: numbers of a sample; 4 bytes each
    num_classes: Annotated[int, msgspec.Meta(ge=2, le=4096)]
    num_train: Annotated[int, msgspec.Meta(ge=1, le=MAX_DATA_BYTES // 4)]  #: samples to train on
    side: Annotated[int, msgspec.Meta(ge=0, le=256)]  #: an image's height and width; 0: no images
    #: Features are indices of an embedding below this, 0 for none; 0: they are float32.
    num_buckets: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
