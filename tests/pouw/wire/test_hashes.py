"""Merkle trees: each leaf has a path to the root, and nothing else has."""

from __future__ import annotations

import hashlib

import pytest

from pocqueue.pouw.wire.hashes import ZERO, merkle_path, merkle_root, root_of_path, tagged

_LEAVES = [hashlib.sha256(bytes([i])).digest() for i in range(13)]


@pytest.mark.parametrize("count", range(1, 14))
def test_every_leaf_has_a_path_to_the_root(count: int) -> None:
    """For each size and place; and that path leads nowhere from another place or leaf."""
    leaves = _LEAVES[:count]
    root = merkle_root(leaves)
    for index, leaf in enumerate(leaves):
        path = merkle_path(leaves, index)
        assert root_of_path(leaf, index, count, path) == root
        assert root_of_path(tagged("other"), index, count, path) != root
        assert root_of_path(leaf, index, count, (*path, ZERO)) is None
        if path:
            assert root_of_path(leaf, index, count, path[:-1]) is None
        if count > 1:
            assert root_of_path(leaf, (index + 1) % count, count, path) != root


def test_no_list_has_the_root_of_another() -> None:
    """A doubled last leaf, a subtree's node as a leaf, and the empty list."""
    three = _LEAVES[:3]
    assert merkle_root(three) != merkle_root([*three, three[-1]])
    assert merkle_root([merkle_root(_LEAVES[:2])]) != merkle_root(_LEAVES[:2])
    assert merkle_root([]) == ZERO


def test_an_index_outside_is_no_place() -> None:
    """Whatever the path."""
    assert root_of_path(_LEAVES[0], 3, 3, ()) is None
    assert root_of_path(_LEAVES[0], -1, 3, ()) is None
