"""What nodes ask each other for, and the answers; beside what they push."""

from __future__ import annotations

from typing import Annotated

import msgspec

from pocqueue.pouw.wire.blocks import Block
from pocqueue.pouw.wire.codec import Count, Hash, Message
from pocqueue.pouw.wire.data import CHUNK_BYTES, MAX_CHUNKS
from pocqueue.pouw.wire.slots import Iteration, SignedCertificate, SlotRecord

#: Of one answer; its length is bounded as well.
MAX_BLOCKS = 64
MAX_SLOTS = 64
#: Bytes of an answer, and of one piece of weights.
MAX_ANSWER_BYTES = 1_000_000
PIECE_BYTES = 256 * 1024


class IterationWithMap(Message, frozen=True):
    """What a miner pushes for a slot."""

    iteration: Iteration
    map: bytes


class Status(Message, frozen=True):
    """Where a node stands."""

    tip: Hash
    height: Count
    anchor: Hash
    anchor_height: Count
    task: Hash  #: of the newest certified slot it has
    slot: Count  #: the one that comes next there
    newest: SignedCertificate | None  #: of the slot before that


class BlocksRequest(Message, frozen=True):
    """Asks for the blocks of the other's chain behind the newest of these ids that it has, oldest first."""

    locator: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=64)]


class Blocks(Message, frozen=True):
    """Blocks in a row."""

    blocks: Annotated[tuple[Block, ...], msgspec.Meta(max_length=MAX_BLOCKS)]


class SlotsRequest(Message, frozen=True):
    """Asks for the certified slots of a task from one on."""

    task: Hash
    first: Count
    #: Without their maps, which nobody keeps for ever: who has worked is asked for.
    is_bare: bool = False


class Slot(Message, frozen=True):
    """A certified slot with everything that follows from it."""

    record: SlotRecord
    #: With empty maps, if they were asked for so.
    messages: Annotated[tuple[IterationWithMap, ...], msgspec.Meta(max_length=1024)]


class Slots(Message, frozen=True):
    """Slots in a row."""

    slots: Annotated[tuple[Slot, ...], msgspec.Meta(max_length=MAX_SLOTS)]


class WeightsRequest(Message, frozen=True):
    """Asks for a piece of a task's weights at the start of a slot that the other still has: the newest
    checkpoint at or before `slot`."""

    task: Hash
    slot: Count
    piece: Count


class Weights(Message, frozen=True):
    """A piece of weights, with the certificate that names the hash of all of them."""

    slot: Count  #: whose start they are
    previous: SignedCertificate | None  #: of the slot before; None at slot 0
    num_bytes: Count
    piece: bytes


class ChunkRequest(Message, frozen=True):
    """Asks for a chunk of data, or for their `wire.data.Manifest`."""

    data: Hash  #: of the manifest
    index: Annotated[int, msgspec.Meta(ge=0, lt=MAX_CHUNKS)] | None  #: None: the manifest itself


class Chunk(Message, frozen=True):
    """A chunk of data."""

    chunk: Annotated[bytes, msgspec.Meta(max_length=CHUNK_BYTES)]
