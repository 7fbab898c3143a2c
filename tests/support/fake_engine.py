"""An engine in memory: distances by a formula, at a pace that the test sets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from typing_extensions import override

from pocqueue.engine.base import Engine, check_batch
from pocqueue.poc.batch import Batch
from tests.support.factories import make_info


def distance_of(nonce: int) -> float:
    """Return the distance of a nonce: spread evenly over [0, 2), about half of them below 1."""
    return (nonce * 2654435761 % 2**32) / 2**31


def valid_below(r_target: float, nonces: Sequence[int]) -> list[int]:
    """Return those of the nonces that are valid."""
    return [nonce for nonce in nonces if distance_of(nonce) < r_target]


class FakeEngine(Engine):
    """Notes each batch, and whether two ever ran at once.

    Args:
        value: of a nonce; by default its distance.
        on_batch: called inside each forward pass with its number, from 1 on. A test waits, stops
            the round, moves the clock or raises in there.
    """

    def __init__(
        self,
        value: Callable[[int], Any] = distance_of,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.info = make_info()
        self.on_batch = on_batch
        self.batches: list[list[int]] = []
        self.upcoming: list[Batch | None] = []
        self.overlapped = False
        self.closed = False
        self._value = value
        self._inside = threading.Lock()

    @override
    def values(self, batch: Batch, upcoming: Batch | None = None) -> list[Any]:
        check_batch(self.info, batch)
        if not self._inside.acquire(blocking=False):
            self.overlapped = True
            raise AssertionError("two forward passes at once")
        try:
            self.batches.append(list(batch.nonces))
            self.upcoming.append(upcoming)
            self.on_batch(len(self.batches))
            return [self._value(nonce) for nonce in batch.nonces]
        finally:
            self._inside.release()

    @override
    def warm_up(self, batch_size: int, seq_len: int) -> None:
        """Nothing is slow here."""

    @override
    def close(self) -> None:
        self.closed = True
