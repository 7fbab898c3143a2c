"""What one forward pass computes: nonces of one block and key, the shape of the pass, and the proof scheme."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from pocqueue.poc.nonces import split

if TYPE_CHECKING:
    from pocqueue.poc.scheme import ProofSearch


@dataclass(frozen=True, slots=True)
class Batch:
    """The nonces of one forward pass, the shape that it has, and how its values are computed."""

    block_hash: str
    public_key: str
    nonces: tuple[int, ...]  #: at most `batch_size` of them
    batch_size: int
    seq_len: int
    scheme: str = "distance"  #: proof scheme, by which engines look up how values are computed
    options: tuple[
        tuple[str, Any], ...
    ] = ()  #: what that needs to know, as pairs of name and value

    @classmethod
    def of(cls, search: ProofSearch, nonces: Sequence[int]) -> Batch:
        """Return the batch of these nonces in the shape of a search."""
        return cls(
            search.block_hash,
            search.public_key,
            tuple(nonces),
            search.pass_size,
            search.seq_len,
            search.scheme,
            search.options,
        )

    @classmethod
    def warm_up(cls, batch_size: int, seq_len: int) -> Batch:
        """Return a batch of one nonce for a pass whose result nobody wants."""
        return cls("warm-up", "warm-up", (0,), batch_size, seq_len)

    @classmethod
    def from_wire(cls, values: Sequence[Any]) -> Batch:
        """Return the batch that `to_wire` described."""
        block_hash, public_key, nonces, batch_size, seq_len, scheme, options = values
        pairs = tuple((name, value) for name, value in options)
        return cls(block_hash, public_key, tuple(nonces), batch_size, seq_len, scheme, pairs)

    def to_wire(self) -> list[Any]:
        """Return the fields in their order, as plain values for a process elsewhere."""
        return [getattr(self, field.name) for field in fields(self)]

    def padded(self) -> Batch:
        """Return the batch filled up to its size with its last nonce, whose results nobody reads."""
        missing = self.batch_size - len(self.nonces)
        return replace(self, nonces=self.nonces + self.nonces[-1:] * missing)


def batches_of(search: ProofSearch, nonces: Sequence[int]) -> Iterator[Batch]:
    """Cut nonces into batches of a search's shape, in order; the last one holds what is left.

    Raises:
        InvalidRound: at the call, for a batch size below 1.
    """
    return (Batch.of(search, piece) for piece in split(nonces, search.pass_size))
