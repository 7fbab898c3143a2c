"""What the members of a committee say to each other about a turn: proposals, votes, shares of the beacon.

One turn is one decision (single-shot Tendermint, arXiv 1807.04938): which messages are the next slot. A member is
named by its place in `Committee.members`.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import msgspec

from pocqueue.pouw.wire.codec import (
    Count,
    GroupSignature,
    Hash,
    Message,
    Signature,
    Small,
    encode,
)
from pocqueue.pouw.wire.hashes import tagged
from pocqueue.pouw.wire.slots import MAX_LANES, Certificate

PREVOTE, PRECOMMIT = 1, 2


class ProposalHead(Message, frozen=True, dict=True):
    """What a turn's leader proposes in a ballot: `certificate.ballot`."""

    certificate: Certificate
    valid_ballot: (
        Count | None
    )  #: the earlier ballot in which 2f+1 prevoted for this value; None: it is new
    member: Small  #: the leader's place
    signature: Signature  #: of its account, over `id`

    @cached_property
    def id(self) -> bytes:
        """Return H("proposal", everything but the signature)."""
        return tagged("proposal", encode((self.certificate, self.valid_ballot, self.member)))


class Proposal(Message, frozen=True):
    """A proposal with the ids under its certificate's root."""

    head: ProposalHead
    ids: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=MAX_LANES)]


class Vote(Message, frozen=True, dict=True):
    """A member's word in a ballot. Two of one member, ballot and kind that differ are evidence."""

    network: Hash
    epoch: Count
    turn: Count
    ballot: Count
    kind: Annotated[int, msgspec.Meta(ge=PREVOTE, le=PRECOMMIT)]
    value: Hash | None  #: `Certificate.value`; None: for nothing
    member: Small
    share: (
        GroupSignature | None
    )  #: of a precommit for a value: by the member's share, over `Certificate.word` of this ballot
    signature: Signature  #: of its account, over `id`

    @cached_property
    def id(self) -> bytes:
        """Return H("vote", everything but the signature): whoever passes it on cannot spoil its share."""
        fields = tuple(getattr(self, name) for name in self.__struct_fields__[:-1])
        return tagged("vote", encode(fields))


#: What a member says in a turn.
Said = Proposal | Vote


class BeaconShare(Message, frozen=True, dict=True):
    """A member's share of a slot's beacon, said after the slot's certificate is signed, never before."""

    network: Hash
    epoch: Count
    turn: Count
    word: Hash  #: `Certificate.word` of the certificate that it follows
    proof: GroupSignature  #: the committee's signature over it: so the share may be said
    member: Small
    share: GroupSignature  #: over `slots.beacon_digest`
    signature: Signature  #: of the member's account, over `id`

    @cached_property
    def id(self) -> bytes:
        """Return H("beacon-share", everything but the signature)."""
        fields = tuple(getattr(self, name) for name in self.__struct_fields__[:-1])
        return tagged("beacon-share", encode(fields))
