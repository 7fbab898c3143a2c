"""What is in a client's file: good ones are read whole, of all others it is said what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from safetensors.numpy import save

from pocqueue.pouw.data import parts
from pocqueue.pouw.data.parts import TESTING, check_fit, read
from pocqueue.pouw.errors import DataError
from pocqueue.pouw.wire.data import MAX_DATA_BYTES, DataShape
from tests.pouw.data.files import (
    Tensors,
    entry,
    hidden,
    images,
    pieces,
    vectors,
    with_header,
    write,
)

PAIR = {"x_test": entry("F32", [2, 3], 0, 24), "y_test": entry("U8", [2], 24, 26)}
BODY = bytes(26)


def _refused(path: Path, data: bytes, kinds: tuple[str, ...] = TESTING) -> str:
    path.write_bytes(data)
    with pytest.raises(DataError) as raised:
        read(path, kinds)
    return str(raised.value)


@pytest.mark.parametrize(
    ("tensors", "shape"),
    [
        (vectors(), DataShape(6, 3, 30, 0, 0)),
        (images(), DataShape(16, 3, 30, 4, 0)),
        (pieces(), DataShape(5, 2, 20, 0, 8)),
    ],
)
def test_a_file_is_read_as_it_was_written(
    tmp_path: Path, tensors: Tensors, shape: DataShape
) -> None:
    """Its shape follows from it, and it fits that."""
    file = read(write(tmp_path / "own.safetensors", tensors))
    assert file.shape == shape
    check_fit(file, shape)
    for name, part in file.parts.items():
        rows = len(tensors[f"y_{name}"])
        assert np.array_equal(part.x, tensors[f"x_{name}"].reshape(rows, -1))
        assert np.array_equal(part.y, tensors[f"y_{name}"])
        assert part.x.dtype == (np.int32 if shape.num_buckets else np.float32)
        assert part.x.flags.aligned
    assert file.parts["val"].majority == np.bincount(tensors["y_val"]).max()


def test_a_file_for_testing_has_that_part_alone(tmp_path: Path) -> None:
    """Its classes may be fewer than those of the task."""
    path = write(tmp_path / "test.safetensors", hidden(vectors()))
    file = read(path, TESTING)
    assert list(file.parts) == ["test"]
    check_fit(file, DataShape(6, 4, 999, 0, 0))
    with pytest.raises(DataError, match="it has x_test, y_test; allowed: x_train, y_train, x_val"):
        read(path)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (DataShape(7, 3, 30, 0, 0), "samples of train have 6 numbers; 7 are ordered"),
        (DataShape(6, 2, 30, 0, 0), "y_train has 2; 2 classes are ordered"),
        (DataShape(6, 3, 31, 0, 0), "30 samples to train on; 31 are ordered"),
        (DataShape(6, 3, 30, 0, 9), "x is F32; I32 or I64 is ordered"),
    ],
)
def test_data_that_are_not_as_ordered_are_refused(
    tmp_path: Path, shape: DataShape, said: str
) -> None:
    """Rules have counted with the order's sizes."""
    file = read(write(tmp_path / "own.safetensors", vectors()))
    with pytest.raises(DataError, match=said):
        check_fit(file, shape)


