"""Nonce arithmetic: which numbers belong to which node, range and batch.

Node i of c owns the nonces i, i + c, i + 2c, …; the k-th of them, ``node_id + k * node_count``, has
the *nonce index* k. Indices are what the scheduler hands out, as half-open ranges [start, stop), and
nonces are what goes into the hash and onto the wire. Nonces fit in a signed 64-bit integer, which is
what clients in Go, Redis and JSON readers that care for integers can hold.

Everything here raises `InvalidRound` (a `ValueError`) for a node, index, range, nonce or size that cannot
be or does not fit in 64 bits; the field says which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from pocqueue.errors import InvalidRound

#: Largest nonce there is: 2^63 - 1.
MAX_NONCE = 2**63 - 1

T = TypeVar("T")


def check_node(node_id: int, node_count: int) -> None:
    """Refuse a node that no set of nodes can contain.

    Args:
        node_id: 0 … node_count - 1.
        node_count: 1 … 2^63 - 1.
    """
    if not 1 <= node_count <= MAX_NONCE:
        raise InvalidRound("node_count", node_count, f"a whole number from 1 to {MAX_NONCE}")
    if not 0 <= node_id < node_count:
        allowed = f"a whole number from 0 to node_count - 1 = {node_count - 1}"
        raise InvalidRound("node_id", node_id, allowed)


def index_of(nonce: int, node_id: int, node_count: int) -> int:
    """Return the index of a nonce.

    Raises:
        InvalidRound: the nonce is negative, does not fit 64 bits or belongs to another node, or there
            is no such node.
    """
    check_node(node_id, node_count)
    if not 0 <= nonce <= MAX_NONCE:
        raise InvalidRound("nonce", nonce, f"an integer from 0 to {MAX_NONCE}")
    index, owner = divmod(nonce, node_count)
    if owner != node_id:
        raise InvalidRound(
            "nonce", nonce, f"a nonce of node {node_id} of {node_count}; this one is node {owner}'s"
        )
    return index


def nonces_of(start: int, stop: int, node_id: int, node_count: int) -> range:
    """Return the nonces of the half-open range of indices [start, stop).

    Args:
        start: first nonce index; >= 0.
        stop: one past the last; >= start. ``start == stop`` is an empty range.
        node_id: 0 … node_count - 1.
        node_count: >= 1.

    Returns:
        A `range`, which costs nothing however long it is and has len, slices and `in`.
    """
    check_node(node_id, node_count)
    if start < 0:
        raise InvalidRound("nonce range start", start, "an integer of at least 0")
    if stop < start:
        raise InvalidRound("nonce range stop", stop, f"an integer of at least its start, {start}")
    if start == stop:
        return range(0)
    last = (MAX_NONCE - node_id) // node_count
    if stop - 1 > last:
        raise InvalidRound("nonce index", stop - 1, f"an integer from 0 to {last}")
    return range(node_id + start * node_count, node_id + stop * node_count, node_count)


def split(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut nonces, or what belongs to them, into batches, in order; the last one holds what is left.

    Raises:
        InvalidRound: at the call, not at the first item, for a size below 1.
    """
    if size < 1:
        raise InvalidRound("batch_size", size, "an integer of at least 1")
    return (items[first : first + size] for first in range(0, len(items), size))
