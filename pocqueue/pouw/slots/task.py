"""What a task trains, as all who count with it know it: data, layers, their sizes and their work.

Plain Python: whoever checks a draw or a map needs a model's sizes, and no torch. `training.models` has
the layers' maths, `training.samples` the samples.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import msgspec

from pocqueue.pouw.errors import InvalidTask
from pocqueue.pouw.slots.maps import cap_of
from pocqueue.pouw.wire.data import MAX_DATA_BYTES, DataShape
from pocqueue.pouw.wire.slots import MAX_LANES, MAX_PARTS

#: Slots of a lap, after which residuals begin at zero: R.
LAP = 8
#: Weights of a model, at most: a lap of them is 32 MiB, and the maps of 32 lanes are far less than an answer.
MAX_WEIGHTS = 1_000_000
#: Multiply-accumulates of a part's forward pass, at most: 0.1 s or so with what follows.
MAX_WORK = 1 << 27
#: Numbers of the gradients of a private task's message, which are each sample's own: a second or two.
MAX_PRIVATE = 1 << 27
#: Numbers that go into a part's layers, and that these put out, at most: 8 MiB, of which training keeps a few times
#: as much.
MAX_OUTPUTS = 1 << 21
_MAX_WIDTH = 4096
_MAX_LAYERS = 6
_KERNEL = 9  # of 3 x 3


#: Those that are built in.
DATA = {
    "digits": DataShape(features=64, num_classes=10, num_train=1285, side=8, num_buckets=0),
    "words": DataShape(features=32, num_classes=2, num_train=5150, side=0, num_buckets=4096),
}


class Defaults(NamedTuple):
    """What a task of an architecture has where its client says nothing."""

    data: str
    hidden: tuple[int, ...]
    learning_rate: float
    tau: float


#: CNN: channels of two convolutions, then widths of dense layers. BAG: width of the embedding, then the same.
ARCHITECTURES = {
    "MLP": Defaults("digits", (128, 64), 0.3, 0.02),
    "CNN": Defaults("digits", (16, 32, 64), 0.3, 0.02),
    "BAG": Defaults("words", (32, 32), 3.0, 0.002),
}


class Parameter(NamedTuple):
    """One tensor of a model's weights."""

    shape: tuple[int, ...]
    fan_in: int  #: inputs of one of its outputs; 0: a bias
    work: int  #: multiply-accumulates that a sample costs with it

    @property
    def size(self) -> int:
        """Return how many weights it has."""
        return math.prod(self.shape)


class Noise(msgspec.Struct, frozen=True, array_like=True):
    """How a task's messages keep its training samples private (`privacy`)."""

    multiplier: float  #: standard deviation of the noise, over `max_norm`
    max_norm: float  #: that a sample's gradient is clipped to
    max_messages: int  #: of a slot


