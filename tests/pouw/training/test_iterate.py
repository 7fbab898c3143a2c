"""An iteration is a function of public things, and many of them learn."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from pocqueue.pouw.errors import TrainingError
from pocqueue.pouw.slots.maps import decode_map
from pocqueue.pouw.slots.weights import first_weights, weights_bytes, weights_end, weights_from
from pocqueue.pouw.training.iterate import iterate, signs_of, take_map
from pocqueue.pouw.training.models import Model
from tests.pouw.training.in_step import InStep, task_of

MINER = b"m" * 33


@pytest.mark.parametrize("architecture", ["MLP", "CNN", "BAG"])
def test_an_iteration_is_its_gradients_signs(architecture: str) -> None:
    """The map has what reached tau, the residual is the rest, and another time it is all the same."""
    model = Model(task_of(architecture))
    theta = weights_bytes(first_weights(model.task))
    result = iterate(model, theta, None, slot=0, miner=MINER, lane=0, parts=1)
    again = iterate(Model(model.task), theta, None, slot=0, miner=MINER, lane=0, parts=1)
    assert again == result
    task = model.task
    signs = decode_map(result.map, task.num_weights, task.cap)
    assert 0 < len(signs.indices) <= task.cap
    after = weights_from(result.residual)
    gradient = after.copy()
    gradient[signs.indices] += np.float32(task.tau) * signs.signs
    assert (gradient[signs.indices] * signs.signs >= np.float32(task.tau) * 0.999).all()
    assert result.weights_end == weights_end(task, first_weights(task), signs)
    assert 0 < result.loss < 5_000_000


def test_a_full_map_has_the_largest() -> None:
    """Over the cap the largest are taken; of equal ones the earlier weights."""
    task = task_of("MLP")
    left = np.full(task.num_weights, -0.03, dtype=np.float32)
    left[[5000, 17_000]] = 0.5
    left[7] = np.float32(0.0199)
    signs = signs_of(task, left)
    assert len(signs.indices) == task.cap
    assert signs.indices.tolist() == [n for n in range(343) if n != 7] + [5000, 17_000]
    assert signs.signs[-2:].tolist() == [1, 1]
    after = left.copy()
    take_map(task, after, signs)
    assert after[5000] == np.float32(0.5) - np.float32(0.02)
    assert after[0] == np.float32(-0.03) + np.float32(0.02)
    assert after[7] == left[7]


def test_residuals_go_on_within_a_lap() -> None:
    """What one slot left over counts in the next."""
    model = Model(task_of("MLP"))
    theta = weights_bytes(first_weights(model.task))
    first = iterate(model, theta, None, slot=0, miner=MINER, lane=0, parts=1)
    fresh = iterate(model, theta, None, slot=1, miner=MINER, lane=0, parts=1)
    carried = iterate(model, theta, first.residual, slot=1, miner=MINER, lane=0, parts=1)
    assert carried.map != fresh.map
    assert carried.loss == fresh.loss


def test_weights_of_another_model_are_refused() -> None:
    """The sentence says how many bytes there are and how many weights the model has."""
    model = Model(task_of("MLP"))
    with pytest.raises(TrainingError, match=r"8 bytes of weights; the model has 17226"):
        iterate(model, bytes(8), None, slot=0, miner=MINER, lane=0, parts=1)


def test_a_loss_beyond_all_numbers_is_a_number() -> None:
    """Weights that have run away give a message all the same."""
    model = Model(msgspec.structs.replace(task_of("MLP"), tau=1e3))
    far = np.full(model.task.num_weights, 1e38, dtype=np.float32)
    result = iterate(model, weights_bytes(far), None, slot=0, miner=MINER, lane=0, parts=1)
    assert result.loss == 2**63 - 1


def test_three_miners_learn_digits() -> None:
    """300 slots of three miners are right about 95 % of digits they were not trained on."""
    miners = InStep(task_of("MLP"), 3)
    miners.run(300)
    assert miners.correct() >= 0.95


def test_three_liars_of_eight_do_not_keep_the_others_from_learning() -> None:
    """They send the opposite of what they found, slot after slot, and nobody audits them: a map weighs no more than another."""
    miners = InStep(task_of("MLP"), 8, num_liars=3)
    miners.run(200)
    assert miners.correct() > 0.9
