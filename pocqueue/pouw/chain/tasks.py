"""How a task is trained, as the chain has it: a model of ours by name, and whole numbers within bounds."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from pocqueue.pouw.wire.codec import Message

#: What the numbers called "millionths" are counted in.
MILLION = 1_000_000

_Width = Annotated[int, msgspec.Meta(ge=1, le=4096)]
_Scale = Annotated[int, msgspec.Meta(ge=1, le=1000 * MILLION)]


class TaskModel(Message, frozen=True):
    """Everything about a task's training but its data. Its bytes are `OrderTask.requirements`."""

    architecture: Literal["MLP", "CNN", "BAG"]
    hidden: Annotated[tuple[_Width, ...], msgspec.Meta(max_length=6)]  #: widths of its layers
    #: Millionths; the task is over when this share of x_val is right.
    min_accuracy: Annotated[int, msgspec.Meta(ge=1, le=MILLION)]
    max_epochs: Annotated[int, msgspec.Meta(ge=1, le=10_000)]  #: laps, at most
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=1024)]  #: samples of a part
    learning_rate: _Scale  #: millionths
    tau: _Scale  #: millionths; a weight moves when its residual reaches this
    min_miners: Annotated[int, msgspec.Meta(ge=1, le=16)]  #: with fewer it does not begin
