"""What a miner of a private task shows the committee alone: the signature that its message's noise follows from."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import msgspec

from pocqueue.pouw.wire.codec import Account, Count, Hash, Message, Signature, Small, encode
from pocqueue.pouw.wire.hashes import tagged

#: A BLS signature and the cipher's tag.
SEALED_NOISE_BYTES = 96 + 16
_Sealed = Annotated[
    bytes, msgspec.Meta(min_length=SEALED_NOISE_BYTES, max_length=SEALED_NOISE_BYTES)
]


class SealedNoise(Message, frozen=True, dict=True):
    """The signature over `slots.noise_digest`, once for each member of the committee."""

    network: Hash
    task: Hash
    slot: Count
    miner: Account
    lane: Small
    epoch: Count  #: of the committee
    seal_key: Hash  #: X25519 key of this message alone, which it is sealed with
    sealed: Annotated[tuple[_Sealed, ...], msgspec.Meta(max_length=16)]  #: by place
    signature: Signature  #: of the miner's account, over `id`

    @cached_property
    def id(self) -> bytes:
        """Return H("sealed-noise", everything but the signature)."""
        fields = tuple(getattr(self, name) for name in self.__struct_fields__[:-1])
        return tagged("sealed-noise", encode(fields))
