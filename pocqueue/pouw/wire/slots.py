"""Slots: what a miner sends for one, what the committee says about it."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import msgspec

from pocqueue.pouw.wire.codec import (
    Account,
    Count,
    GroupSignature,
    Hash,
    Message,
    Signature,
    Small,
    Version,
    encode,
)
from pocqueue.pouw.wire.hashes import tagged

#: Messages of one slot, at most.
MAX_LANES = 1024
#: Mini-batches of a message, at most.
MAX_PARTS = 8


class Iteration(Message, frozen=True, dict=True):
    """One lane's iteration of a task: what it moved and what its weights are after that.

    Its map travels beside it (`map_hash` names it).
    """

    version: Version
    network: Hash
    task: Hash
    slot: Count
    miner: Account
    lane: Small
    parts: Annotated[
        int, msgspec.Meta(ge=1, le=MAX_PARTS)
    ]  #: mini-batches that its gradient is the mean of
    map_hash: Hash  #: H("map", the map's bytes)
    entries: Count  #: of the map
    weights_end: Hash  #: SHA-256 of the float32 weights after this map alone
    loss: Count  #: of its samples, in millionths
    previous: Hash  #: id of the certificate of the slot before; the task's id in slot 0
    commitment: Hash  #: `Header.zero_nonce_hash` of the block that it may mine in the next slot
    signature: Signature  #: over `id`

    @cached_property
    def id(self) -> bytes:
        """Return H("iteration", everything but the signature)."""
        fields = tuple(getattr(self, name) for name in self.__struct_fields__[:-1])
        return tagged("iteration", encode(fields))

    @property
    def order(self) -> tuple[bytes, int]:
        """Return what a slot's messages are sorted by."""
        return (self.miner, self.lane)


class Certificate(Message, frozen=True, dict=True):
    """Which messages are a slot, what the weights are after it, and which block is final."""

    network: Hash
    epoch: Count  #: of the committee
    turn: Count  #: over all tasks; a committee decides one turn after the other
    parent: Hash  #: id of the certificate of the turn before; 32 zero bytes in turn 0
    task: Hash
    slot: Count
    ballot: Count  #: of the turn's vote in which it was decided
    previous: Hash  #: id of the certificate of the slot before, or the task's id
    root: Hash  #: Merkle root of its messages' ids, by (miner, lane)
    count: Annotated[int, msgspec.Meta(ge=0, le=MAX_LANES)]
    theta: Hash  #: SHA-256 of the weights at the start of the next slot
    anchor: Hash  #: id of a block that is final
    anchor_height: Count
    time_ms: Count

    @cached_property
    def id(self) -> bytes:
        """Return H("certificate", its bytes with ballot 0): what later ones, messages and blocks name it by.

        Members may end a turn in several ballots, each with the same value: all of them go on from one id.
        """
        return tagged("certificate", encode(msgspec.structs.replace(self, ballot=0)))

    @property
    def value(self) -> bytes:
        """Return what a vote is about: the id, the same in whichever ballot."""
        return self.id

    @cached_property
    def word(self) -> bytes:
        """Return H("word", its bytes): what the committee signs. Shares of two ballots never make one signature."""
        return tagged("word", encode(self))


class SignedCertificate(Message, frozen=True):
    """A certificate with the committee's signature and the slot's beacon."""

    certificate: Certificate
    signature: GroupSignature  #: over `certificate.word`
    beacon: GroupSignature  #: over `beacon_digest`


class SlotRecord(Message, frozen=True):
    """A slot as the committee says it to everybody."""

    signed: SignedCertificate
    ids: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=MAX_LANES)]  #: of its messages


class Membership(Message, frozen=True):
    """A message with the proof that it is one of a certified slot."""

    iteration: Iteration
    index: Annotated[int, msgspec.Meta(ge=0, le=MAX_LANES - 1)]
    path: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=10)]
    signed: SignedCertificate


def noise_digest(network: bytes, task: bytes, slot: int, lane: int) -> bytes:
    """Return what a miner's BLS key signs to seed the noise of its message: one signature, which nobody can guess."""
    return tagged("noise", encode((network, task, slot, lane)))


def beacon_digest(network: bytes, epoch: int, task: bytes, slot: int) -> bytes:
    """Return what the committee signs as a slot's beacon: known to nobody before, whatever the slot holds."""
    return tagged("beacon", encode((network, epoch, task, slot)))
