"""A candidate's part of a committee's key: Joint-Feldman.

Each candidate has a secret polynomial of degree t - 1, shows the public keys of its coefficients (commitments), and
gives each candidate, sealed, its value at that one's number. The sum of all polynomials has the group's secret at 0,
which nobody knows, and a member's share at the member's number. All of it follows from the account's key and the chain:
whoever is started again deals the same, and finds its share again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.chain.records import KeyGeneration
from pocqueue.pouw.committee.sealing import SHARE_BYTES, SealKey
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.hashes import tagged
from pocqueue.pouw.wire.transactions import Answer, Deal


class Dealer:
    """What an account deals, opens and answers.

    Args:
        key: of the account.
        network: id of the network.
    """

    def __init__(self, key: SigningKey, network: bytes) -> None:
        #: 33 bytes.
        self.account = bytes.fromhex(key.public_hex)
        self._network = network
        # Known to nobody but the key's owner, and the same after a restart without a file of its own.
        self._secret = _derived(key, b"deal", network)
        self._seal_key = SealKey(_derived(key, b"seal", network))

    @property
    def seal_key(self) -> bytes:
        """Return the X25519 key that shares for this account are sealed to, 32 bytes."""
        return self._seal_key.public_key

    def open(self, sealed: bytes, other: bytes, context: bytes) -> bytes | None:
        """Return what was sealed for this account, as `SealKey.open`."""
        return self._seal_key.open(sealed, other, context)

    def deal(self, generation: KeyGeneration) -> Deal:
        """Return what this account, a candidate, deals."""
        coefficients = self._coefficients(generation)
        return Deal(
            generation=generation.id,
            commitments=tuple(each.public_key for each in coefficients),
            shares=tuple(
                b""
                if candidate.account == self.account
                else self._seal_key.seal(
                    _encoded(_value(coefficients, place + 1)),
                    candidate.seal_key,
                    self._context(generation, self.account, candidate.account),
                )
                for place, candidate in enumerate(generation.candidates)
            ),
        )

    def opened(self, generation: KeyGeneration, dealer: int, deal: Deal) -> int | None:
        """Return the share that a candidate has dealt to this account.

        Args:
            generation: of which this account is a candidate.
            dealer: place of whoever dealt.
            deal: that one's.

        Returns:
            None: it is not the one that the dealer has committed itself to, which is a reason to complain.
        """
        place = self._place(generation)
        if dealer == place:
            return _value(self._coefficients(generation), place + 1)
        other = generation.candidates[dealer]
        context = self._context(generation, other.account, self.account)
        share = self._seal_key.open(deal.shares[place], other.seal_key, context)
        if share is None or not is_share(deal.commitments, place + 1, share):
            return None
        return int.from_bytes(share)

    def answer(self, generation: KeyGeneration, candidate: int) -> Answer:
        """Return the share of the candidate at a place, for all to see."""
        share = _value(self._coefficients(generation), candidate + 1)
        return Answer(generation.id, candidate, _encoded(share))

    def share(
        self,
        generation: KeyGeneration,
        deals: Mapping[int, Deal],
        complaints: Mapping[tuple[int, int], Answer | None],
    ) -> bls.SecretKey | None:
        """Return this account's share of the group's key.

        Args:
            generation: of which it is a candidate.
            deals: of the candidates that are members now, by their places.
            complaints: answers by the places of dealer and candidate.

        Returns:
            None: a share is wrong that it has not complained about in time, or nothing was dealt.
        """
        place, total = self._place(generation), 0
        for dealer, deal in deals.items():
            answer = complaints.get((dealer, place))
            share = (
                self.opened(generation, dealer, deal)
                if answer is None
                else int.from_bytes(answer.share)
            )
            if share is None:
                return None
            total += share
        return bls.SecretKey(total % bls.ORDER) if total % bls.ORDER else None

    def _place(self, generation: KeyGeneration) -> int:
        place = generation.place(self.account)
        assert place is not None, "this account is no candidate"
        return place

    def _coefficients(self, generation: KeyGeneration) -> list[bls.SecretKey]:
        """Return the secrets of the polynomial, the constant first: others for other candidates, and for another try."""
        return [
            bls.SecretKey.from_seed(
                tagged("coefficient", self._secret, self._network, generation.id, bytes([power]))
            )
            for power in range(generation.threshold)
        ]

    def _context(self, generation: KeyGeneration, dealer: bytes, candidate: bytes) -> bytes:
        return tagged("share", self._network, generation.id, dealer, candidate)


def is_share(commitments: Sequence[bytes], number: int, share: bytes) -> bool:
    """Say whether a share, 32 bytes, is the one at a number that a dealer has committed itself to.

    Args:
        commitments: of its coefficients, for which `are_commitments` is True.
        number: of the candidate, 1 and up.
        share: a scalar, big-endian.
    """
    try:
        return bls.SecretKey(int.from_bytes(share)).public_key == bls.value_at(commitments, number)
    except SlotError:
        return False


def are_commitments(commitments: Sequence[bytes], num_candidates: int) -> bool:
    """Say whether these are public keys, and the shares that they promise have public keys."""
    try:
        for number in range(1, num_candidates + 1):
            bls.value_at(commitments, number)
    except SlotError:
        return False
    return True


def sum_of(deals: Sequence[Deal]) -> tuple[bytes, ...]:
    """Return the commitments to the sum of all polynomials; the first one is the group's key.

    Raises:
        SlotError: a sum is the point at infinity.
    """
    return tuple(map(bls.add_keys, zip(*(deal.commitments for deal in deals), strict=True)))


def _value(coefficients: Sequence[bls.SecretKey], number: int) -> int:
    """Return the polynomial's value at a number: Horner's scheme."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * number + coefficient.scalar) % bls.ORDER
    return value


def _encoded(share: int) -> bytes:
    return share.to_bytes(SHARE_BYTES)


def _derived(key: SigningKey, purpose: bytes, network: bytes) -> bytes:
    return tagged("derived", bytes.fromhex(key.sign(tagged("derive", purpose, b"\x00", network))))
