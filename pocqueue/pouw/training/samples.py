"""The built-in data sets, those of clients, and which samples an iteration is made of.

``data/NOTICE.md`` says where they come from. Splits are fixed, for everybody: of seven rows in a row the first
five are for training, the sixth validates, the seventh tests. All parts are public; "test" means only that
nobody is asked to train on it.

| data | rows | train | val | test |
| --- | --- | --- | --- | --- |
| digits | 1,797 | 1,285 | 256 | 256 |
| words | 7,209 | 5,150 | 1,030 | 1,029 |

Rows of words stand in the order of the alphabet, so what is asked of a model there is the sign of a word
whose relatives it may have seen; of words with no relative it learns next to nothing (0.65 at 0.61 for
the commonest answer, measured with blocks of 16 rows).
"""

from __future__ import annotations

import functools
import hashlib
import lzma
import zlib
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pocqueue.pouw.data.parts import TESTING, Part, check_fit, read
from pocqueue.pouw.errors import DataError, TrainingError
from pocqueue.pouw.slots.task import DATA, TaskSpec
from pocqueue.pouw.wire.hashes import tagged

_CYCLE = 7  # rows, of which 5 train
_PIXELS = 64
_BRIGHTEST = 16
#: Lengths of the pieces of a word, with its ends marked.
_PIECES = (3, 4, 5)
#: Clients' data that are kept in memory.
_OWN = 2
#: Multiply-accumulates of a look at all of a part: some seconds.
MAX_COUNT_WORK = 1 << 34


class Samples(NamedTuple):
    """A data set in its parts."""

    train: Part
    val: Part
    test: Part


@functools.cache
def load(name: str) -> Samples:
    """Return a built-in data set; `slots.task.DATA` has their names and shapes.

    Raises:
        TrainingError: there is none of that name.
    """
    if name == "digits":
        return _split(*_digits())
    if name == "words":
        return _split(*_words())
    raise TrainingError(f"data {name} are not built in.")


@functools.lru_cache(_OWN)
def own(path: Path, task: TaskSpec) -> Samples:
    """Return a client's own data out of their file. There is no test part in it: the one that validates stands for it.

    Raises:
        DataError: the file is not what the task's order says, or has more than can be counted.
    """
    assert task.shape is not None
    file = read(path)
    check_fit(file, task.shape)
    check_count(task, file.parts["val"])
    return Samples(file.parts["train"], file.parts["val"], file.parts["val"])


def own_test(path: Path, task: TaskSpec) -> Part:
    """Return the hidden test part of a task, which its client has shown.

    Raises:
        DataError: as `own`.
    """
    file = read(path, TESTING)
    check_fit(file, task.data_shape)
    check_count(task, file.parts["test"])
    return file.parts["test"]


def check_count(task: TaskSpec, part: Part) -> None:
    """Raise if a model takes too long to be tried on all of a part.

    Raises:
        DataError: it does.
    """
    work = task.work() // task.batch_size * len(part.y)
    if work > MAX_COUNT_WORK:
        raise DataError(
            f"{len(part.y):,} samples to look at take {work:,} multiply-accumulates; allowed: {MAX_COUNT_WORK:,}; "
            "take fewer, or a smaller model."
        )


def sample_rows(
    task: TaskSpec, slot: int, miner: bytes, lane: int, parts: int
) -> npt.NDArray[np.int64]:
    """Return which rows of the training part an iteration is made of: nobody's choice.

    Little-endian numbers of 4 bytes from SHAKE-256(H("sample", task ‖ slot ‖ miner ‖ lane)), each modulo the rows
    there are; slot has 8 bytes in there, little-endian, and lane 1.

    Returns:
        int64 ``[batch_size * parts]``.
    """
    named = task.id + slot.to_bytes(8, "little") + miner + lane.to_bytes(1, "little")
    stream = hashlib.shake_256(tagged("sample", named)).digest(4 * task.batch_size * parts)
    return np.frombuffer(stream, dtype="<u4").astype(np.int64) % task.data_shape.num_train


def _split(x: npt.NDArray[Any], y: npt.NDArray[np.int64]) -> Samples:
    place = np.arange(len(y)) % _CYCLE
    parts = (place < _CYCLE - 2, place == _CYCLE - 2, place == _CYCLE - 1)
    return Samples(*(Part(x[part], y[part]) for part in parts))


def _digits() -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    rows = np.frombuffer(_file("digits.xz"), dtype=np.uint8).reshape(-1, _PIXELS + 1)
    return rows[:, :_PIXELS].astype(np.float32) / _BRIGHTEST, rows[:, _PIXELS].astype(np.int64)


def _words() -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    lines = _file("words.xz").decode("ascii").splitlines()
    shape = DATA["words"]
    x = np.zeros((len(lines), shape.features), dtype=np.int64)
    for row, line in zip(x, lines, strict=True):
        pieces = _buckets(line[1:], shape.num_buckets)[: shape.features]
        row[: len(pieces)] = pieces
    return x, np.array([line[0] == "+" for line in lines], dtype=np.int64)


def _buckets(word: str, num_buckets: int) -> list[int]:
    """Return the buckets of a word's pieces, from 1: 0 stands for no piece."""
    marked = f"<{word}>".encode("ascii")
    return [
        1 + zlib.crc32(marked[at : at + length]) % (num_buckets - 1)
        for length in _PIECES
        for at in range(len(marked) - length + 1)
    ]


def _file(name: str) -> bytes:
    folder = resources.files("pocqueue.pouw.training") / "data"
    return lzma.decompress((folder / name).read_bytes())
