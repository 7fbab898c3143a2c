"""What is kept of the pages of a search, and what in them cannot be true. Without an engine."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass

from pocqueue.node.round import NodeRound
from pocqueue.node.sources import Page
from pocqueue.poc.proofs import Proofs, ReceivedBatch

#: Held while nonces are added: pages of two searches of a round may be looked at in two threads.
_ADDING = threading.Lock()


class Fraud(Exception):
    """What the big node sent cannot be true. Of the node alone: the follower takes it."""


#: Fewer nonces than these say nothing about how far a round is searched.
_FEW = 32


def first_unsearched(node_round: NodeRound, kept: Collection[int]) -> int:
    """Return the index from which on a round is not searched, as far as the nonces tell that were kept of it.

    Args:
        kept: by whatever search of the round. A big node chose them: the largest counts up to three times the
            middle one, and if that leaves less than half of all nonces they count not at all.
    """
    with _ADDING:
        nonces = sorted(kept)
    if len(nonces) < _FEW:
        return 0
    node, count = node_round.stride
    middle, largest, last = (
        (nonce - node) // count
        for nonce in (nonces[len(nonces) // 2], nonces[-1], node_round.proof.max_nonce)
    )
    found = min(largest, 3 * middle) + 1
    return found if found < last // 2 else 0


@dataclass(frozen=True, slots=True)
class PageCheck:
    """Checks the pages of one search."""

    round: NodeRound
    #: The pages are of this node's own GPUs, and their claims are not checked.
    is_trusted: bool
    #: Nonces that were kept, by whatever search of the round; such searches share it.
    seen: set[int]

    def keep_new(self, page: Page) -> list[Proofs]:
        """Return the page's batches without nonces that came before, and without empty batches.

        Raises:
            Fraud: one of them cannot be right.
        """
        kept_batches = []
        for batch in page.batches:
            if not self.is_trusted:
                self._check(batch)
            kept = Proofs()
            with _ADDING:
                for nonce, value in batch.proofs:
                    if nonce not in self.seen:
                        self.seen.add(nonce)
                        kept.nonces.append(nonce)
                        kept.values.append(value)
            if kept.nonces:
                kept_batches.append(kept)
        return kept_batches

    def forget(self, batches: Collection[Proofs]) -> None:
        """Forget batches of `keep_new` that were not kept after all."""
        self.seen.difference_update(nonce for batch in batches for nonce in batch.nonces)

    def _check(self, batch: ReceivedBatch) -> None:
        ours, proof = self.round, self.round.proof
        if any(
            getattr(batch, name) != getattr(ours, name)
            for name in ("public_key", "block_hash", "block_height")
        ):
            raise Fraud(f"a batch is of another round (block {batch.block_hash[:80]!r})")
        if len(batch.proofs.nonces) != len(batch.proofs.values):
            raise Fraud(f"a batch has not one {proof.noun} for each nonce")
        node, count = ours.stride
        for nonce, value in batch.proofs:
            if not 0 <= nonce <= proof.max_nonce or nonce % count != node:
                raise Fraud(f"nonce {str(nonce)[:40]} is not one of node {node} of {count}")
            if reason := proof.refusal(value):
                raise Fraud(f"nonce {nonce} {reason}")
