"""Blocks: a header, transactions, and the proof that its miner trained for it."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Annotated

import msgspec

from pocqueue.pouw.wire.codec import (
    Account,
    Count,
    Hash,
    Message,
    Signature,
    Small,
    Version,
    encode,
)
from pocqueue.pouw.wire.hashes import ZERO, merkle_root, tagged
from pocqueue.pouw.wire.slots import Membership
from pocqueue.pouw.wire.transactions import Transaction

MAX_BLOCK_BYTES = 1_000_000
MAX_BLOCK_TRANSACTIONS = 2000

_Nonce = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]


class Header(Message, frozen=True, dict=True):
    """What a block's id is made of."""

    version: Version
    network: Hash
    height: Count  #: the genesis block's is 0
    parent: Hash
    tx_root: Hash  #: Merkle root of its transactions' ids
    state: Hash  #: H("state", the parent's ‖ what this block changes)
    time_ms: Count  #: since 1970
    target: Hash  #: big-endian; the id has to be below it
    miner: Account
    lane: Small
    task: Hash
    slot: Count
    message: Hash  #: id of the winner's iteration in this slot
    certificate: Hash  #: id of this slot's certificate
    nonce: _Nonce  #: little-endian

    @cached_property
    def id(self) -> bytes:
        """Return the block's id: SHA-256 twice over the header's bytes with their tag."""
        return hashlib.sha256(tagged("header", encode(self))).digest()

    @cached_property
    def zero_nonce_hash(self) -> bytes:
        """Return what a miner commits to a slot ahead: the header before anything of its slot is known."""
        blank = msgspec.structs.replace(self, message=ZERO, certificate=ZERO, nonce=bytes(8))
        return tagged("zero-nonce", encode(blank))

    @property
    def meets_target(self) -> bool:
        """The id as a big-endian number is below the target."""
        return self.id < self.target


class Trained(Message, tag=1, frozen=True):
    """The winner's messages of the slot and of the one before, in their certified slots."""

    committed: Membership  #: slot - 1; carries the header's zero-nonce hash
    winner: Membership  #: slot; the draws come from it and from its slot's beacon


class Founding(Message, tag=2, frozen=True):
    """A supervisor's block by plain hashing, from before anybody could train."""

    signature: Signature  #: of the header's miner, over the block's id


class Block(Message, frozen=True, dict=True):
    """A block. The genesis block is none: it is made from the genesis (`chain.genesis`)."""

    header: Header
    transactions: Annotated[
        tuple[Transaction, ...], msgspec.Meta(max_length=MAX_BLOCK_TRANSACTIONS)
    ]
    proof: Trained | Founding

    @property
    def id(self) -> bytes:
        """Return the header's id."""
        return self.header.id

    @cached_property
    def size(self) -> int:
        """Return its length in bytes."""
        return len(encode(self))

    def computed_tx_root(self) -> bytes:
        """Return the root that its transactions have."""
        return merkle_root([transaction.id for transaction in self.transactions])
