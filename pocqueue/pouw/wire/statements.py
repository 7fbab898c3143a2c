"""What a committee signs beside its slots: that a task's training is over, that a message was false.

Whoever wants one signed says so in a `Motion`; each member that finds it right answers with its share of the
signature; t shares are the signature, and the statement goes into a transaction.
"""

from __future__ import annotations

from functools import cached_property

import msgspec

from pocqueue.pouw.wire.codec import (
    Account,
    Count,
    GroupSignature,
    Hash,
    Message,
    Signature,
    Small,
    encode,
)
from pocqueue.pouw.wire.evidence import Fault
from pocqueue.pouw.wire.hashes import tagged
from pocqueue.pouw.wire.transactions import Close

#: As its `signature` is before there is one.
UNSIGNED = bytes(96)

Statement = Close | Fault


class CloseMotion(Message, tag=1, frozen=True):
    """Asks for the signature on a `Close`."""

    statement: Close


class FaultMotion(Message, tag=2, frozen=True):
    """Asks for the signature on a `Fault`: an accusation."""

    statement: Fault


class Motion(Message, frozen=True, dict=True):
    """Asks the committee of the statement's epoch to sign it."""

    network: Hash
    asked: CloseMotion | FaultMotion  #: with `UNSIGNED` for a signature
    sender: Account
    signature: Signature  #: of the sender, over `id`

    @cached_property
    def id(self) -> bytes:
        """Return H("motion", everything but the signature)."""
        return tagged("motion", encode((self.network, self.asked, self.sender)))


class StatementShare(Message, frozen=True):
    """A member's share of the signature on a statement that it found right."""

    network: Hash
    epoch: Count
    digest: Hash  #: `statement_digest`
    member: Small  #: its place
    share: GroupSignature  #: over `digest`


def statement_digest(network: bytes, statement: Statement) -> bytes:
    """Return what a committee signs of a statement: everything but its signature."""
    kind = "close" if isinstance(statement, Close) else "fault"
    unsigned = msgspec.structs.replace(statement, signature=UNSIGNED)
    return tagged(kind, network, encode(unsigned))
