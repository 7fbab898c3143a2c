"""Messages of private tasks: clipped by sample, with noise that its miner alone can make and others can check."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from pocqueue.pouw.errors import TrainingError
from pocqueue.pouw.slots.maps import decode_map
from pocqueue.pouw.slots.task import LapSlot, Noise, TaskSpec
from pocqueue.pouw.slots.weights import first_weights, next_weights, weights_bytes
from pocqueue.pouw.training.iterate import iterate
from pocqueue.pouw.training.models import Model
from pocqueue.pouw.training.private import normal, private_gradient
from pocqueue.pouw.training.reexecute import reexecute
from tests.pouw.training.in_step import task_of

MINER = b"m" * 33
SIGNATURE = b"s" * 96


def _task(noise: float, max_norm: float, *, batch_size: int = 16) -> TaskSpec:
    plain = task_of("MLP", batch_size=batch_size)
    return msgspec.structs.replace(plain, noise=Noise(noise, max_norm, 4))


def test_noise_is_normal_and_of_its_signature_alone() -> None:
    """Mean 0, deviation 1, tails as they should be; another signature gives other numbers."""
    numbers = normal(SIGNATURE, 100_001)
    assert numbers.shape == (100_001,)
    assert abs(numbers.mean()) < 0.02
    assert abs(numbers.std() - 1) < 0.02
    assert abs((np.abs(numbers) < 1).mean() - 0.6827) < 0.01
    assert abs((np.abs(numbers) > 2).mean() - 0.0455) < 0.005
    assert np.isfinite(numbers).all()
    assert (normal(SIGNATURE, 7) == normal(SIGNATURE, 7)).all()
    assert abs(np.corrcoef(numbers, normal(b"t" * 96, 100_001))[0, 1]) < 0.02


@pytest.mark.parametrize("architecture", ["MLP", "CNN", "BAG"])
def test_no_sample_moves_the_sum_by_more_than_the_norm(architecture: str) -> None:
    """Whatever its gradient is; without noise, and where nothing has to be clipped, it is the mean gradient."""
    model = Model(task_of(architecture, batch_size=8))
    weights = first_weights(model.task)
    rows = np.array([5, 3, 9, 3])
    clipped = [
        private_gradient(model, Noise(0.0, 1e-3, 4), weights, part, SIGNATURE).astype(np.float64)
        for part in (rows, rows[1:])
    ]
    moved = 3 * clipped[0] - 2 * clipped[1]  # by sample 5, in the sum
    assert np.linalg.norm(moved) == pytest.approx(1e-3, rel=1e-3)
    wide = private_gradient(model, Noise(0.0, 1e6, 4), weights, rows, SIGNATURE)
    plain, _ = model.gradient(weights, np.array([3, 5, 9]))
    assert np.allclose(wide, plain, atol=1e-6)


def test_noise_is_as_large_as_it_is_asked_for() -> None:
    """Its deviation is the multiplier times the norm, over the number of samples."""
    model = Model(_task(8.0, 0.5))
    weights = first_weights(model.task)
    rows = np.arange(10)
    with_noise, without = (
        private_gradient(model, Noise(multiplier, 0.5, 4), weights, rows, SIGNATURE)
        for multiplier in (8.0, 0.0)
    )
    assert (with_noise - without).std() == pytest.approx(8.0 * 0.5 / 10, rel=0.03)


def test_weights_that_have_run_away_tell_nothing() -> None:
    """A gradient that is no number counts nothing, so that noise is all that there is."""
    model = Model(_task(1.0, 1.0))
    far = np.full(model.task.num_weights, 1e38, dtype=np.float32)
    found = private_gradient(model, Noise(1.0, 1.0, 4), far, np.arange(4), SIGNATURE)
    noise = normal(SIGNATURE, model.task.num_weights) / 4
    assert (found == noise.astype(np.float32)).all()


def test_a_private_iteration_is_executed_again_with_its_signatures() -> None:
    """With those of the whole lap, and with no others; it does not tell its loss."""
    model = Model(_task(1.0, 0.5))
    task, weights, residual = model.task, first_weights(model.task), None
    lap: list[LapSlot] = []
    for slot in range(3):
        theta, signature = weights_bytes(weights), bytes([slot]) * 96
        done = iterate(
            model,
            theta,
            residual,
            slot=slot,
            miner=MINER,
            lane=0,
            parts=1,
            noise=signature,
        )
        assert done.loss == 0
        lap.append(LapSlot(slot, theta, done.map, 1, signature))
        maps = [decode_map(done.map, task.num_weights, task.cap)]
        weights, residual = next_weights(task, weights, maps), done.residual
    published = lap[-1].map
    assert published is not None
    verdict = reexecute(model, lap, miner=MINER, lane=0, published=published)
    assert (verdict.is_honest, verdict.violations) == (True, 0)
    wrong = [lap[0], msgspec.structs.replace(lap[1], noise=SIGNATURE), lap[2]]
    assert not reexecute(model, wrong, miner=MINER, lane=0, published=published).is_honest
    unknown = [*lap[:2], msgspec.structs.replace(lap[2], noise=None)]
    with pytest.raises(TrainingError, match="the noise of a message of slot 2 is not known here"):
        reexecute(model, unknown, miner=MINER, lane=0, published=published)
