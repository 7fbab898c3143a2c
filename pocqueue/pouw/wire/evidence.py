"""What shows anybody that somebody broke the rules."""

from __future__ import annotations

from pocqueue.pouw.wire.codec import Account, Count, GroupSignature, Hash, Message, Small
from pocqueue.pouw.wire.slots import Iteration
from pocqueue.pouw.wire.votes import ProposalHead, Vote


class Fault(Message, tag=1, frozen=True):
    """The committee has executed a certified message again, and it is not what its miner says."""

    epoch: Count  #: of the committee that signs
    task: Hash
    slot: Count
    miner: Account
    lane: Small
    message: Hash  #: id of the iteration
    finder: Account  #: who has found it, and is paid for that
    signature: GroupSignature  #: of the committee of that epoch, over `statements.statement_digest`


class TwoMessages(Message, tag=2, frozen=True):
    """A miner has signed two iterations of one slot and lane."""

    first: Iteration
    second: Iteration


class TwoVotes(Message, tag=3, frozen=True):
    """A member of a committee has voted twice in one ballot."""

    first: Vote
    second: Vote


class TwoProposals(Message, tag=4, frozen=True):
    """A leader has proposed two things in one ballot."""

    first: ProposalHead
    second: ProposalHead
