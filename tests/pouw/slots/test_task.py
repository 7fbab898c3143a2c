"""Models by their sizes, and what is said of one that cannot be."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pocqueue.pouw.errors import InvalidTask
from pocqueue.pouw.slots.task import Noise, TaskSpec
from pocqueue.pouw.wire.data import DataShape

PICTURES = DataShape(features=49, num_classes=3, num_train=600, side=7, num_buckets=0)
PIECES = DataShape(features=5, num_classes=2, num_train=100, side=0, num_buckets=50)
OWN = "0x" + "a" * 64
DIGITS = TaskSpec(bytes(32), "MLP", (128, 64), "digits", 64, 0.3, 0.02)


def test_sizes_are_those_of_the_layers() -> None:
    """Weights, cap and work, counted by hand."""
    assert DIGITS.num_weights == 64 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10 == 17_226
    assert DIGITS.cap == 344
    assert DIGITS.num_outputs == 64 * (128 + 64 + 10)
    assert DIGITS.work() == 64 * (64 * 128 + 128 * 64 + 64 * 10)
    cnn = TaskSpec(bytes(32), "CNN", (16, 32, 64), "digits", 1, 0.3, 0.02)
    assert cnn.num_weights == 9 * 16 + 16 + 9 * 16 * 32 + 32 + 512 * 64 + 64 + 640 + 10
    assert cnn.num_outputs == 16 * 64 + 32 * 16 + 64 + 10
    assert cnn.work() == 9 * 16 * 64 + 9 * 16 * 32 * 16 + 512 * 64 + 640
    bag = TaskSpec(bytes(32), "BAG", (32, 32), "words", 1, 3.0, 0.002)
    assert bag.num_weights == 4096 * 32 + 32 * 32 + 32 + 64 + 2
    assert bag.work() == 32 * 32 + 32 * 32 + 64


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "RNN"}, "architecture is 'RNN'; allowed: MLP, CNN, BAG"),
        ({"data": "mnist"}, "data is 'mnist'; allowed: digits, words"),
        ({"data": "words"}, "MLP trains on digits, not on words"),
        ({"architecture": "CNN", "hidden": (8,)}, "hidden has 1 widths; allowed for CNN: 2 to 6"),
        ({"hidden": (0,)}, "width of hidden is 0; allowed: 1 to 4096"),
        ({"hidden": (4096, 4096)}, "17,088,522 weights; allowed: 1,000,000"),
        ({"batch_size": 0}, "batch_size is 0; allowed: 1 to 1024"),
        (
            {"hidden": (900, 900), "batch_size": 160},
            "takes 140,256,000 multiply-accumulates; allowed: 134,217,728; take a smaller batch_size",
        ),
        (
            {"architecture": "CNN", "hidden": (4096, 1), "batch_size": 8},
            "takes 2,097,360 numbers between its layers; allowed: 2,097,152",
        ),
        (
            {"architecture": "CNN", "hidden": (4096, 16), "batch_size": 1024},
            "takes .* allowed",
        ),
        ({"tau": float("nan")}, "tau is nan; allowed"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; allowed"),
    ],
)
def test_a_task_that_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    """The sentence names the field, its value and what is allowed."""
    DIGITS.check()
    with pytest.raises(InvalidTask, match=said):
        msgspec.structs.replace(DIGITS, **change).check()


def test_a_private_task_that_takes_too_long_is_refused() -> None:
    """Each sample has a gradient of its own, of all weights, however little of them it uses; that is paid for, too."""
    many = DataShape(features=3, num_classes=2, num_train=2_000, side=0, num_buckets=99_000)
    plain = TaskSpec(bytes(32), "BAG", (10,), OWN, 1024, 3.0, 0.002, many)
    plain.check()
    assert plain.paid_work == plain.work() < 2**20
    private = msgspec.structs.replace(plain, noise=Noise(1.0, 1.0, 4))
    with pytest.raises(InvalidTask, match="8,192 at most, have gradients of 8,110,260,224 numbers"):
        private.check()
    small = msgspec.structs.replace(private, batch_size=16)
    small.check()
    assert small.paid_work == 16 * 990_022
    assert msgspec.structs.replace(DIGITS, noise=small.noise).paid_work == 64 * 17_226


def test_sizes_follow_from_the_shape_of_a_clients_data() -> None:
    """A side that is odd loses a row and a column where it is halved."""
    cnn = TaskSpec(bytes(32), "CNN", (4, 5), OWN, 2, 0.3, 0.02, PICTURES)
    assert cnn.num_weights == 9 * 4 + 4 + 9 * 4 * 5 + 5 + 5 * 9 * 3 + 3
    assert cnn.sample_bytes() == 4 * 49 * 2
    bag = TaskSpec(bytes(32), "BAG", (6,), OWN, 1, 3.0, 0.002, PIECES)
    assert bag.num_weights == 50 * 6 + 6 * 2 + 2
    for one in (cnn, bag):
        one.check()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": "digits"}, "digits are built in"),
        ({"architecture": "BAG"}, "BAG trains on whole numbers below num_buckets"),
        ({"shape": PIECES}, "MLP trains on float32"),
        ({"architecture": "CNN", "shape": DataShape(9, 2, 9, 0, 0)}, "CNN trains on images"),
        ({"shape": DataShape(48, 3, 600, 7, 0)}, "side is 7; allowed"),
        ({"shape": DataShape(49, 3, 600, 7, 9)}, "side is 7; allowed"),
        ({"shape": DataShape(60_000, 3, 300, 0, 0)}, "300 samples .* allowed: 67,108,864 bytes"),
        ({"architecture": "BAG", "shape": DataShape(5, 2, 9, 0, 1)}, "1 buckets; allowed"),
        (
            {"shape": DataShape(40_000, 2, 9, 0, 0), "hidden": ()},
            "takes 2,560,000 numbers of samples; allowed: 2,097,152",
        ),
    ],
)
def test_a_model_that_does_not_fit_a_clients_data_is_refused(
    change: dict[str, Any], said: str
) -> None:
    """By their shape alone: who checks a block has no data."""
    good = TaskSpec(bytes(32), "MLP", (8,), OWN, 64, 0.3, 0.02, PICTURES)
    good.check()
    with pytest.raises(InvalidTask, match=said):
        msgspec.structs.replace(good, **change).check()
