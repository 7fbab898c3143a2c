"""Nonce arithmetic: nodes never overlap, ranges split without gap, 64 bits are not left."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from pocqueue.errors import InvalidRound
from pocqueue.poc.nonces import (
    MAX_NONCE,
    check_node,
    index_of,
    nonces_of,
    split,
)


def last_index(node_id: int, node_count: int) -> int:
    """Return the highest nonce index of a node, whose nonce is the last to fit 64 bits."""
    return (MAX_NONCE - node_id) // node_count


def nonce_at(index: int, node_id: int, node_count: int) -> int:
    """Return the nonce with this index."""
    [nonce] = nonces_of(index, index + 1, node_id, node_count)
    return nonce


@st.composite
def nodes(draw: st.DrawFn, most: int = MAX_NONCE) -> tuple[int, int]:
    """Draw a (node_id, node_count)."""
    node_count = draw(st.integers(1, 100) | st.integers(1, most))
    return draw(st.integers(0, node_count - 1)), node_count


@given(node=nodes(), data=st.data())
def test_index_and_nonce_are_inverse(node: tuple[int, int], data: st.DataObject) -> None:
    """Every index has one nonce, inside 64 bits, that leads back to it."""
    index = data.draw(st.integers(0, last_index(*node)))
    nonce = nonce_at(index, *node)
    assert nonce == node[0] + index * node[1]
    assert 0 <= nonce <= MAX_NONCE
    assert index_of(nonce, *node) == index


@given(node=nodes())
def test_nothing_lies_past_the_last_index(node: tuple[int, int]) -> None:
    """The last index fits, the next would not and is refused."""
    last = last_index(*node)
    assert nonce_at(last, *node) + node[1] > MAX_NONCE
    with pytest.raises(InvalidRound, match="nonce index"):
        nonce_at(last + 1, *node)


@given(node_count=st.integers(1, 20), num_indices=st.integers(0, 50))
def test_nodes_share_the_nonces(node_count: int, num_indices: int) -> None:
    """Together all nodes have every nonce from 0, each once."""
    nonces = [
        nonce
        for node_id in range(node_count)
        for nonce in nonces_of(0, num_indices, node_id, node_count)
    ]
    assert sorted(nonces) == list(range(num_indices * node_count))


@given(node=nodes(most=2**40), start=st.integers(0, 10**6), length=st.integers(0, 200))
def test_nonces_of_a_range(node: tuple[int, int], start: int, length: int) -> None:
    """A range of indices gives the nonce of each, in order."""
    nonces = nonces_of(start, start + length, *node)
    assert list(nonces) == [nonce_at(i, *node) for i in range(start, start + length)]
    assert len(nonces) == length


def test_nonces_up_to_the_last() -> None:
    """The end of 64 bits can be reached and not passed."""
    last = last_index(1, 3)
    assert list(nonces_of(last, last + 1, 1, 3)) == [nonce_at(last, 1, 3)]
    with pytest.raises(InvalidRound, match="nonce index"):
        nonces_of(last, last + 2, 1, 3)
    assert list(nonces_of(last + 5, last + 5, 1, 3)) == []


@given(
    start=st.integers(0, 2**62),
    length=st.integers(0, 1000),
    size=st.integers(1, 300) | st.just(2**70),
)
def test_batches_cover_all(start: int, length: int, size: int) -> None:
    """They follow one another without gap, and only the last may be short."""
    nonces = range(start, start + length)
    batches = list(split(nonces, size))
    assert [nonce for batch in batches for nonce in batch] == list(nonces)
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(0 < len(batch) <= size for batch in batches)


@pytest.mark.parametrize(
    ("node_id", "node_count", "field"),
    [
        (0, 0, "node_count"),
        (0, -1, "node_count"),
        (0, 2**63, "node_count"),
        (3, 3, "node_id"),
        (-1, 3, "node_id"),
    ],
)
def test_impossible_nodes_are_refused(node_id: int, node_count: int, field: str) -> None:
    """The error names the field."""
    with pytest.raises(InvalidRound) as caught:
        check_node(node_id, node_count)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("nonce", "says"), [(-1, "from 0 to"), (2**63, "from 0 to"), (7, "node 1's")]
)
def test_foreign_nonces_have_no_index(nonce: int, says: str) -> None:
    """A nonce that is not this node's is refused, and the error says whose it is."""
    with pytest.raises(InvalidRound, match=says):
        index_of(nonce, 0, 3)


def test_reversed_ranges_and_empty_batches_are_refused_at_the_call() -> None:
    """The error comes before anybody iterates."""
    with pytest.raises(InvalidRound, match="nonce range start"):
        nonces_of(-1, 3, 0, 1)
    with pytest.raises(InvalidRound, match="nonce range stop"):
        nonces_of(4, 3, 0, 1)
    with pytest.raises(InvalidRound, match="batch_size is 0"):
        split(range(3), 0)
