"""Weights are the same bits everywhere; no message weighs more than another."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pocqueue.pouw.slots.maps import SignMap
from pocqueue.pouw.slots.task import ARCHITECTURES, TaskSpec
from pocqueue.pouw.slots.weights import (
    first_weights,
    next_weights,
    step_of,
    weights_bytes,
    weights_end,
    weights_from,
    weights_hash,
)


def _task(architecture: str = "MLP") -> TaskSpec:
    data, hidden, learning_rate, tau = ARCHITECTURES[architecture]
    return TaskSpec(b"t" * 32, architecture, hidden, data, 64, learning_rate, tau)


def _map(*entries: int) -> SignMap:
    """Return a map of weights, numbered from 1; a negative number moves its weight the other way."""
    signed = np.array(entries, dtype=np.int64)
    return SignMap(np.abs(signed) - 1, np.sign(signed).astype(np.int8))


@pytest.mark.parametrize(
    ("architecture", "start"),
    [
        ("MLP", "d7e8c875d6daf3a2"),
        ("CNN", "1bf96634878f58a5"),
        ("BAG", "bb65c93ff7159ae8"),
    ],
)
def test_first_weights_are_frozen(architecture: str, start: str) -> None:
    """A task begins with the same bits on every machine and with every version of numpy."""
    weights = first_weights(_task(architecture))
    assert weights_hash(weights).hex()[:16] == start
    assert len(weights) == _task(architecture).num_weights


def test_first_weights_fill_their_layers() -> None:
    """Weights of a layer are uniform within its bound, biases are 0, other tasks have others."""
    weights = first_weights(_task())
    first = weights[: 128 * 64]
    bound = np.sqrt(6 / 64)
    assert np.abs(first).max() <= bound
    assert float(first.std()) == pytest.approx(bound / np.sqrt(3), rel=0.02)
    assert not weights[128 * 64 : 128 * 65].any()
    other = TaskSpec(b"u" * 32, "MLP", (128, 64), "digits", 64, 0.3, 0.02)
    assert (first_weights(other)[: 128 * 64] != first).mean() > 0.99


def test_a_slot_counts_signs() -> None:
    """Up to three messages add up, more share three's weight; their order does not matter."""
    task = _task()
    start = first_weights(task)
    maps = [_map(1, -2, 5), _map(1, 2, 7), _map(1, -9)]
    after = next_weights(task, start, maps)
    step = np.float32(0.3 * 0.02)
    assert after[0] == start[0] - np.float32(step * np.float32(3))
    assert after[1] == start[1]
    assert after[8] == start[8] + step
    assert (np.flatnonzero(after != start) == [0, 4, 6, 8]).all()
    assert weights_hash(next_weights(task, start, maps[::-1])) == weights_hash(after)
    six = next_weights(task, start, maps * 2)
    assert six[0] == pytest.approx(after[0], abs=1e-7)
    assert step_of(task, 6) == np.float32(float(step) / 2)
    assert weights_hash(next_weights(task, start, [])) == weights_hash(start)


def test_steps_are_rounded_twice() -> None:
    """Product and difference round each for themselves, as the rule says, and never as one."""
    task = _task()
    start = first_weights(task)
    maps = [_map(*range(1, 2001))] * 7
    after = next_weights(task, start, maps)
    step = step_of(task, 7)
    for i in range(2000):
        product = np.float32(float(step) * 7.0)
        assert after[i] == np.float32(float(start[i]) - float(product))


def test_the_weights_of_a_message_are_those_after_its_map_alone() -> None:
    """`weights_end` is a full step of one map, by little-endian bytes."""
    task = _task()
    start = first_weights(task)
    moved = start.copy()
    moved[4] -= np.float32(0.3 * 0.02)
    assert (
        weights_end(task, start, _map(5)) == hashlib.sha256(moved.astype("<f4").tobytes()).digest()
    )
    assert weights_from(weights_bytes(start)).tolist() == start.tolist()
