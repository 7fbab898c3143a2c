"""What goes between the trainer and its child: frames of ``u32 length ‖ MessagePack``, little-endian.

Each request stands for itself: the child keeps nothing between two of them but models and data.
"""

from __future__ import annotations

from typing import IO, Literal

import msgspec

from pocqueue.pouw.slots.task import LapSlot, TaskSpec

PartName = Literal["val", "test"]
_LENGTH_BYTES = 4


class _Frame(msgspec.Struct, frozen=True, array_like=True):
    """Base of what is sent."""


class Iterate(_Frame, tag="iterate", frozen=True):
    """Asks for an `IterationResult`."""

    task: TaskSpec
    theta: bytes
    residual: bytes | None
    slot: int
    miner: bytes
    lane: int
    parts: int
    data: str | None = None  #: path of the file with the client's own data; None: they are built in
    noise: bytes | None = None  #: of a private task: the signature that seeds the noise


class Reexecute(_Frame, tag="reexecute", frozen=True):
    """Asks for a `Verdict`."""

    task: TaskSpec
    lap: tuple[LapSlot, ...]
    miner: bytes
    lane: int
    map: bytes
    data: str | None = None  #: as above


class Measure(_Frame, tag="measure", frozen=True):
    """Asks for an `Accuracy`."""

    task: TaskSpec
    theta: bytes
    part: PartName
    data: str | None = None  #: as above
    test: str | None = None  #: path of the file with the test part of a client's own data


class Fit(_Frame, tag="fit", frozen=True):
    """Asks for a `Fitness`: whether a client's own data are what the task says."""

    task: TaskSpec
    data: str  #: as above


class IterationResult(_Frame, tag="iterated", frozen=True):
    """One lane's iteration."""

    map: bytes
    weights_end: bytes  #: `Iteration.weights_end`
    loss: int  #: of its samples, in millionths
    residual: bytes  #: float32, to go on with within the lap if the message is certified; else the one before


class Verdict(_Frame, tag="judged", frozen=True):
    """What re-execution says of a map."""

    violations: int  #: entries that should not be there, and missing ones
    compared: int  #: entries of the published map and the recomputed one together
    probability: float  #: that an honest map has so many violations or more
    is_honest: bool
    weights_end: bytes  #: `Iteration.weights_end` as the published map makes it


class Accuracy(_Frame, tag="measured", frozen=True):
    """How good weights are."""

    correct: int
    total: int
    majority: int  #: right answers of whoever always says the commonest one


class Fitness(_Frame, tag="fitted", frozen=True):
    """Whether a task can be trained on its data."""

    problem: str | None  #: None: it can


class Failure(_Frame, tag="failed", frozen=True):
    """The request could not be done; the child goes on."""

    message: str
    is_test: bool = False  #: the file with a test part is to blame, and nothing else


Request = Iterate | Reexecute | Measure | Fit
Answer = IterationResult | Verdict | Accuracy | Fitness | Failure


def write_frame(pipe: IO[bytes], frame: Request | Answer) -> None:
    """Write one frame and flush it."""
    data = msgspec.msgpack.encode(frame)
    pipe.write(len(data).to_bytes(_LENGTH_BYTES, "little"))
    pipe.write(data)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> bytes | None:
    """Return the MessagePack of the next frame; None if the other side has ended."""
    head = pipe.read(_LENGTH_BYTES)
    if len(head) < _LENGTH_BYTES:
        return None
    length = int.from_bytes(head, "little")
    data = pipe.read(length)
    return data if len(data) == length else None
