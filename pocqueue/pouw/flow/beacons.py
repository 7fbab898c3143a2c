"""The shares of one slot's beacon, until they make it."""

from __future__ import annotations

from pocqueue.pouw.chain.records import Committee
from pocqueue.pouw.committee.seats import share_key
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots import bls


class BeaconShares:
    """What members of a committee have given to the beacon of one turn.

    Args:
        committee: whose beacon.

    Attributes:
        liars: places of members whose share was wrong.
    """

    def __init__(self, committee: Committee) -> None:
        self._committee = committee
        self._shares: dict[int, bytes] = {}
        self.liars: set[int] = set()

    def add(self, place: int, share: bytes) -> bool:
        """Keep a member's first share; False: there is one, or it has given a wrong one."""
        if place in self._shares or place in self.liars:
            return False
        self._shares[place] = share
        return True

    def combined(self, digest: bytes) -> bytes | None:
        """Return the beacon; None: more shares are needed.

        They are combined first, and looked at one by one only if that fails.

        Args:
            digest: `beacon_digest` of the slot.
        """
        committee = self._committee
        while len(self._shares) >= committee.threshold:
            chosen = dict(list(self._shares.items())[: committee.threshold])
            try:
                beacon = bls.combine(
                    {committee.numbers[place]: one for place, one in chosen.items()}
                )
            except SlotError:
                beacon = bytes(bls.SIGNATURE_BYTES)
            if bls.verify(committee.group_key, digest, beacon):
                return beacon
            wrong = [
                place
                for place, share in chosen.items()
                if not bls.verify(share_key(committee, place), digest, share)
            ]
            self.liars.update(wrong)
            for place in wrong:
                del self._shares[place]
            assert wrong, "right shares make a wrong beacon"
        return None
