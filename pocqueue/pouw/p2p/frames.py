"""Frames: u32 length, u8 kind, as many bytes; big-endian. A kind with the highest bit set: the bytes are deflated.

A frame is judged by its first five bytes, before anything of it is kept: an unknown kind, or a length above
the kind's limit, ends the link.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, unique

from pocqueue.pouw.errors import PeerFault
from pocqueue.pouw.p2p.deflate import MAX_ADDED_BYTES, MAX_DEFLATED_BYTES
from pocqueue.pouw.wire.blocks import MAX_BLOCK_BYTES
from pocqueue.pouw.wire.transactions import MAX_TRANSACTION_BYTES

HEADER_BYTES = 5
ID_BYTES = 32  #: of what is announced; begins the body of a frame TX or BLOCK
#: Of what is pushed. Two messages of one's own with one id take 2^64 hashes, one with the id of another's 2^128.
PUSHED_ID_BYTES = 16
REQUEST_ID_BYTES = 4  #: begins the body of a request and of its answer

_HEADER = struct.Struct(">IB")
_KIB = 1024
_ANSWER = 0x40
_DEFLATED = 0x80


@unique
class Kind(IntEnum):
    """What a frame is."""

    INTRODUCTION = 1  #: who says to be there, with a challenge
    HELLO = 2  #: the proof of that, and what else is to be known of a node
    GOODBYE = 3  #: why the link ends
    PING = 4
    PONG = 5

    ANNOUNCE = 16  #: ids that the sender has the bodies of
    WANT = 17  #: ids whose bodies the sender wants
    TX = 18  #: announced: its id and a transaction
    BLOCK = 19  #: announced, and pushed by its miner: its id and a block
    ITERATION = 20  #: pushed: a miner's message of a slot, with its map
    RECORD = 21  #: pushed: a slot as the committee says it
    PROPOSAL = 22  #: pushed, as are the next ones: what a turn's leader proposes
    VOTE = 23
    BEACON = 24  #: a member's share of a slot's beacon
    MOTION = 25  #: what a committee is asked to sign
    SHARE = 26  #: a member's share of that signature
    NOISE = 27  #: what a private task's miner shows the committee alone
    PUSHED = 31  #: in lists of ids alone: anything that is pushed, by the hash of kind and body

    STATUS = 32  #: requests; an answer has 64 more
    BLOCKS = 33
    SLOTS = 34
    THETA = 35
    PEX = 36  #: addresses of other nodes
    CHUNK = 37  #: a piece of a task's data
    REFUSED = 127  #: a request's id: there is no answer


ANNOUNCED = frozenset({Kind.TX, Kind.BLOCK})
#: Beside messages and records what a committee talks about. All of it is passed on by everybody that hears it.
PUSHED = frozenset(
    (
        *(Kind.ITERATION, Kind.RECORD, Kind.PROPOSAL, Kind.VOTE),
        *(Kind.BEACON, Kind.MOTION, Kind.SHARE, Kind.NOISE),
    )
)
#: What members of a committee say to each other.
TALK = frozenset({Kind.PROPOSAL, Kind.VOTE, Kind.BEACON})
#: What is public and says much of what was said before. Ids are new each time, and talk is signatures mostly; noise is a secret,
#: see `deflate`.
DEFLATED = (ANNOUNCED | PUSHED) - TALK - {Kind.NOISE}
REQUESTS = frozenset({Kind.STATUS, Kind.BLOCKS, Kind.SLOTS, Kind.THETA, Kind.PEX, Kind.CHUNK})
#: Who catches up asks as fast as it gets answers: one too many waits, and is no flood.
PATIENT = REQUESTS - {Kind.PEX}


@dataclass(frozen=True, slots=True)
class Limit:
    """What a peer may send of a kind.

    Answers have no rate: one may come for each request and no more.
    """

    max_bytes: int
    per_second: float = 0.0
    burst: int = 0


#: Of the body of a pushed or announced message, of a request and of its answer, as the node sees it.
MAX_ITERATION_BYTES = 128 * _KIB
MAX_RECORD_BYTES = 512 * _KIB
MAX_REQUEST_BYTES = 4 * _KIB
MAX_ANSWER_BYTES = {
    Kind.STATUS: 64 * _KIB,
    Kind.BLOCKS: 2048 * _KIB,
    Kind.SLOTS: 2048 * _KIB,
    Kind.THETA: 2048 * _KIB,
    Kind.PEX: 4 * _KIB,
    Kind.CHUNK: 260 * _KIB,
}

LIMITS: dict[int, Limit] = {
    Kind.INTRODUCTION: Limit(4 * _KIB),
    Kind.HELLO: Limit(4 * _KIB),
    Kind.GOODBYE: Limit(16, 1, 2),
    Kind.PING: Limit(16, 2, 20),
    Kind.PONG: Limit(16, 2, 20),
    Kind.ANNOUNCE: Limit(4 * _KIB, 200, 2000),
    Kind.WANT: Limit(4 * _KIB, 200, 2000),
    Kind.TX: Limit(ID_BYTES + MAX_TRANSACTION_BYTES, 200, 4000),
    Kind.BLOCK: Limit(ID_BYTES + MAX_BLOCK_BYTES, 10, 200),
    Kind.ITERATION: Limit(MAX_ITERATION_BYTES, 500, 2000),
    Kind.RECORD: Limit(MAX_RECORD_BYTES, 200, 1000),
    Kind.PROPOSAL: Limit(64 * _KIB, 200, 1000),
    Kind.VOTE: Limit(_KIB, 2000, 8000),
    Kind.BEACON: Limit(_KIB, 1000, 4000),
    Kind.MOTION: Limit(32 * _KIB, 20, 200),
    Kind.SHARE: Limit(_KIB, 200, 1000),
    Kind.NOISE: Limit(4 * _KIB, 200, 1000),
    **{kind: Limit(REQUEST_ID_BYTES + MAX_REQUEST_BYTES, 100, 400) for kind in REQUESTS},
    Kind.PEX: Limit(REQUEST_ID_BYTES + MAX_REQUEST_BYTES, 1 / 30, 5),
    Kind.REFUSED: Limit(REQUEST_ID_BYTES),
    **{kind | _ANSWER: Limit(REQUEST_ID_BYTES + size) for kind, size in MAX_ANSWER_BYTES.items()},
}

#: Of announced kinds, what may come without being asked for: blocks that the peer has mined. Above it they are announced.
UNASKED: dict[int, Limit] = {Kind.BLOCK: Limit(LIMITS[Kind.BLOCK].max_bytes, 1, 20)}


def answer_to(request: Kind) -> int:
    """Return the kind of the frame that answers a request."""
    return request | _ANSWER


def is_answer(kind: int) -> bool:
    """Say whether a frame of this kind ends a request."""
    return kind == Kind.REFUSED or (kind & _ANSWER != 0 and kind ^ _ANSWER in MAX_ANSWER_BYTES)


def is_deflated(kind: int, length: int) -> bool:
    """Say whether a body of this kind and length goes deflated."""
    return kind in DEFLATED and length <= MAX_DEFLATED_BYTES


def max_inflated(kind: int) -> int:
    """Return how long a body that comes deflated may be."""
    return min(LIMITS[kind].max_bytes, MAX_DEFLATED_BYTES)


def header(kind: int, length: int, *, deflated: bool = False) -> bytes:
    """Return the bytes before a body.

    Raises:
        ValueError: a body of this kind may not be so long. Whoever sends it is to be mended.
    """
    limit = max_inflated(kind) + MAX_ADDED_BYTES if deflated else LIMITS[kind].max_bytes
    if length > limit:
        raise ValueError(f"A frame of kind {kind} has {length} bytes; allowed: up to {limit}.")
    return _HEADER.pack(length, kind | _DEFLATED if deflated else kind)


def parse_header(data: bytes) -> tuple[int, int, bool]:
    """Return kind and length of the frame that these five bytes begin, and whether it is deflated.

    Raises:
        PeerFault: nobody of ours sends such a frame.
    """
    length, number = _HEADER.unpack(data)
    kind, deflated = number & ~_DEFLATED, bool(number & _DEFLATED)
    if kind not in (DEFLATED if deflated else LIMITS):
        raise PeerFault(20, f"it sent a frame of the unknown kind {number}")
    limit = max_inflated(kind) + MAX_ADDED_BYTES if deflated else LIMITS[kind].max_bytes
    if length > limit:
        raise PeerFault(20, f"it sent {length} bytes as kind {number}, where {limit} are allowed")
    return kind, length, deflated
