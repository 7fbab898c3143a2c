"""Training on a client's own data: by file, the same in the child as here, and a bad file is one failed call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from pocqueue.pouw.data.parts import Part, read
from pocqueue.pouw.errors import DataError, TrainingError
from pocqueue.pouw.slots.task import LapSlot, TaskSpec
from pocqueue.pouw.slots.weights import first_weights, weights_bytes
from pocqueue.pouw.training import samples
from pocqueue.pouw.training.iterate import iterate
from pocqueue.pouw.training.models import Model
from pocqueue.pouw.training.samples import check_count, own, own_test, sample_rows
from pocqueue.pouw.training.trainer import Trainer
from tests.pouw.data.files import Tensors, hidden, images, pieces, vectors, write
from tests.pouw.training.in_step import InStep

MINER = b"m" * 33
NAME = "0x" + "a" * 64


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    """Return a trainer for several tests: its child takes seconds to start."""
    with Trainer() as found:
        yield found


def _task(path: Path, architecture: str = "MLP", hidden: tuple[int, ...] = (16,)) -> TaskSpec:
    shape = read(path).shape
    rate, tau = (3.0, 0.002) if architecture == "BAG" else (0.3, 0.02)
    task = TaskSpec(b"o" * 32, architecture, hidden, NAME, 16, rate, tau, shape)
    task.check()
    return task


@pytest.mark.parametrize(
    ("tensors", "architecture", "widths"),
    [
        (vectors(), "MLP", (16,)),
        (images(), "MLP", (16,)),
        (images(side=5), "CNN", (4, 4)),
        (pieces(), "BAG", (8,)),
    ],
)
async def test_the_child_trains_on_the_file(
    trainer: Trainer,
    tmp_path: Path,
    tensors: Tensors,
    architecture: str,
    widths: tuple[int, ...],
) -> None:
    """An iteration is what it is in this process; done over it is honest; accuracy is that of x_val."""
    path = write(tmp_path / "own", tensors)
    task = _task(path, architecture, widths)
    theta = weights_bytes(first_weights(task))
    trainer.know(NAME, path)
    try:
        await trainer.check(task)
        done = await trainer.iterate(task, theta, None, 0, MINER, 0, 2)
        model = Model(task, own(path, task))
        assert done == iterate(model, theta, None, slot=0, miner=MINER, lane=0, parts=2)
        lap = [LapSlot(0, theta, done.map, 2)]
        assert (await trainer.reexecute(task, lap, MINER, 0, done.map)).is_honest
        found = await trainer.accuracy(task, theta, "val")
        assert found.total == len(tensors["y_val"])
        assert found.correct == model.correct(first_weights(task), model.samples.val)
    finally:
        trainer.forget(NAME, path)


async def test_a_shown_test_part_counts_instead(trainer: Trainer, tmp_path: Path) -> None:
    """Without one, what validates stands for it."""
    path = write(tmp_path / "own", vectors())
    test = write(tmp_path / "test", hidden(vectors(num_val=77)))
    task = _task(path)
    theta = weights_bytes(first_weights(task))
    trainer.know(NAME, path)
    try:
        assert (await trainer.accuracy(task, theta, "test", test)).total == 77
        val = await trainer.accuracy(task, theta, "val")
        assert await trainer.accuracy(task, theta, "test") == val
        with pytest.raises(DataError, match="it has x_train"):
            await trainer.accuracy(task, theta, "test", path)
    finally:
        trainer.forget(NAME, path)


async def test_bad_data_are_one_failed_call(trainer: Trainer, tmp_path: Path) -> None:
    """The child goes on, whatever is in the file."""
    path = write(tmp_path / "own", vectors())
    task = _task(path)
    theta = weights_bytes(first_weights(task))
    with pytest.raises(TrainingError, match="are not here"):
        await trainer.iterate(task, theta, None, 0, MINER, 0, 1)
    spoilt = {**vectors(), "x_val": np.full((11, 6), np.nan, np.float32)}
    for file, said in (
        (write(tmp_path / "nan", spoilt), "numbers that are not finite"),
        (write(tmp_path / "other", vectors(features=7)), "7 numbers; 6 are ordered"),
        (tmp_path / "gone", "cannot be read"),
    ):
        trainer.know(NAME, file)
        try:
            with pytest.raises(DataError, match=said):
                await trainer.check(task)
            pid = trainer.pid
            with pytest.raises(TrainingError, match=said):
                await trainer.iterate(task, theta, None, 0, MINER, 0, 1)
            assert trainer.pid == pid
        finally:
            trainer.forget(NAME, file)


def test_honest_miners_learn_a_clients_data(tmp_path: Path) -> None:
    """Three of them, from the initial weights to far above the commonest answer."""
    path = write(tmp_path / "own", vectors(num_train=600, num_val=150))
    task = _task(path)
    miners = InStep(task, 3, samples=own(path, task))
    miners.run(60)
    part = miners.model.samples.val
    assert miners.correct() > 0.7 > part.majority / len(part.y)


def test_samples_are_rows_of_the_file(tmp_path: Path) -> None:
    """None beyond those that the order says."""
    path = write(tmp_path / "own", vectors())
    task = _task(path)
    rows = np.concatenate([sample_rows(task, slot, MINER, 0, 8) for slot in range(20)])
    assert (rows.min(), rows.max()) == (0, 29)


def test_a_look_at_all_of_a_part_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever evaluates has other things to do."""
    path = write(tmp_path / "own", vectors())
    task = _task(path)
    one = 6 * 16 + 16 * 3
    part = Part(np.zeros((10, 6), np.float32), np.zeros(10, np.int64))
    monkeypatch.setattr(samples, "MAX_COUNT_WORK", 10 * one)
    check_count(task, part)
    with pytest.raises(DataError, match="11 samples to look at take 1,584 multiply-accumulates"):
        own(path, replace(task, id=b"p" * 32))
    with pytest.raises(DataError, match="11 samples to look at"):
        own_test(write(tmp_path / "test", hidden(vectors())), task)
