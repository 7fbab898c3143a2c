"""Data are there, cut as they say, and nobody chooses samples."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pocqueue.pouw.slots.task import DATA
from pocqueue.pouw.training.samples import load, sample_rows
from tests.pouw.training.in_step import task_of


@pytest.mark.parametrize(
    ("name", "sizes", "majority"),
    [("digits", (1285, 256, 256), 31), ("words", (5150, 1030, 1029), 583)],
)
def test_data_are_as_their_shape_says(name: str, sizes: tuple[int, ...], majority: int) -> None:
    """Rows, features, classes and ranges agree with what checks are made with."""
    samples, shape = load(name), DATA[name]
    assert tuple(len(part.y) for part in samples) == sizes
    assert shape.num_train == sizes[0]
    for part in samples:
        assert part.x.shape == (len(part.y), shape.features)
        assert set(part.y) == set(range(shape.num_classes))
        assert part.x.min() == 0
        assert part.x.max() <= (shape.num_buckets - 1 if shape.num_buckets else 1)
    assert samples.val.majority == majority
    assert (np.bincount(samples.val.y) <= majority).all()


def test_rows_are_hashes() -> None:
    """Row 3 by hand; other slots, miners and lanes have others; parts go on with the same ones."""
    task, miner = task_of("MLP"), b"m" * 33
    rows = sample_rows(task, 7, miner, 2, 1)
    assert len(rows) == 64
    named = task.id + (7).to_bytes(8, "little") + miner + b"\x02"
    digest = hashlib.sha256(b"pocqueue.pouw.sample.v1\x00" + named).digest()
    fourth = hashlib.shake_256(digest).digest(16)[12:]
    assert rows[3] == int.from_bytes(fourth, "little") % 1285
    others = [(8, miner, 2), (7, b"n" * 33, 2), (7, miner, 3)]
    for slot, account, lane in others:
        assert (sample_rows(task, slot, account, lane, 1) != rows).any()
    assert sample_rows(task, 7, miner, 2, 3)[:64].tolist() == rows.tolist()
