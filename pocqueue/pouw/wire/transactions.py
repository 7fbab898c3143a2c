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
from pocqueue.pouw.wire.hashes import tagged

MAX_TRANSACTION_BYTES = 32 * 1024
MAX_PREFERENCES_BYTES = 2 * 1024
#: Accounts that a settlement can name.
MAX_WORKERS = 256
#: Roles as `Ticket.role` has them; the order is part of the format.
ROLES = ("miner", "supervisor", "evaluator", "verifier", "peer")

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


class Release(Message, tag=3, frozen=True):
    """Gives a ticket back; its stake is free some blocks later."""

    ticket: Hash


class OrderTask(Message, tag=4, frozen=True):
    """Puts a task and its reward into escrow. The task's id is the transaction's."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]  #: the client's `task_id`
    task_type: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    data: Annotated[str, msgspec.Meta(min_length=1, max_length=66)]  #: ``digits`` or ``words``
    requirements: Annotated[bytes, msgspec.Meta(max_length=4096)]  #: `TaskModel`, canonical
    reward: Count  #: µPAI, beside the fee for training
    training_fee: Count  #: µPAI, to escrow as well
    deadline_ms: Count  #: since 1970


class Settle(Message, tag=5, frozen=True):
    """Ends a task that was trained: what the committee says came of it, with its signature."""

    task: Hash
    correct: Count
    total: Count
    majority: Count  #: right answers of whoever always says the commonest one
    #: Who worked, by account: certified slots x parts. Ascending by account.
    work: Annotated[tuple[tuple[Account, Count], ...], msgspec.Meta(max_length=MAX_WORKERS)]
    signature: GroupSignature  #: of the committee in office, over `settlement_digest`


class Faucet(Message, tag=6, frozen=True):
    """Takes the coins that a network such as `dev` gives to each key once."""


# 7 to 10 are kept for key generation (deal, complaint, answer) and evidence.
Body = Transfer | TakeTicket | Release | OrderTask | Settle | Faucet


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


def settlement_digest(network: bytes, settle: Settle) -> bytes:
    """Return what a committee signs to settle a task."""
    fields = (settle.task, settle.correct, settle.total, settle.majority, settle.work)
    return tagged("settlement", network, encode(fields))
