"""One decision of a committee: who leads a ballot, which words are within the rules, what shares make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pocqueue.pouw.chain.records import Committee
from pocqueue.pouw.chain.signatures import verify
from pocqueue.pouw.committee.quorum import faults, quorum
from pocqueue.pouw.committee.seats import share_key
from pocqueue.pouw.errors import SlotError
from pocqueue.pouw.slots import bls
from pocqueue.pouw.wire.hashes import merkle_root
from pocqueue.pouw.wire.votes import PRECOMMIT, Proposal, Said, Vote


@dataclass(frozen=True)
class Turn:
    """What all members know of one decision."""

    network: bytes
    committee: Committee
    number: int  #: `Certificate.turn`

    def __post_init__(self) -> None:
        assert self.quorum >= quorum(len(self.committee.members))

    @property
    def quorum(self) -> int:
        """Return how many have to say the same."""
        return self.committee.threshold

    @property
    def faults(self) -> int:
        """Return how many members may be faulty."""
        return faults(len(self.committee.members))

    def leader(self, ballot: int) -> int:
        """Return the place of the member that proposes in a ballot."""
        return (self.number + ballot) % len(self.committee.members)

    def is_of(self, said: Said) -> bool:
        """Say whether this is the turn that somebody speaks of.

        Raises:
            SlotError: ``network``: it is of another one.
        """
        about = said.head.certificate if isinstance(said, Proposal) else said
        if about.network != self.network:
            raise SlotError("network", f"a word is of {about.network.hex()}, another network.")
        return (about.epoch, about.turn) == (self.committee.epoch, self.number)

    def check(self, said: Said) -> None:
        """Return if what was said of this turn is within the rules, whatever else its sender has said.

        Raises:
            SlotError: ``member``, ``leader``, ``ballot``, ``root``, ``share`` or ``signature``, whichever is wrong
                first. A share is only looked at by `signature`.
        """
        if isinstance(said, Proposal):
            self._check_proposal(said)
        else:
            self._check_vote(said)

    def signature(self, digest: bytes, votes: Mapping[int, Vote]) -> bytes | set[int]:
        """Return the committee's signature that the shares of votes make.

        They are combined first, and looked at one by one only if that fails.

        Args:
            digest: word of the certificate that they are for.
            votes: for its value in its ballot, by member; as many as the quorum, or more.

        Returns:
            The signature, or the places of those whose share is wrong.
        """
        chosen = dict(list(votes.items())[: self.quorum])
        shares = {place: vote.share for place, vote in chosen.items() if vote.share is not None}
        numbered = {self.committee.numbers[place]: share for place, share in shares.items()}
        try:
            signature = bls.combine(numbered)
        except SlotError:
            signature = b""
        if signature and bls.verify(self.committee.group_key, digest, signature):
            return signature
        return {
            place
            for place, share in shares.items()
            if not bls.verify(share_key(self.committee, place), digest, share)
        }

    def _check_proposal(self, proposal: Proposal) -> None:
        head, certificate = proposal.head, proposal.head.certificate
        ballot = certificate.ballot
        account = self._account(head.member)
        if head.member != self.leader(ballot):
            raise SlotError(
                "leader",
                f"member {head.member} proposes in ballot {ballot} of turn {self.number}; member "
                f"{self.leader(ballot)} leads it.",
            )
        if head.valid_ballot is not None and head.valid_ballot >= ballot:
            raise SlotError(
                "ballot",
                f"a proposal in ballot {ballot} names ballot {head.valid_ballot} as before it.",
            )
        if certificate.count != len(proposal.ids) or certificate.root != merkle_root(proposal.ids):
            raise SlotError("root", "a proposal's certificate is of other messages than it names.")
        if not verify(account, head.id, head.signature):
            raise SlotError("signature", f"a proposal is not by member {head.member}.")

    def _check_vote(self, vote: Vote) -> None:
        account = self._account(vote.member)
        has_share = vote.kind == PRECOMMIT and vote.value is not None
        if has_share != (vote.share is not None):
            raise SlotError(
                "share", "a vote has one if it is a precommit for something, else none."
            )
        if not verify(account, vote.id, vote.signature):
            raise SlotError("signature", f"a vote is not by member {vote.member}.")

    def _account(self, place: int) -> bytes:
        members = self.committee.members
        if place >= len(members):
            raise SlotError("member", f"{place} is no place in a committee of {len(members)}.")
        return members[place]
