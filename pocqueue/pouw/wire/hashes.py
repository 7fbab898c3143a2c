"""Hashes with a domain each, and Merkle trees over them.

``H(tag, b) = SHA-256("pocqueue.pouw." + tag + ".v1" ‖ 00 ‖ b)``: no bytes that mean one thing hash like
bytes that mean another. A tree's leaf is ``SHA-256(00 ‖ leaf)``, a node ``SHA-256(01 ‖ left ‖ right)``, an
odd node moves up as it is, and the empty tree is 32 zero bytes; so no list has the root of another one
(cf. CVE-2012-2459, where the last leaf could be doubled).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

#: The root of no leaves, and the parent of the first block.
ZERO = bytes(32)


def tagged(tag: str, *parts: bytes) -> bytes:
    """Return H(tag, the parts in a row), 32 bytes."""
    return begun(tag, *parts).digest()


def begun(tag: str, *parts: bytes) -> hashlib._Hash:
    """Return H(tag, ...) that begins with these parts; a copy of it can be updated with what follows, as often as one likes."""
    digest = hashlib.sha256(b"pocqueue.pouw." + tag.encode("ascii") + b".v1\x00")
    for part in parts:
        digest.update(part)
    return digest


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Return the root of a list of 32-byte ids, in their order."""
    if not leaves:
        return ZERO
    level = [_leaf(leaf) for leaf in leaves]
    while len(level) > 1:
        level = _above(level)
    return level[0]


def merkle_path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the hashes beside the way from leaf `index` to the root, from below.

    A level on which the node has nobody beside it has no entry.
    """
    level, path = [_leaf(leaf) for leaf in leaves], []
    while len(level) > 1:
        beside = index ^ 1
        if beside < len(level):
            path.append(level[beside])
        level, index = _above(level), index // 2
    return tuple(path)


def root_of_path(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes | None:
    """Return the root that a path leads to from a leaf; None if no list of `count` has such a path."""
    if not 0 <= index < count:
        return None
    node, left = _leaf(leaf), list(path)
    while count > 1:
        if index ^ 1 < count:
            if not left:
                return None
            beside = left.pop(0)
            node = _node(beside, node) if index & 1 else _node(node, beside)
        index, count = index // 2, (count + 1) // 2
    return None if left else node


def _leaf(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + leaf).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _above(level: list[bytes]) -> list[bytes]:
    pairs = [_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return pairs + level[len(pairs) * 2 :]