def test_indices_are_below_the_ordered_buckets(tmp_path: Path) -> None:
    """Nobody looks up a row that an embedding does not have."""
    file = read(write(tmp_path / "own.safetensors", pieces()))
    with pytest.raises(DataError, match="x_train has 7; 7 buckets are ordered"):
        check_fit(file, DataShape(5, 2, 20, 0, 7))
    with pytest.raises(DataError, match="x is whole numbers; F32 is ordered"):
        check_fit(file, DataShape(5, 2, 20, 0, 0))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "has 0 bytes"),
        (b"\x01\x02", "no safetensors file"),
        (with_header(PAIR, b"", length=400), "no safetensors file"),
        (with_header(PAIR, BODY, length=2**63), "no safetensors file"),
        (with_header(b"{" * 9000, BODY), "its header is none"),
        (with_header(b'{"a": ' + b"[" * 9000, BODY), "its header is none"),
        (with_header(b"\xff\xfe{}", BODY), "its header is none"),
        (with_header([1, 2], BODY), "its header is none"),
        (with_header({"x_test": {"dtype": "F32"}}, BODY), "its header is none"),
        (with_header(PAIR | {"x_test": entry("F32", [-2, -3], 0, 24)}, BODY), "its header is none"),
        (with_header(PAIR | {"more": entry("U8", [0], 26, 26)}, BODY), "it has more, x_test"),
        (with_header({}, BODY), "it has nothing; allowed"),
        (with_header(PAIR, BODY + b"!"), "1 bytes behind its tensors"),
        (with_header(PAIR, BODY[:-1]), "does not lie where its sizes say"),
        (
            with_header(PAIR | {"y_test": entry("U8", [2], 22, 24)}, BODY[:-2]),
            "y_test does not lie where",
        ),
        (
            with_header(PAIR | {"x_test": entry("F32", [2**40, 2**40], 0, 24)}, BODY),
            "x_test does not lie where",
        ),
        (with_header(PAIR | {"x_test": entry("BF16", [4, 3], 0, 24)}, BODY), "x_test is BF16"),
        (with_header(PAIR | {"x_test": entry("U8", [24, 1], 0, 24)}, BODY), "x_test is U8"),
        (with_header(PAIR | {"x_test": entry("F32", [6], 0, 24)}, BODY), r"x_test is \[6\]"),
        (with_header(PAIR | {"x_test": entry("F32", [1, 2, 3], 0, 24)}, BODY), "x_test is"),
        (
            with_header(
                {"x_test": entry("F32", [2, 0], 0, 0), "y_test": entry("U8", [2], 0, 2)}, b"ab"
            ),
            r"x_test is \[2, 0\]",
        ),
        (
            with_header(
                {"x_test": entry("F32", [0, 3], 0, 0), "y_test": entry("U8", [0], 0, 0)}, b""
            ),
            r"y_test is \[0\]",
        ),
        (
            with_header(PAIR | {"x_test": entry("F32", [3, 2], 0, 24)}, BODY),
            r"y_test is \[2\] beside",
        ),
        (
            with_header(PAIR | {"y_test": entry("F32", [2], 24, 32)}, bytes(32)),
            "y_test is F32; allowed",
        ),
    ],
)
def test_what_is_no_file_of_data_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    """With its name and what is wrong with it; nothing else is raised, whatever the bytes are."""
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(DataError, match=said):
        read(path, TESTING)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("x_test", np.float32("nan"), "x_test has numbers that are not finite"),
        ("x_test", np.float32("-inf"), "x_test has numbers that are not finite"),
        ("y_test", np.int64(-1), "y_test has -1; allowed: 0 to 2,147,483,647"),
        ("y_test", np.int64(2**62), "y_test has 4611686018427387904; allowed"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    tmp_path: Path, name: str, value: Any, said: str
) -> None:
    """In the last row as well."""
    tensors = {key: one.copy() for key, one in hidden(vectors()).items()}
    tensors[name][-1] = value
    path = tmp_path / "bad.safetensors"
    assert said in _refused(path, save(tensors))


def test_indices_below_zero_are_refused(tmp_path: Path) -> None:
    """They would look up rows from the end."""
    tensors = hidden(pieces())
    tensors["x_test"][3, 3] = -1
    assert "x_test has -1" in _refused(tmp_path / "bad.safetensors", save(tensors))


def test_parts_are_of_one_kind(tmp_path: Path) -> None:
    """Pictures in one and vectors in another are not."""
    mixed = {**images(), "x_val": images()["x_val"].reshape(-1, 16)}
    said = _refused(tmp_path / "bad.safetensors", save(mixed), parts.TRAINING)
    assert "its parts are not of one kind" in said


def test_a_file_is_64_mib_at_most(tmp_path: Path) -> None:
    """One of 65 is not even read to its end; one that is not there is told as well."""
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.truncate(MAX_DATA_BYTES + 2**20)
    with pytest.raises(DataError, match="allowed for data: 1 to 67,108,864 bytes"):
        read(path)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read(tmp_path / "none")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read(tmp_path)


def test_a_shape_that_no_order_can_have_is_refused(tmp_path: Path) -> None:
    """Indices of a million rows and more."""
    tensors = pieces()
    tensors["x_train"][0, 0] = 2_000_000
    file = read(write(tmp_path / "own.safetensors", tensors))
    with pytest.raises(DataError, match=r"num_buckets are .*2000001"):
        _ = file.shape


GOOD = save(hidden(vectors()))


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    """Return a good file with some bytes changed, cut or put in."""
    data = bytearray(GOOD)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | _mutated())
@example(GOOD)
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    """Nothing but our errors is raised, and what is read has finite numbers and as many classes as samples."""
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(data)
    try:
        part = read(path, TESTING).parts["test"]
    except DataError:
        return
    assert np.isfinite(part.x).all()
    assert len(part.x) == len(part.y) > 0
    assert part.y.min() >= 0
