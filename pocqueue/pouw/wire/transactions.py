"""Transactions: what an account orders the chain to do, signed by its key."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import msgspec

from pocqueue.pouw.wire.codec import (
    Account,
    Count,
    GroupKey,
    GroupSignature,
    Hash,
    Message,
    Signature,
    Small,
    Version,
    encode,
)
from pocqueue.pouw.wire.data import DataShape
from pocqueue.pouw.wire.evidence import Fault, TwoMessages, TwoProposals, TwoVotes
from pocqueue.pouw.wire.hashes import tagged

MAX_TRANSACTION_BYTES = 32 * 1024
MAX_PREFERENCES_BYTES = 2 * 1024
#: Accounts that a task's end can name.
MAX_WORKERS = 256
#: Members of a committee.
MAX_MEMBERS = 16
#: Why a task's training ended; the order is part of the format. All but the first give the client's reward back.
REASONS = ("trained", "deadline", "data", "tau", "miners")
#: Roles as `Ticket.role` has them; the order is part of the format.
ROLES = ("miner", "supervisor", "evaluator", "verifier", "peer")

#: A task's name is printed on everybody's terminals and in logs: ASCII without control characters.
TASK_NAME = r"\A[ -~]{1,64}\Z"

_Text = Annotated[str, msgspec.Meta(max_length=255)]


class Transfer(Message, tag=1, frozen=True):
    """Gives an amount to another account."""

    to: Account
    amount: Count  #: µPAI, at least 1


class TakeTicket(Message, tag=2, frozen=True):
    """Locks a stake for a role; one live ticket an account and role. The ticket's id is the transaction's."""

    role: Small  #: index in ROLES; "peer" has none
    stake: Count  #: µPAI
    preferences: Annotated[
        bytes, msgspec.Meta(max_length=MAX_PREFERENCES_BYTES)
    ]  #: by `config`, JSON; the chain reads none of it
    address: _Text  #: ``host:port`` where the node listens, or empty
    group_key: (
        GroupKey | None
    )  #: a supervisor's BLS key, with the proof that it has the secret of it
    possession: GroupSignature | None  #: by the secret of group_key, for this account
    seal_key: Hash | None = (
        None  #: a supervisor's X25519 key, which shares are sealed to (`committee.sealing`)
    )


class Release(Message, tag=3, frozen=True):
    """Gives a ticket back; its stake is free some blocks later."""

    ticket: Hash


class OrderTask(Message, tag=4, frozen=True):
    """Puts a task and its reward into escrow. The task's id is the transaction's."""

    name: Annotated[str, msgspec.Meta(pattern=TASK_NAME)]  #: the client's `task_id`
    task_type: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    #: ``digits`` or ``words``; or the client's own, as `DATA_NAME` has them.
    data: Annotated[str, msgspec.Meta(min_length=1, max_length=66)]
    requirements: Annotated[bytes, msgspec.Meta(max_length=4096)]  #: `TaskModel`, canonical
    reward: Count  #: µPAI, beside the fee for training
    training_fee: Count  #: µPAI, to escrow as well
    deadline_ms: Count  #: since 1970
    shape: DataShape | None = None  #: of the client's own data; None: they are built in


class Faucet(Message, tag=6, frozen=True):
    """Takes the coins that a network such as `dev` gives to each key once."""


class Deal(Message, tag=7, frozen=True):
    """A candidate's part of a committee's key: commitments to a polynomial, and its value for each candidate."""

    generation: Hash  #: `KeyGeneration.id` of the committee in the making
    commitments: Annotated[
        tuple[GroupKey, ...], msgspec.Meta(max_length=MAX_MEMBERS)
    ]  #: of t coefficients
    #: A sealed share for each candidate in its place; the dealer's own is empty.
    shares: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=128)], ...],
        msgspec.Meta(max_length=MAX_MEMBERS),
    ]


class Complaint(Message, tag=8, frozen=True):
    """A candidate says that a dealer's share for it is not the one that it has committed itself to."""

    generation: Hash
    dealer: Small  #: its place among the candidates


class Answer(Message, tag=9, frozen=True):
    """A dealer shows the share that was complained about."""

    generation: Hash
    candidate: Small  #: whose share it is
    share: Hash  #: a scalar, big-endian


class Confirm(Message, tag=14, frozen=True):
    """A candidate says that it has a good share of everybody who has dealt, or has complained."""

    generation: Hash


class Evidence(Message, tag=10, frozen=True):
    """Has a stake taken from whoever broke the rules so that anybody can see it. Its sender gets a part of it, but for
    a fault, where the finder does."""

    fault: Fault | TwoMessages | TwoVotes | TwoProposals


class Close(Message, tag=13, frozen=True):
    """Ends the training of a client's task: what the committee says of it, with its signature.

    If it was trained, the client shows its test part next, evaluators say what they find, and then it is paid out.
    """

    epoch: Count  #: of the committee that signs
    task: Hash
    reason: Small  #: index in REASONS
    slots: Count  #: that were certified and count
    theta: Hash  #: SHA-256 of the weights after them
    correct: Count  #: what the committee counted, for a task that no evaluator looks at
    total: Count
    majority: Count  #: right answers of whoever always says the commonest one
    #: Who worked, ascending by account: certified slots x parts, and how often 20 slots in a row were missed.
    work: Annotated[tuple[tuple[Account, Count, Count], ...], msgspec.Meta(max_length=MAX_WORKERS)]
    signature: GroupSignature  #: of the committee of that epoch, over `statement_digest`


class Reveal(Message, tag=11, frozen=True):
    """A client says that its task's test part can be had: the file of `TaskModel.test_hash`."""

    task: Hash


class Result(Message, tag=12, frozen=True):
    """What an evaluator found that a closed task's weights get right."""

    task: Hash
    correct: Count
    total: Count
    majority: Count


Body = (
    Transfer
    | TakeTicket
    | Release
    | OrderTask
    | Close
    | Faucet
    | Deal
    | Complaint
    | Answer
    | Confirm
    | Evidence
    | Reveal
    | Result
)


class Transaction(Message, frozen=True, dict=True):
    """An order with its sender's sequence number, fee and signature over `id`."""

    version: Version
    network: Hash
    sender: Account
    sequence: Count  #: 0 for an account's first one, then one more each
    fee: Count  #: µPAI, to whoever mines it
    body: Body
    signature: Signature

    @cached_property
    def id(self) -> bytes:
        """Return H("tx", everything but the signature): what is signed."""
        fields = (self.version, self.network, self.sender, self.sequence, self.fee, self.body)
        return tagged("tx", encode(fields))

    @cached_property
    def size(self) -> int:
        """Return its length in bytes."""
        return len(encode(self))
