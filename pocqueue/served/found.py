"""What a round on a served model has come to: its counters, and its valid nonces in compact arrays.

The n-th valid nonce of a round, counted from 0, keeps its number: a client that has read so many asks for
those from that number on.
"""

from __future__ import annotations

import contextlib
from array import array
from collections import deque
from collections.abc import MutableSequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pocqueue.errors import InvalidRound
from pocqueue.poc.batch import Batch
from pocqueue.poc.config import PoCStats
from pocqueue.poc.proofs import Proofs
from pocqueue.poc.scheme import ProofSearch

#: Valid nonces of one block of arrays; writing one as JSON takes about 10 ms.
BLOCK = 16_384
#: Blocks that are kept, the latest: 8.4 million valid nonces, of 16 bytes each with their distances.
MAX_BLOCKS = 512


class Block(NamedTuple):
    """Valid nonces and their values, in the order found."""

    nonces: array[int]
    values: MutableSequence[Any]  #: an array, if they are numbers


@dataclass(eq=False)
class Found:
    """What a round has come to."""

    value_type: Any = float  #: of the round's proof scheme
    keeps: bool = (
        True  #: whether valid nonces are kept to be asked for; else they are counted alone
    )
    next_index: int = 0
    stats: PoCStats = field(default_factory=PoCStats)
    max_blocks: int = MAX_BLOCKS

    def __post_init__(self) -> None:
        self._blocks: deque[Block] = deque(maxlen=self.max_blocks)

    def take(self, asked: ProofSearch) -> tuple[Batch, Batch | None]:
        """Take the nonces of the next batch; return it, and the one behind it if there is one.

        Raises:
            InvalidRound: the node's nonces are used up: the scheme has no larger ones.
        """
        batch = self._batch(asked, self.next_index)
        self.next_index += len(batch.nonces)
        with contextlib.suppress(InvalidRound):
            return batch, self._batch(asked, self.next_index)
        return batch, None

    def _batch(self, asked: ProofSearch, start: int) -> Batch:
        first, step = asked.stride
        most = (asked.proof.max_nonce - first) // step + 1
        if start >= most:
            allowed = f"up to {asked.proof.max_nonce}; all that this node has are searched"
            raise InvalidRound("nonce", first + start * step, allowed)
        return Batch.of(asked, asked.nonces(start, min(start + asked.batch_size, most)))

    def keep(self, valid: Proofs) -> None:
        """Keep the valid nonces of a batch."""
        self.stats.total_valid += len(valid)
        if not self.keeps:
            return
        if not self._blocks or len(self._blocks[-1].nonces) >= BLOCK:
            values: MutableSequence[Any] = array("d") if self.value_type is float else []
            self._blocks.append(Block(array("q"), values))
        self._blocks[-1].nonces.extend(valid.nonces)
        self._blocks[-1].values.extend(valid.values)

    def valid(self, since: int = 0) -> tuple[int, list[Block]]:
        """Return the valid nonces from a number on, as they are now.

        Args:
            since: number of the first that is wanted; >= 0.

        Returns:
            The number of the first, which is larger if that one is not kept any more; and copies of all.
        """
        total = self.stats.total_valid
        first = min(max(since, total - sum(len(block.nonces) for block in self._blocks)), total)
        found: list[Block] = []
        left = total - first
        for block in reversed(self._blocks):
            if left <= 0:
                break
            start = max(0, len(block.nonces) - left)
            found.append(Block(block.nonces[start:], block.values[start:]))
            left -= len(block.nonces) - start
        return first, found[::-1]
