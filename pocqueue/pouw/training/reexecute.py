"""Whether a published map can be an honest lane's, by doing its lap again from public data.

Gradients are recomputed at the weights that the certificates name, the lane's own published maps are
taken off, and what is left in the slot in question is held against the map. Float32 differs a little
between machines, so that an entry near the threshold may fall on either side: an entry is a violation only
beyond a margin, and a map is a cheat only if so many cannot be chance (`poc.fraud`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pocqueue.poc.fraud import fraud_test
from pocqueue.pouw.errors import TrainingError
from pocqueue.pouw.slots.maps import SignMap, decode_map
from pocqueue.pouw.slots.task import LapSlot, TaskSpec
from pocqueue.pouw.slots.weights import Weights, weights_end
from pocqueue.pouw.training.iterate import full_weights, gradient_of, signs_of, take_map
from pocqueue.pouw.training.messages import Verdict
from pocqueue.pouw.training.models import Model

#: How far an entry may be beyond the threshold: the class "float32 on a CPU".
MARGIN = 1e-3
#: It is a cheat if an honest map has so many violations with a lower probability.
FRAUD_THRESHOLD = 1e-3


def reexecute(
    model: Model, lap: Sequence[LapSlot], *, miner: bytes, lane: int, published: bytes
) -> Verdict:
    """Judge a lane's map.

    Args:
        model: of the task.
        lap: the lap's slots so far, in their order; the last one is judged, whatever its `map` says.
        miner: account.
        lane: of the miner.
        published: the map's bytes.
    """
    task = model.task
    if not lap:
        raise TrainingError("a lap without slots has nothing to judge.")
    left = np.zeros(task.num_weights, dtype=np.float32)
    for past in lap[:-1]:
        if past.map is not None:
            left += _gradient(model, past, miner, lane)
            take_map(task, left, decode_map(past.map, task.num_weights, task.cap))
    left += _gradient(model, lap[-1], miner, lane)
    signs = decode_map(published, task.num_weights, task.cap)
    end = weights_end(task, full_weights(task, lap[-1].theta), signs)
    return judge(task, left, signs, end)


def judge(task: TaskSpec, left: Weights, published: SignMap, end: bytes) -> Verdict:
    """Hold a map against what was left over before it: float32 ``[num_weights]``, recomputed.

    Args:
        task: whose map it is.
        left: of the lane before the map goes out.
        published: the map.
        end: `Verdict.weights_end`.
    """
    tau, size = np.float32(task.tau), np.abs(left)
    pushed = left[published.indices] * published.signs
    # Not `pushed < …`: what is not a number is no reason for an entry.
    is_wrong = ~(pushed >= tau * np.float32(1 - MARGIN))
    # Where the map is full, it has the largest: what it leaves out may be over τ, but not over all of its own.
    smallest = tau
    if len(published.indices) == task.cap:
        smallest = max(tau, size[published.indices].min())
    is_missing = size > smallest * np.float32(1 + MARGIN)
    is_missing[published.indices] = False

    own = signs_of(task, left)
    violations = int(is_wrong.sum() + is_missing.sum())
    seen = np.concatenate((published.indices, own.indices, np.flatnonzero(is_missing)))
    compared = len(np.unique(seen))
    probability, is_fraud = fraud_test(violations, compared, FRAUD_THRESHOLD)
    return Verdict(violations, compared, probability, not is_fraud, end)


def _gradient(model: Model, slot: LapSlot, miner: bytes, lane: int) -> Weights:
    gradient, _ = gradient_of(
        model,
        full_weights(model.task, slot.theta),
        slot=slot.slot,
        miner=miner,
        lane=lane,
        parts=slot.parts,
        noise=slot.noise,
    )
    return gradient