class TaskSpec(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """A task as it is trained; `check` it where it comes from anybody else."""

    id: bytes  #: 32 bytes
    architecture: str  #: of ARCHITECTURES
    hidden: tuple[int, ...]
    data: str  #: of DATA, or the name of a client's own
    batch_size: int
    learning_rate: float
    tau: float  #: a weight moves when its residual reaches this
    shape: DataShape | None = None  #: of a client's own data; None: they are built in
    noise: Noise | None = None  #: None: its messages tell of its samples what they tell

    def check(self) -> None:
        """Raise if there is no such model, or none for such data.

        Raises:
            InvalidTask: it says which field, its value and what is allowed.
        """
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise InvalidTask(f"architecture is {self.architecture!r}; allowed: {known}.")
        self._check_data()
        fewest = {"MLP": 0, "CNN": 2, "BAG": 1}[self.architecture]
        if not fewest <= len(self.hidden) <= _MAX_LAYERS:
            raise InvalidTask(
                f"hidden has {len(self.hidden)} widths; allowed for {self.architecture}: {fewest} to {_MAX_LAYERS}."
            )
        for width in self.hidden:
            if not 1 <= width <= _MAX_WIDTH:
                raise InvalidTask(f"a width of hidden is {width}; allowed: 1 to {_MAX_WIDTH}.")
        if self.num_weights > MAX_WEIGHTS:
            raise InvalidTask(
                f"the model has {self.num_weights:,} weights; allowed: {MAX_WEIGHTS:,}; take smaller widths in hidden."
            )
        if not 1 <= self.batch_size <= 1024:
            raise InvalidTask(f"batch_size is {self.batch_size}; allowed: 1 to 1024.")
        for amount, most, what in (
            (self.work(), MAX_WORK, "multiply-accumulates"),
            (self.num_outputs, MAX_OUTPUTS, "numbers between its layers"),
            (self.data_shape.features * self.batch_size, MAX_OUTPUTS, "numbers of samples"),
        ):
            if amount > most:
                raise InvalidTask(
                    f"a mini-batch takes {amount:,} {what}; allowed: {most:,}; take a smaller batch_size, or smaller "
                    "widths in hidden."
                )
        private = self.num_weights * self.batch_size * MAX_PARTS
        if self.noise is not None and private > MAX_PRIVATE:
            raise InvalidTask(
                f"the samples of a private message, {self.batch_size * MAX_PARTS:,} at most, have gradients of "
                f"{private:,} numbers; allowed: {MAX_PRIVATE:,}; take a smaller batch_size, or smaller widths in hidden."
            )
        for name, value in (("learning_rate", self.learning_rate), ("tau", self.tau)):
            if not 1e-6 <= value <= 1e3:
                raise InvalidTask(f"{name} is {value}; allowed: 0.000001 to 1000.")

    @cached_property
    def data_shape(self) -> DataShape:
        """Return the sizes of its data."""
        return DATA[self.data] if self.shape is None else self.shape

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Return the model's tensors in the order of the flat weights."""
        data, hidden = self.data_shape, self.hidden
        found: list[Parameter] = []
        if self.architecture == "CNN":
            # Two convolutions of 3 x 3 that keep the size, a pooling of 2 x 2 between them.
            first, second, *hidden_rest = hidden
            pixels, pooled = data.side**2, (data.side // 2) ** 2
            found += _layer((first, 1, 3, 3), _KERNEL, pixels)
            found += _layer((second, first, 3, 3), _KERNEL * first, pooled)
            inputs, hidden = second * pooled, tuple(hidden_rest)
        elif self.architecture == "BAG":
            inputs, hidden = hidden[0], hidden[1:]
            # An embedding is an input: its rows are looked up, a multiply-accumulate a number.
            found.append(Parameter((data.num_buckets, inputs), inputs, data.features * inputs))
        else:
            inputs = data.features
        for width in (*hidden, data.num_classes):
            found += _layer((width, inputs), inputs, 1)
            inputs = width
        return tuple(found)

    @cached_property
    def num_weights(self) -> int:
        """Return how many weights the model has."""
        return sum(parameter.size for parameter in self.parameters)

    @property
    def cap(self) -> int:
        """Return how many entries a map has at most."""
        return cap_of(self.num_weights)

    @property
    def max_messages(self) -> int:
        """Return how many messages a slot has at most."""
        return MAX_LANES if self.noise is None else self.noise.max_messages

    def sample_bytes(self, parts: int = 1) -> int:
        """Return the bytes of an iteration's samples, for `draws.allowance`."""
        return 4 * self.data_shape.features * self.batch_size * parts

    def work(self, parts: int = 1) -> int:
        """Return the multiply-accumulates of an iteration's forward pass, for `draws.allowance`."""
        one = sum(parameter.work for parameter in self.parameters)
        return one * self.batch_size * parts

    @property
    def paid_work(self) -> int:
        """Return what its client pays for a mini-batch: multiply-accumulates, or the numbers of private gradients."""
        private = 0 if self.noise is None else self.num_weights * self.batch_size
        return max(self.work(), private)

    @property
    def num_outputs(self) -> int:
        """Return how many numbers the layers put out for a mini-batch, which its backward pass needs again."""
        # A weight's work is its inputs for each of its outputs; of an embedding that is a little too much.
        each = (
            parameter.work // parameter.fan_in for parameter in self.parameters if parameter.fan_in
        )
        return sum(each) * self.batch_size

    def _check_data(self) -> None:
        """Raise if there are no such data, or the architecture is not for them."""
        shape = self.shape
        if shape is None:
            if self.data not in DATA:
                raise InvalidTask(f"data is {self.data!r}; allowed: {', '.join(DATA)}.")
            suited = ARCHITECTURES[self.architecture].data
            if self.data != suited:
                raise InvalidTask(f"{self.architecture} trains on {suited}, not on {self.data}.")
            return
        if self.data in DATA:
            raise InvalidTask(f"{self.data} are built in and have no shape of a client's.")
        if shape.side and (shape.side**2 != shape.features or shape.num_buckets):
            raise InvalidTask(
                f"side is {shape.side}; allowed for images: float32, side x side = features ({shape.features})."
            )
        if shape.num_buckets == 1 or 4 * shape.features * shape.num_train > MAX_DATA_BYTES:
            raise InvalidTask(
                f"{shape.num_train:,} samples of {shape.features:,} numbers, {shape.num_buckets} buckets; allowed: "
                f"{MAX_DATA_BYTES:,} bytes, 0 buckets or at least 2."
            )
        fits = {"MLP": not shape.num_buckets, "CNN": shape.side >= 2, "BAG": shape.num_buckets > 0}
        if not fits[self.architecture]:
            due = {"MLP": "float32", "CNN": "images", "BAG": "whole numbers below num_buckets"}
            raise InvalidTask(
                f"{self.architecture} trains on {due[self.architecture]}, which these data are not."
            )


class LapSlot(msgspec.Struct, frozen=True, array_like=True):
    """One slot of a lap, as re-execution goes through it."""

    slot: int
    theta: bytes  #: weights at its start; may be empty where `map` is None
    map: (
        bytes | None
    )  #: the lane's certified one; None: it has none, so its gradient does not count
    parts: int  #: mini-batches of the lane's message
    noise: bytes | None = None  #: of a private task: the signature that seeds the message's noise


def _layer(shape: tuple[int, ...], fan_in: int, outputs: int) -> list[Parameter]:
    """Return a layer's weights and bias; `outputs` is at how many places of a sample it is used."""
    weight = Parameter(shape, fan_in, math.prod(shape) * outputs)
    return [weight, Parameter(shape[:1], 0, 0)]
