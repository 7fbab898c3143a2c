"""What links say to each other for themselves."""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Annotated

import msgspec

from pocqueue.pouw.wire.codec import Account, Hash, Message, Signature, Small

#: Version of everything in this folder that both sides of a link have to agree on.
VERSION = 4
MAX_IDS = 64  #: of an `Ids`
MAX_ADDRESSES = 16  #: of an `Addresses`

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class Introduction(Message, frozen=True):
    """The first frame of each side. Nothing of it is proven yet."""

    version: Annotated[int, msgspec.Meta(ge=1, le=255)]
    network: Hash
    account: Account
    challenge: Hash  #: random


class Hello(Message, frozen=True):
    """The second one: the proof that the account's key is on this very channel, and the node's own words."""

    proof: Signature  #: over `tls.binding`
    node_id: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.-]{1,64}\Z")]
    role: Annotated[str, msgspec.Meta(pattern=r"\A[a-z]{1,16}\Z")]
    port: Port  #: where it listens, at the address that it is seen at; 0: nowhere


@unique
class Reason(IntEnum):
    """Why there is no link, or no longer one."""

    STOPPING = 1
    DUPLICATE = 2
    FULL = 3
    BANNED = 4
    OTHER_NETWORK = 5
    OTHER_VERSION = 6
    SELF = 7
    NOT_PROVEN = 8
    FAULT = 9
    SLOW = 10
    UNWANTED = 11

    @property
    def by_peer(self) -> str:
        """The sentence about it here if the other side says so; fits behind a colon."""
        return _SENTENCES[self][0]

    @property
    def by_us(self) -> str:
        """The same if this side says so."""
        return _SENTENCES[self][-1]


_SENTENCES = {
    Reason.STOPPING: ("it stops", "this node stops"),
    Reason.DUPLICATE: ("it is linked already",),
    Reason.FULL: ("it has no place for another peer", "this node has max_peers already"),
    Reason.BANNED: ("it has banned this node for a while", "it is banned here for a while"),
    Reason.OTHER_NETWORK: ("it belongs to another network",),
    Reason.OTHER_VERSION: ("it speaks another version of the protocol",),
    Reason.SELF: ("it is this node itself",),
    Reason.NOT_PROVEN: (
        "it says that this node's key is not proven: somebody may be in between",
        "its key is not proven: somebody may be in between",
    ),
    Reason.FAULT: ("it says that this node broke the protocol", "it broke the protocol"),
    Reason.SLOW: ("it says that this node reads too slowly", "it reads too slowly"),
    Reason.UNWANTED: ("it has disconnected this node", "it was disconnected here"),
}


class Goodbye(Message, frozen=True):
    """The last frame of a side, where there is time for one."""

    reason: Small


class Ping(Message, frozen=True):
    """Comes back as it is."""

    token: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]


class Ids(Message, frozen=True):
    """Of what is announced, or wanted."""

    kind: Small
    ids: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(min_length=16, max_length=32)], ...],
        msgspec.Meta(min_length=1, max_length=MAX_IDS),
    ]


class Address(Message, frozen=True, order=True):
    """Where a node may listen."""

    host: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]  #: an IP address
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Addresses(Message, frozen=True):
    """Where nodes may listen, as somebody heard. A dial says whether it is so."""

    addresses: Annotated[tuple[Address, ...], msgspec.Meta(max_length=MAX_ADDRESSES)]
