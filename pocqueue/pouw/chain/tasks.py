"""What a client may ask of a task: a model of ours by name, and numbers within bounds.

On the chain that is a `TaskModel` in its canonical bytes, all numbers whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec

from pocqueue.pouw.errors import InvalidTask
from pocqueue.pouw.slots.task import ARCHITECTURES, DATA, TaskSpec
from pocqueue.pouw.wire.codec import Hash, Message
from pocqueue.pouw.wire.data import DATA_NAME, DataShape

#: What the numbers called "millionths" are counted in.
MILLION = 1_000_000
#: Which built-in data a type of task is about; a client's own are of the same kind.
DATA_OF_TYPE = {
    "image_classification": "digits",
    "classification": "digits",
    "nlp": "words",
    "text_classification": "words",
}

_Width = Annotated[int, msgspec.Meta(ge=1, le=4096)]
#: Bounds of a task's numbers, as the chain has them.
_BOUNDS = {
    "min_accuracy": (1, MILLION),
    "max_epochs": (1, 1_000),
    "batch_size": (1, 1024),
    "learning_rate": (1, 1000 * MILLION),
    "tau": (1, MILLION),
    "min_miners": (1, 16),
}
_HASH = re.compile(r"(0x)?[0-9a-fA-F]{64}")
_FRACTIONS = ("min_accuracy", "learning_rate", "tau")


def _bounds(name: str) -> msgspec.Meta:
    low, high = _BOUNDS[name]
    return msgspec.Meta(ge=low, le=high)


class TaskModel(Message, frozen=True):
    """Everything about a task's training but its data. Its bytes are `OrderTask.requirements`."""

    architecture: Literal["MLP", "CNN", "BAG"]
    hidden: Annotated[tuple[_Width, ...], msgspec.Meta(max_length=6)]  #: widths of its layers
    #: Millionths; the task is over when this share of x_val is right.
    min_accuracy: Annotated[int, _bounds("min_accuracy")]
    max_epochs: Annotated[int, _bounds("max_epochs")]  #: laps, at most
    batch_size: Annotated[int, _bounds("batch_size")]  #: samples of a part
    learning_rate: Annotated[int, _bounds("learning_rate")]  #: millionths
    tau: Annotated[
        int, _bounds("tau")
    ]  #: millionths; a weight moves when its residual reaches this
    min_miners: Annotated[int, _bounds("min_miners")]  #: with fewer it does not begin
    #: Of the file with the test part, which its client shows when the training is over; None: there is none.
    test_hash: Hash | None = None

    def spec(self, task: bytes, data: str, shape: DataShape | None = None) -> TaskSpec:
        """Return the task with this id as it is trained on this data; `shape` is that of data of a client's own.

        Raises:
            InvalidTask: there is no such model, or none for such data.
        """
        spec = TaskSpec(
            id=task,
            architecture=self.architecture,
            hidden=self.hidden,
            data=data,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate / MILLION,
            tau=self.tau / MILLION,
            shape=shape,
        )
        spec.check()
        return spec


def check_data(task_type: str, data: str, shape: DataShape | None) -> None:
    """Return if a type of task is one for such data.

    Raises:
        InvalidTask: it says what is allowed.
    """
    if task_type not in DATA_OF_TYPE:
        raise InvalidTask(f"task_type is {task_type!r}; allowed: {', '.join(DATA_OF_TYPE)}.")
    built_in = DATA_OF_TYPE[task_type]
    if shape is None:
        if data != built_in:
            raise InvalidTask(
                f"dataset_hash is {data!r}; allowed for {task_type}: {built_in}, or the hash of data of your own."
            )
        return
    if not DATA_NAME.fullmatch(data):
        raise InvalidTask(f"dataset_hash is {data!r}; allowed: 0x and 64 digits of 0-9 a-f.")
    if bool(shape.num_buckets) != bool(DATA[built_in].num_buckets):
        due = "whole numbers below num_buckets" if built_in == "words" else "float32"
        raise InvalidTask(f"x of a task of {task_type} is {due}; these data are not.")
    if task_type == "image_classification" and not shape.side:
        raise InvalidTask("these data are no images; take the task type classification.")


def parse_requirements(
    requirements: Mapping[str, Any], data: str, shape: DataShape | None = None
) -> TaskModel:
    """Return the model that a client's `MLTask.model_requirements` asks for.

    Args:
        requirements: architecture, hidden, min_accuracy (0.9), max_epochs (100), batch_size (64), learning_rate,
            tau, min_miners (1), test_hash (none; 64 hex digits); each may be left out. The model's own defaults are
            in `slots.task`.
        data: ``digits`` or ``words``, or the name of data of the client's own.
        shape: of the client's own data; None: they are built in.

    Raises:
        InvalidTask: names the key that is not known, or the value that is not allowed.
    """
    for key in requirements:
        if key not in TaskModel.__struct_fields__:
            known = ", ".join(TaskModel.__struct_fields__)
            raise InvalidTask(f"model_requirements has {key!r}; known are: {known}.")
    if shape is not None:
        suited = "BAG" if shape.num_buckets else "MLP"
    else:
        suited = next((name for name, has in ARCHITECTURES.items() if has.data == data), "MLP")
    architecture = requirements.get("architecture", suited)
    if architecture not in tuple(ARCHITECTURES):  # no hash: anything may have been given
        raise InvalidTask(f"architecture is {architecture!r}; allowed: {', '.join(ARCHITECTURES)}.")
    default = ARCHITECTURES[architecture]
    hidden = requirements.get("hidden", default.hidden)
    if not isinstance(hidden, list | tuple) or not all(type(width) is int for width in hidden):
        raise InvalidTask(f"hidden is {hidden!r}; allowed: a list of whole numbers, such as [64].")
    values = {
        "min_accuracy": 0.9,
        "max_epochs": 100,
        "batch_size": 64,
        "learning_rate": default.learning_rate,
        "tau": default.tau,
        "min_miners": 1,
        **requirements,
    }
    model = TaskModel(
        architecture,
        tuple(hidden),
        **{name: _whole(name, values[name]) for name in _BOUNDS},
        test_hash=_hash("test_hash", requirements.get("test_hash")),
    )
    model.spec(bytes(32), data, shape)
    return model


def _hash(name: str, value: object) -> bytes | None:
    """Return a hash as the chain has it; None: there is none."""
    if value is None:
        return None
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise InvalidTask(
            f"{name} is {value!r}; allowed: 64 hex digits, with 0x before them or not."
        )
    return bytes.fromhex(value.removeprefix("0x"))


def _whole(name: str, value: object) -> int:
    """Return a number as the chain has it."""
    low, high = _BOUNDS[name]
    scale = MILLION if name in _FRACTIONS else 1
    if isinstance(value, int | float) and not isinstance(value, bool):
        # A float is what it is written as: 0.3 is three tenths.
        exact = Decimal(repr(float(value)) if isinstance(value, float) else value) * scale
        if exact.is_finite() and low <= exact <= high and exact == int(exact):
            return int(exact)
    if scale == 1:
        raise InvalidTask(f"{name} is {value!r}; allowed: a whole number from {low} to {high:,}.")
    raise InvalidTask(
        f"{name} is {value!r}; allowed: a number from 0.000001 to {high // scale:,} with at most 6 decimals."
    )
