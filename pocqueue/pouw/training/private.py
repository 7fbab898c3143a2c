"""The gradient of a private task's message: each sample's clipped, noise on their sum.

The noise is normal numbers from a signature that its miner alone can make, and one only: the miner cannot choose
it, nobody else can take it off, and whoever is shown the signature can do it all again. What comes of the gradient
(residual, map, weights) tells no more of a sample than the gradient does.

A sample counts once in a message, however often it was drawn, so that the norm is the most that it moves the sum.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

from pocqueue.pouw.slots.task import Noise
from pocqueue.pouw.slots.weights import Weights
from pocqueue.pouw.training.models import Model
from pocqueue.pouw.wire.hashes import tagged


def private_gradient(
    model: Model, noise: Noise, weights: Weights, rows: npt.NDArray[np.int64], signature: bytes
) -> Weights:
    """Return the mean of clipped gradients with noise.

    Args:
        model: of the task.
        noise: its size.
        weights: float32 ``[num_weights]``; not changed.
        rows: int64 ``[samples]`` of the training part; one that is there twice counts once.
        signature: over `wire.slots.noise_digest`.

    Returns:
        float32 ``[num_weights]``.
    """
    chosen = np.unique(rows)
    total = normal(signature, len(weights)) * (noise.multiplier * noise.max_norm)
    for row in chosen:
        gradient = model.gradient(weights, row[None])[0].astype(np.float64)
        norm = math.sqrt(gradient @ gradient)
        # One that is not a number, or beyond all numbers, counts nothing: it has no norm to clip.
        if math.isfinite(norm):
            total += gradient * min(1.0, noise.max_norm / norm) if norm else 0.0
    return (total / len(chosen)).astype(np.float32)


def normal(signature: bytes, number: int) -> npt.NDArray[np.float64]:
    """Return normal numbers, a function of a signature: Box and Muller's, of SHAKE-256(H("noise-seed", signature)).

    Machines may differ in the last bit of a logarithm or a cosine, which re-execution has room for.

    Returns:
        float64 ``[number]``.
    """
    pairs = (number + 1) // 2
    stream = hashlib.shake_256(tagged("noise-seed", signature)).digest(16 * pairs)
    # 53 bits each: above 0, up to 1.
    uniform = ((np.frombuffer(stream, dtype="<u8") >> 11) + 1) * 2.0**-53
    radius = np.sqrt(-2 * np.log(uniform[:pairs]))
    angle = 2 * math.pi * uniform[pairs:]
    found: npt.NDArray[np.float64] = np.concatenate(
        (radius * np.cos(angle), radius * np.sin(angle))
    )
    return found[:number]
