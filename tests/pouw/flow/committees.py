"""Committees whose key a dealer whom all trust has made, so that tests need no key generation on a chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pocqueue.pouw.chain.records import Committee
from pocqueue.pouw.committee.seats import FindSeat, Seat
from pocqueue.pouw.slots import bls


class Dealt(NamedTuple):
    """A committee with what its members keep to themselves."""

    committee: Committee
    shares: tuple[bls.SecretKey, ...]

    def seat(self, account: bytes) -> FindSeat:
        """Return what finds an account's seat in this committee."""

        def find(committee: Committee) -> Seat | None:
            if committee != self.committee or account not in committee.members:
                return None
            place = committee.members.index(account)
            return Seat(committee, place, self.shares[place])

        return find


def dealt(
    members: Sequence[bytes], tickets: Sequence[bytes] = (), *, epoch: int = 0, seed: int = 0
) -> Dealt:
    """Return a committee of these accounts; the coefficients of its polynomial follow from the seed."""
    n = len(members)
    threshold = (n + (n - 1) // 3) // 2 + 1
    coefficients = [1_000_003 * (seed + 1) + 7919 * power for power in range(threshold)]
    numbers = tuple(range(1, n + 1))
    values = [
        sum(c * number**power for power, c in enumerate(coefficients)) % bls.ORDER
        for number in numbers
    ]
    shares = tuple(map(bls.SecretKey, values))
    committee = Committee(
        epoch,
        tuple(members),
        bls.SecretKey(coefficients[0]).public_key,
        numbers,
        tuple(share.public_key for share in shares),
        threshold,
        tuple(tickets),
    )
    return Dealt(committee, shares)
