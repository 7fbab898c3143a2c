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
from pocqueue.pouw.privacy import allowed_messages
from pocqueue.pouw.slots.task import ARCHITECTURES, DATA, LAP, Noise, TaskSpec
from pocqueue.pouw.wire.codec import Hash, Message
from pocqueue.pouw.wire.data import DATA_NAME, DataShape

#: What the numbers called "millionths" are counted in.
MILLION = 1_000_000
TRILLION = MILLION * MILLION
#: Which built-in data a type of task is about; a client's own are of the same kind.
DATA_OF_TYPE = {
    "image_classification": "digits",
    "classification": "digits",
    "nlp": "words",
    "text_classification": "words",
}

#: Largest noise multiplier of a private task; and a slot's messages where its client says nothing.
MAX_NOISE, PRIVATE_MESSAGES = 1000, 4

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
#: The same of what its privacy is.
_PRIVACY_BOUNDS = {
    "noise_multiplier": (100_000, MAX_NOISE * MILLION),
    "max_norm": (1, 1000 * MILLION),
    "epsilon": (1_000, 100 * MILLION),
    "delta": (1, TRILLION // 10),
    "max_messages": (1, 16),
}
_HASH = re.compile(r"(0x)?[0-9a-fA-F]{64}")
#: What numbers that are no whole ones are counted in.
_SCALES = {
    **dict.fromkeys(("min_accuracy", "learning_rate", "tau"), MILLION),
    **dict.fromkeys(("noise_multiplier", "max_norm", "epsilon"), MILLION),
    "delta": TRILLION,
}


def _bounds(name: str) -> msgspec.Meta:
    low, high = (_BOUNDS | _PRIVACY_BOUNDS)[name]
    return msgspec.Meta(ge=low, le=high)


class Privacy(Message, frozen=True):
    """How little a task's messages tell of a single training sample: (ε, δ), by `privacy`."""

    noise_multiplier: Annotated[
        int, _bounds("noise_multiplier")
    ]  #: millionths; standard deviation of the noise over `max_norm`
    max_norm: Annotated[int, _bounds("max_norm")]  #: millionths; a gradient is clipped to it
    epsilon: Annotated[int, _bounds("epsilon")]  #: millionths; of all messages together, at most
    delta: Annotated[int, _bounds("delta")]  #: millionths of millionths
    max_messages: Annotated[int, _bounds("max_messages")]  #: of a slot

    @property
    def max_laps(self) -> int:
        """Return how many laps of full slots its epsilon allows."""
        allowed = allowed_messages(
            Decimal(f"{self.noise_multiplier}e-6"),
            Decimal(f"{self.delta}e-12"),
            Decimal(f"{self.epsilon}e-6"),
        )
        return allowed // (LAP * self.max_messages)

    @property
    def noise(self) -> Noise:
        """Return what is trained with."""
        return Noise(self.noise_multiplier / MILLION, self.max_norm / MILLION, self.max_messages)


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
    privacy: Privacy | None = None  #: None: its messages tell of its samples what they tell

    def spec(self, task: bytes, data: str, shape: DataShape | None = None) -> TaskSpec:
        """Return the task with this id as it is trained on this data; `shape` is that of data of a client's own.

        Raises:
            InvalidTask: there is no such model, none for such data, or its privacy allows fewer laps.
        """
        if self.privacy is not None and self.privacy.max_messages < self.min_miners:
            raise InvalidTask(
                f"min_miners is {self.min_miners}; the privacy's max_messages allows {self.privacy.max_messages}."
            )
        if self.privacy is not None and self.privacy.max_laps < self.max_epochs:
            raise InvalidTask(
                f"max_epochs is {self.max_epochs}; the privacy's epsilon allows {self.privacy.max_laps:,} laps of "
                f"{LAP} slots with {self.privacy.max_messages} messages each: take fewer, or more noise."
            )
        spec = TaskSpec(
            id=task,
            architecture=self.architecture,
            hidden=self.hidden,
            data=data,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate / MILLION,
            tau=self.tau / MILLION,
            shape=shape,
            noise=None if self.privacy is None else self.privacy.noise,
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
            tau, min_miners (1), test_hash (none; 64 hex digits), privacy (none; else a mapping with
            noise_multiplier, max_norm, epsilon, delta and max_messages (4), as `Privacy`); each may be left out. The
            model's own defaults are in `slots.task`.
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
        privacy=_privacy(requirements.get("privacy")),
    )
    model.spec(bytes(32), data, shape)
    return model


def _privacy(value: object) -> Privacy | None:
    """Return a task's privacy as the chain has it; None: there is none."""
    if value is None:
        return None
    known = ", ".join(_PRIVACY_BOUNDS)
    if not isinstance(value, Mapping) or not set(value) <= set(_PRIVACY_BOUNDS):
        raise InvalidTask(f"privacy is {value!r}; allowed: a mapping with {known}.")
    values = {"max_messages": PRIVATE_MESSAGES, **value}
    if missing := [name for name in _PRIVACY_BOUNDS if name not in values]:
        raise InvalidTask(f"privacy has no {' and no '.join(missing)}; it needs {known}.")
    return Privacy(**{name: _whole(name, values[name]) for name in _PRIVACY_BOUNDS})


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
    low, high = (_BOUNDS | _PRIVACY_BOUNDS)[name]
    scale = _SCALES.get(name, 1)
    if isinstance(value, int | float) and not isinstance(value, bool):
        # A float is what it is written as: 0.3 is three tenths.
        exact = Decimal(repr(float(value)) if isinstance(value, float) else value) * scale
        if exact.is_finite() and low <= exact <= high and exact == int(exact):
            return int(exact)
    if scale == 1:
        raise InvalidTask(f"{name} is {value!r}; allowed: a whole number from {low} to {high:,}.")
    raise InvalidTask(
        f"{name} is {value!r}; allowed: a number from {_decimal(low, scale)} to {_decimal(high, scale)} with at most "
        f"{len(str(scale)) - 1} decimals."
    )


def _decimal(number: int, scale: int) -> str:
    """Return a fraction as it is read."""
    value = Decimal(number) / scale
    return f"{value.normalize():,f}"
