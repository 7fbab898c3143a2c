"""Committees whose keys are known, and what their members say."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

from msgspec.structs import replace

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.chain.records import Committee
from pocqueue.pouw.chain.signatures import account_of, sign
from pocqueue.pouw.committee.agreement import Agreement, Turn
from pocqueue.pouw.committee.quorum import quorum
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.hashes import ZERO, merkle_root
from pocqueue.pouw.wire.slots import Certificate
from pocqueue.pouw.wire.votes import PRECOMMIT, Proposal, ProposalHead, Said, Vote

NETWORK = b"n" * 32


class Group:
    """A committee of `n` with its keys; its shares are values of one polynomial.

    Args:
        n: members.
        number: of the turn.
    """

    def __init__(self, n: int, number: int = 0) -> None:
        self.keys = sorted((SigningKey.generate() for _ in range(n)), key=account_of)
        seeds = (hashlib.sha256(bytes([k])).digest() for k in range(quorum(n)))
        coefficients = [int.from_bytes(seed) % bls.ORDER for seed in seeds]
        self.shares = [_share(coefficients, place + 1) for place in range(n)]
        committee = Committee(
            epoch=2,
            members=tuple(map(account_of, self.keys)),
            group_key=bls.SecretKey(coefficients[0]).public_key,
            numbers=tuple(range(1, n + 1)),
            shares=tuple(share.public_key for share in self.shares),
            threshold=quorum(n),
        )
        self.turn = Turn(NETWORK, committee, number)

    def member(self, place: int, said: Sequence[Said] = (), now_ms: int = 0) -> Agreement:
        """Return a member, with what it said before a restart."""
        return Agreement(self.turn, place, self.keys[place], self.shares[place], said, now_ms)

    def certificate(self, name: str = "a", ballot: int = 0) -> Certificate:
        """Return the certificate of a slot whose messages a name stands for."""
        return Certificate(
            network=NETWORK,
            epoch=self.turn.committee.epoch,
            turn=self.turn.number,
            parent=ZERO,
            task=b"t" * 32,
            slot=7,
            ballot=ballot,
            previous=ZERO,
            root=merkle_root(ids(name)),
            count=1,
            theta=ZERO,
            anchor=ZERO,
            anchor_height=3,
            time_ms=1000,
        )

    @functools.cache  # noqa: B019 - of a few committees
    def value(self, name: str = "a") -> bytes:
        """Return what is voted on for a name."""
        return self.certificate(name).value

    def proposal(
        self,
        name: str = "a",
        ballot: int = 0,
        valid_ballot: int | None = None,
        place: int | None = None,
    ) -> Proposal:
        """Return a leader's proposal, or another member's."""
        member = self.turn.leader(ballot) if place is None else place
        head = ProposalHead(self.certificate(name, ballot), valid_ballot, member, bytes(64))
        signed = replace(head, signature=sign(self.keys[member], head.id))
        return Proposal(signed, ids(name))

    def vote(
        self, place: int, kind: int, name: str | None = "a", ballot: int = 0, **changed: object
    ) -> Vote:
        """Return a member's vote, signed after fields were changed."""
        share = None
        if kind == PRECOMMIT and name is not None:
            share = self.shares[place].sign(self.certificate(name, ballot).word)
        vote = Vote(
            network=NETWORK,
            epoch=self.turn.committee.epoch,
            turn=self.turn.number,
            ballot=ballot,
            kind=kind,
            value=None if name is None else self.value(name),
            member=place,
            share=share,
            signature=bytes(64),
        )
        vote = replace(vote, **changed)
        return replace(vote, signature=sign(self.keys[place], vote.id))


def ids(name: str) -> tuple[bytes, ...]:
    """Return the one message that a name stands for."""
    return (hashlib.sha256(name.encode()).digest(),)


def votes(said: Sequence[Said]) -> list[tuple[int, int, bytes | None]]:
    """Return ballot, kind and value of the votes among what was said."""
    return [(one.ballot, one.kind, one.value) for one in said if isinstance(one, Vote)]


def _share(coefficients: Sequence[int], number: int) -> bls.SecretKey:
    value = sum(factor * number**power for power, factor in enumerate(coefficients))
    return bls.SecretKey(value % bls.ORDER)
