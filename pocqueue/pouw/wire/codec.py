"""One codec for chain, wire and disk: structs as arrays in MessagePack, canonical or refused.

Canonical means that encoding what was decoded gives the same bytes: each value has one spelling, so a hash
of the bytes is a hash of the value. Numbers have to fit in 63 bits; what is longer is bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Annotated, Any, TypeVar, cast

import msgspec

from pocqueue.pouw.errors import BadEncoding

_T = TypeVar("_T")
_encoder = msgspec.msgpack.Encoder()

# What the structs of `transactions`, `blocks` and `slots` are made of.
Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
#: A compressed point of secp256k1.
Account = Annotated[bytes, msgspec.Meta(min_length=33, max_length=33)]
#: r and s of an ECDSA signature.
Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
#: A BLS public key (G1) and signature (G2) of BLS12-381, compressed.
GroupKey = Annotated[bytes, msgspec.Meta(min_length=48, max_length=48)]
GroupSignature = Annotated[bytes, msgspec.Meta(min_length=96, max_length=96)]
#: Counts, heights, milliseconds since 1970, amounts in µPAI.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Small = Annotated[int, msgspec.Meta(ge=0, le=255)]
Version = Annotated[int, msgspec.Meta(ge=1, le=1)]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of everything that has a canonical encoding: an array of its fields in their order."""


def encode(value: object) -> bytes:
    """Return the canonical bytes of a message, or of a tuple of its fields."""
    return _encoder.encode(value)


def decode(data: bytes, kind: type[_T]) -> _T:
    """Return the message that these bytes are.

    Raises:
        BadEncoding: they are no message of this kind, are not its canonical bytes, or have more behind them.
    """
    try:
        value: _T = _decoder(cast("Hashable", kind)).decode(data)
    except (msgspec.DecodeError, RecursionError, OverflowError) as exc:
        raise BadEncoding(f"{len(data)} bytes are no {_name(kind)}: {exc}.") from None
    if _encoder.encode(value) != data:
        raise BadEncoding(f"{len(data)} bytes are a {_name(kind)}, but not in its one spelling.")
    return value


@functools.cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


def _name(kind: object) -> str:
    return getattr(kind, "__name__", None) or str(kind)
