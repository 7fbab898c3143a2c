"""A task's weights from slot to slot, by arithmetic that gives the same bits on every machine.

Weights are float32, flat, in the order of `task.parameters`; on the wire, on disk and under every hash
they are little-endian bytes. A slot moves them by whole numbers of one step, counted in integers, so
the order of its messages does not matter and rounding happens in two places: one float32
product and one float32 difference a weight. numpy does these as they stand; it never joins them into
a fused multiply-add, which would round once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from pocqueue.pouw.slots.maps import SignMap
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.wire.hashes import tagged

Weights = npt.NDArray[np.float32]

#: From so many messages on, a slot's sum is divided, so that the weights do not run away with many miners.
_DIVIDED_ABOVE = 3


def first_weights(task: TaskSpec) -> Weights:
    """Return the weights of slot 0, a function of the task's id alone.

    Those of a layer with n inputs are uniform in ±√(6/n) (He et al. 2015), biases are 0. They come from
    24 bits each of SHAKE-256(H("init", task)): integers, a float32 product and a square root are the
    same everywhere, which the logarithm and sines of normal numbers are not.

    Returns:
        float32 ``[num_weights]``.
    """
    stream = hashlib.shake_256(tagged("init", task.id)).digest(4 * task.num_weights)
    uniform = (np.frombuffer(stream, dtype="<u4") >> 8).astype(np.float32) - np.float32(2**23)
    weights, at = np.empty(task.num_weights, dtype=np.float32), 0
    for parameter in task.parameters:
        to = at + parameter.size
        bound = np.float32(math.sqrt(6.0 / parameter.fan_in) if parameter.fan_in else 0.0)
        weights[at:to] = uniform[at:to] * np.float32(bound * np.float32(2.0**-23))
        at = to
    return weights


def step_of(task: TaskSpec, num_messages: int) -> np.float32:
    """Return how far one sign moves a weight in a slot of so many messages: lr·τ / max(1, m/3)."""
    step = np.float32(task.learning_rate * task.tau)
    return np.float32(float(step) / max(1.0, num_messages / _DIVIDED_ABOVE))


def next_weights(task: TaskSpec, weights: Weights, maps: Collection[SignMap]) -> Weights:
    """Return the weights at the start of the next slot.

    Args:
        task: whose they are.
        weights: float32 ``[num_weights]`` of the slot; not changed.
        maps: of all messages that are certified in it, in any order; none leaves the weights as they are.
    """
    counts = np.zeros(len(weights), dtype=np.int32)
    for indices, signs in maps:
        counts[indices] += signs  # an index is in a map once, so none is lost
    return weights - step_of(task, len(maps)) * counts.astype(np.float32)


def weights_end(task: TaskSpec, weights: Weights, signs: SignMap) -> bytes:
    """Return SHA-256 of the weights as this map alone moves them: `Iteration.weights_end`."""
    return weights_hash(next_weights(task, weights, [signs]))


def weights_hash(weights: Weights) -> bytes:
    """Return SHA-256 of the weights' bytes: `Certificate.theta`."""
    return hashlib.sha256(weights_bytes(weights)).digest()


def weights_bytes(weights: Weights) -> bytes:
    """Return the weights' bytes, little-endian."""
    return weights.astype("<f4", copy=False).tobytes()


def weights_from(data: bytes) -> Weights:
    """Return the weights that these bytes are: float32, read-only."""
    return np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
