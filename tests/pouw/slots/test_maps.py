"""Maps have one spelling, and whatever else a peer sends is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots.maps import SignMap, cap_of, decode_map, encode_map

NUM_WEIGHTS = 2**33


@st.composite
def _maps(draw: st.DrawFn) -> SignMap:
    indices = draw(st.lists(st.integers(0, NUM_WEIGHTS - 1), unique=True, max_size=40))
    signs = draw(st.lists(st.sampled_from((1, -1)), min_size=len(indices), max_size=len(indices)))
    return SignMap(np.array(sorted(indices), dtype=np.int64), np.array(signs, dtype=np.int8))


@given(_maps())
def test_a_map_comes_back_as_it_was(entries: SignMap) -> None:
    """Any weights and signs survive their bytes."""
    found = decode_map(encode_map(*entries), NUM_WEIGHTS, 64)
    assert found.indices.tolist() == entries.indices.tolist()
    assert found.signs.tolist() == entries.signs.tolist()


@given(st.binary(max_size=24))
def test_whatever_is_taken_has_one_spelling(data: bytes) -> None:
    """Bytes are refused with our error, or they are what encoding their entries gives."""
    try:
        entries = decode_map(data, NUM_WEIGHTS, 64)
    except SlotError:
        return
    assert encode_map(*entries) == data
    assert (np.diff(entries.indices) > 0).all()


@pytest.mark.parametrize(
    ("indices", "signs", "data"),
    [
        ([], [], ""),
        ([0], [1], "00"),
        ([0, 1], [-1, 1], "0100"),
        ([63, 64], [-1, -1], "7f01"),
        ([64], [1], "8001"),
        ([17_225], [-1], "938d02"),
    ],
)
def test_bytes_of_maps_are_these(indices: list[int], signs: list[int], data: str) -> None:
    """Gaps and signs by hand: low seven bits first, the sign in the lowest."""
    assert (
        encode_map(np.array(indices, dtype=np.int64), np.array(signs, dtype=np.int8)).hex() == data
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("80", "end within an entry"),
        ("0080", "end within an entry"),
        ("8000", "longer than it has to be"),
        ("808080808001", "longer than 5 bytes"),
        ("ffffffff7f", "it names weight"),
        ("8402", "it names weight 130 of 130"),
        ("00" * 65, "65 entries; allowed: 64"),
    ],
)
def test_other_bytes_are_refused(data: str, said: str) -> None:
    """Cut, too long, out of range, over the cap: each with its sentence."""
    with pytest.raises(SlotError, match=said):
        decode_map(bytes.fromhex(data), 130, 64)


def test_the_cap_is_a_fiftieth() -> None:
    """2 % of the weights; small models have 64."""
    assert (cap_of(10), cap_of(17_226), cap_of(1_000_000)) == (64, 344, 20_000)
