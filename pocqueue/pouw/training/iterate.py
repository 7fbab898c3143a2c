"""One lane's iteration: a gradient at the weights that all have, and the map that comes of it.

``r = residual + gradient``; the map has the weights with ``|r| >= τ``, the largest of them if there are
more than the cap, each with its sign; ``r - τ·sign`` is the residual after it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pocqueue.pouw.errors import TrainingError
from pocqueue.pouw.slots.maps import SignMap, encode_map
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.slots.weights import Weights, weights_bytes, weights_end, weights_from
from pocqueue.pouw.training.messages import IterationResult
from pocqueue.pouw.training.models import Model
from pocqueue.pouw.training.private import private_gradient
from pocqueue.pouw.training.samples import sample_rows

_MILLION = 1_000_000
_MAX_LOSS = 2**63 - 1


def iterate(
    model: Model,
    theta: bytes,
    residual: bytes | None,
    *,
    slot: int,
    miner: bytes,
    lane: int,
    parts: int,
    noise: bytes | None = None,
) -> IterationResult:
    """Make a lane's iteration.

    Args:
        model: of the task.
        theta: weights at the start of the slot, float32.
        residual: of this lap's certified slots so far, float32; None at the start of a lap.
        slot: its number, from 0.
        miner: account.
        lane: of the miner.
        parts: mini-batches, 1 to 8.
        noise: of a private task: the signature that seeds its noise.

    Raises:
        TrainingError: weights or residual are of another model, or the noise is missing.
    """
    task = model.task
    weights = full_weights(task, theta)
    gradient, loss = gradient_of(
        model, weights, slot=slot, miner=miner, lane=lane, parts=parts, noise=noise
    )
    left = gradient if residual is None else full_weights(task, residual) + gradient
    signs = signs_of(task, left)
    take_map(task, left, signs)
    return IterationResult(
        map=encode_map(*signs),
        weights_end=weights_end(task, weights, signs),
        loss=min(_MAX_LOSS, round(loss * _MILLION)) if math.isfinite(loss) else _MAX_LOSS,
        residual=weights_bytes(left),
    )


def gradient_of(
    model: Model,
    weights: Weights,
    *,
    slot: int,
    miner: bytes,
    lane: int,
    parts: int,
    noise: bytes | None,
) -> tuple[Weights, float]:
    """Return the gradient of a lane's iteration, and the loss that its message may tell.

    Args:
        model: of the task.
        weights: float32 ``[num_weights]`` of the slot; not changed.
        slot, miner, lane, parts, noise: as of `iterate`.

    Raises:
        TrainingError: the task is private, and the noise is missing.
    """
    rows = sample_rows(model.task, slot, miner, lane, parts)
    if model.task.noise is None:
        return model.gradient(weights, rows)
    if noise is None:
        raise TrainingError(f"the noise of a message of slot {slot} is not known here.")
    return private_gradient(model, model.task.noise, weights, rows, noise), 0.0


def full_weights(task: TaskSpec, data: bytes) -> Weights:
    """Return the weights, or the residual, that these bytes are.

    Raises:
        TrainingError: they are of another model.
    """
    if len(data) != 4 * task.num_weights:
        raise TrainingError(
            f"{len(data)} bytes of weights; the model has {task.num_weights}, 4 bytes each."
        )
    return weights_from(data)


def signs_of(task: TaskSpec, left: Weights) -> SignMap:
    """Return the map of what is left over: float32 ``[num_weights]``."""
    size = np.abs(left)
    indices = np.flatnonzero(size >= np.float32(task.tau))
    if len(indices) > task.cap:
        sizes = size[indices]
        smallest = np.partition(sizes, -task.cap)[-task.cap]
        is_in = sizes > smallest
        # Of those that are just as large the earlier weights are taken, by everybody.
        is_in[np.flatnonzero(sizes == smallest)[: task.cap - int(is_in.sum())]] = True
        indices = indices[is_in]
    return SignMap(indices, _signs(left[indices]))


def take_map(task: TaskSpec, left: Weights, signs: SignMap) -> None:
    """Take from what is left over, in place, what goes out with a map."""
    left[signs.indices] -= np.float32(task.tau) * signs.signs.astype(np.float32)


def _signs(values: Weights) -> npt.NDArray[np.int8]:
    return np.where(values < 0, -1, 1).astype(np.int8)
