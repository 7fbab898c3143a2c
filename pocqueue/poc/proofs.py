"""Nonces and what was computed for each, as they move through worker, store, pages and files.

A *value* is whatever the round's proof scheme computes for a nonce, in a form that JSON holds. Nothing
here looks into one; see `scheme.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from pocqueue.errors import InvalidRound

if TYPE_CHECKING:
    from pocqueue.poc.search import SearchBody


@dataclass(slots=True)
class Proofs:
    """Nonces and their values, in one order."""

    nonces: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, Any]]) -> Self:
        """Return the proofs of (nonce, value) pairs."""
        nonces, values = [], []
        for nonce, value in pairs:
            nonces.append(nonce)
            values.append(value)
        return cls(nonces, values)

    @classmethod
    def joined(cls, parts: Iterable[Proofs]) -> Self:
        """Return several proofs as one."""
        return cls.of(pair for part in parts for pair in part)

    def __len__(self) -> int:
        return len(self.nonces)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Return an iterator over (nonce, value) pairs."""
        return zip(self.nonces, self.values, strict=True)


@dataclass(frozen=True, slots=True)
class ReceivedBatch:
    """A batch as somebody else sent it: nothing in it is checked but its shape."""

    public_key: str
    block_hash: str
    block_height: int
    node_id: int
    proofs: Proofs

    @classmethod
    def of(cls, search: SearchBody, proofs: Proofs) -> Self:
        """Return a batch of our own search as if it had been received."""
        return cls(
            search.public_key, search.block_hash, search.block_height, search.node_id, proofs
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What recomputing somebody's proofs tells; see `ProofScheme.judge`."""

    proofs: Proofs  #: as they were received
    computed: list[Any]  #: our value of each nonce
    invalid: list[int]  #: the nonces that fail, in order
    probability_honest: float  #: chance of an honest node to have that many invalid ones, or more
    fraud_detected: bool  #: that chance is below the round's fraud_threshold

    @property
    def n_invalid(self) -> int:
        return len(self.invalid)


def check_length(field: str, values: list[Any], nonces: list[int], noun: str) -> None:
    """Refuse a list of values that does not pair with its nonces.

    Raises:
        InvalidRound: the lengths differ; the field is the list's name.
    """
    if len(values) != len(nonces):
        raise InvalidRound(
            field,
            f"a list of {len(values)}",
            f"one {noun} for each nonce, of which there are {len(nonces)}",
        )
