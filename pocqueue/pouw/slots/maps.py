"""Maps: which weights a miner moves in a slot, and which way; a sign each and nothing else.

A map's bytes are one LEB128 varint an entry, in ascending order of the weights: ``2·gap + sign``, where
gap is how many weights lie between this one and the entry before it (before the first: how many lie below
it), and sign is 1 for a negative one. So no bytes say the same weight twice or fall back, and each map
has one spelling: varints that are longer than they need to be are refused.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.wire.hashes import tagged

#: The longest varint: 35 bits, so gaps below 2^34.
MAX_ENTRY_BYTES = 5
_MIN_CAP = 64
_MORE = 0x80


class SignMap(NamedTuple):
    """The entries of a map."""

    indices: npt.NDArray[np.int64]  #: ``[entries]``, ascending; of the flat weights
    signs: npt.NDArray[
        np.int8
    ]  #: ``[entries]``, 1 or -1: of the residual, so the weight moves against it


def cap_of(num_weights: int) -> int:
    """Return how many entries a map of so many weights has at most: 2 % of them, 64 or more."""
    return max(_MIN_CAP, num_weights // 50)


def encode_map(indices: npt.NDArray[np.integer], signs: npt.NDArray[np.integer]) -> bytes:
    """Return the bytes of a map.

    Args:
        indices: ``[entries]``, ascending, >= 0.
        signs: ``[entries]``, 1 or -1.
    """
    gaps = np.diff(indices.astype(np.int64), prepend=-1) - 1
    rest = gaps << 1 | (signs < 0)
    # Seven bits a row, low ones first; a byte is there if it or anything above it is.
    rows = rest[:, None] >> np.arange(0, 7 * MAX_ENTRY_BYTES, 7)
    is_there = rows > 0
    is_there[:, 0] = True
    has_more = np.zeros_like(is_there)
    has_more[:, :-1] = is_there[:, 1:]
    written = (rows & (_MORE - 1)) | np.where(has_more, _MORE, 0)
    return bytes(written[is_there].astype(np.uint8))


# A message is looked at when it comes, when its slot is certified, and when it is audited.
@lru_cache(maxsize=32)
def decode_map(data: bytes, num_weights: int, cap: int) -> SignMap:
    """Return the entries of a map, as arrays that cannot be written to.

    Args:
        data: its bytes, from anybody.
        num_weights: of the task's model, at most 2^34.
        cap: how many entries are allowed.

    Raises:
        SlotError: rule ``map``; the bytes are no map of such a model, or not its one spelling.
    """
    raw = np.frombuffer(data, dtype=np.uint8)
    if len(raw) and raw[-1] & _MORE:
        raise SlotError("map", f"its {len(raw)} bytes end within an entry.")
    ends = np.flatnonzero(raw < _MORE)
    if len(ends) > cap:
        raise SlotError("map", f"it has {len(ends)} entries; allowed: {cap}.")
    starts = np.concatenate(([0], ends[:-1] + 1)) if len(ends) else ends
    lengths = ends - starts + 1
    if (lengths > MAX_ENTRY_BYTES).any():
        raise SlotError("map", f"an entry is longer than {MAX_ENTRY_BYTES} bytes.")
    if ((lengths > 1) & (raw[ends] == 0)).any():
        raise SlotError("map", "an entry is written longer than it has to be.")
    values = np.zeros(len(ends), dtype=np.int64)
    for place in range(int(lengths.max(initial=0))):
        has_it = lengths > place
        bits = (raw[starts[has_it] + place] & (_MORE - 1)).astype(np.int64)
        values[has_it] |= bits << (7 * place)
    indices = np.cumsum((values >> 1) + 1) - 1
    if len(indices) and indices[-1] >= num_weights:
        raise SlotError("map", f"it names weight {indices[-1]} of {num_weights}.")
    signs = (1 - 2 * (values & 1)).astype(np.int8)
    indices.flags.writeable = signs.flags.writeable = False
    return SignMap(indices, signs)


def map_hash(data: bytes) -> bytes:
    """Return H("map", the map's bytes), what a message carries of it."""
    return tagged("map", data)
