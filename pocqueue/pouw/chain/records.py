"""What the state has under a key: accounts, tickets, tasks, committees, and a few numbers.

Keys, by their first byte; numbers in them are 8 bytes, big-endian, so that they sort:

    a account              AccountRecord
    t ticket id            TicketRecord, until its stake is free
    l role account         id of this account's live ticket of this role
    u height ticket id     (empty) the stake of this ticket is free in the block of this height
    k task id              TaskRecord
    o deadline task id     (empty) this task is to be trained: nobody has closed it
    e height task id       (empty) what this closed task is worth is paid out in the block of this height
    w task id              Work of a closed task, until it is paid out
    y task id              Payments of a task that is over
    c epoch                Committee
    n                      Office: who is in office now
    g epoch                KeyGeneration: the committee in the making, and the one in office
    d epoch place          Deal of the candidate at this place, until the next committee is in office
    m epoch dealer place   (empty) a complaint of the candidate at this place; an Answer, once there is one
    f epoch place          (empty) the candidate at this place has confirmed its shares
    p account              Reputation
    x account offence      Slash: what this offence has cost
    r task account         Result of an evaluator (`wire.transactions`), until the task is paid out
    s                      Supply
    h                      Clock
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import msgspec

from pocqueue.pouw.wire.codec import Account, Count, GroupKey, Hash, Message, Small, encode
from pocqueue.pouw.wire.data import DataShape
from pocqueue.pouw.wire.hashes import tagged
from pocqueue.pouw.wire.transactions import MAX_MEMBERS, MAX_WORKERS, ROLES

MINER, SUPERVISOR, EVALUATOR, VERIFIER = map(
    ROLES.index, ("miner", "supervisor", "evaluator", "verifier")
)

OFFICE, SUPPLY, CLOCK = b"n", b"s", b"h"
#: Results that a task takes, the first ones.
MAX_RESULTS = 64
#: What `Payment.role` says beside roles of tickets: the client's own coins, and those of bounties.
CLIENT, POOL = len(ROLES) - 1, len(ROLES)

_Any = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class AccountRecord(Message, frozen=True):
    """What an account owns. One that is not in the state has the defaults."""

    balance: Count = 0  #: µPAI
    sequence: Count = 0  #: of its next transaction
    has_faucet: bool = False  #: it has taken what the faucet gives


class TicketRecord(Message, frozen=True):
    """A stake for a role."""

    account: Account
    role: Small  #: index in `wire.transactions.ROLES`
    stake: Count  #: µPAI
    preferences: bytes
    address: str
    group_key: GroupKey | None
    height: Count  #: of the block that took it
    free_at: Count | None = None  #: height at which its stake is free; None while it is live
    seal_key: Hash | None = None  #: a supervisor's X25519 key


class TaskRecord(Message, frozen=True):
    """A client's task: to be trained, then closed, then over. Its reward and fee are in escrow until it is over."""

    client: Account
    name: str
    task_type: str
    data: str
    requirements: bytes
    reward: Count  #: µPAI
    training_fee: Count  #: µPAI
    deadline_ms: Count
    height: Count  #: of the block that has its order
    outcome: Outcome | None = None  #: None until it is over
    shape: DataShape | None = None  #: of the client's own data; None: they are built in
    slashed: Count = 0  #: µPAI of stakes that were taken for faults in its training
    closing: Closing | None = None  #: None while it is to be trained

    @property
    def escrow(self) -> int:
        """Return what is in escrow for it, in µPAI."""
        return 0 if self.outcome else self.reward + self.training_fee + self.slashed


class Closing(Message, frozen=True):
    """What the committee said at the end of a task's training."""

    height: Count  #: of the block that has it
    epoch: Count  #: of the committee that signed it
    reason: Small  #: index in `wire.transactions.REASONS`
    slots: Count  #: that count
    theta: Hash  #: SHA-256 of the weights after them
    correct: Count  #: the committee's own count
    total: Count
    majority: Count
    asks_until: Count  #: the test part has to be shown in a block of this height at the latest; 0: there is none
    opens_at: Count  #: height of the first block that may have results
    pays_at: Count  #: height of the block that pays out
    is_revealed: bool = False  #: its client has shown the test part


class Outcome(Message, frozen=True):
    """How a task ended."""

    height: Count
    reason: Small  #: index in `wire.transactions.REASONS`
    correct: Count  #: the median of what evaluators found; 0 of 0: nobody counted
    total: Count
    quality: Count  #: in millionths
    paid: Count  #: µPAI, to whoever worked; the rest went back


class Work(Message, frozen=True):
    """Who has worked on a task."""

    done: Annotated[
        tuple[tuple[Account, Count], ...], msgspec.Meta(max_length=MAX_WORKERS)
    ]  #: certified slots x parts by account


class Payment(Message, frozen=True):
    """What one got of a task."""

    account: Account | None  #: None: the pool of bounties
    role: Small  #: for what: of a ticket, `CLIENT` or `POOL`
    amount: Count  #: µPAI


class Payments(Message, frozen=True):
    """Who got what of a task; together its whole escrow."""

    lines: Annotated[
        tuple[Payment, ...],
        msgspec.Meta(max_length=MAX_WORKERS + MAX_MEMBERS + MAX_RESULTS + 2),
    ]


class Committee(Message, frozen=True):
    """Whose threshold signature counts in an epoch."""

    epoch: Count
    members: tuple[Account, ...]  #: a member is named by its place here
    group_key: GroupKey
    numbers: tuple[Small, ...] = (
        1,
    )  #: of each member: where the polynomial of secrets has its share
    shares: tuple[
        GroupKey, ...
    ] = ()  #: public key of each member's share; empty: the one member's is the group key
    threshold: Small = 1  #: shares that make a signature; as many have to vote for something
    tickets: tuple[Hash, ...] = ()  #: of each member
    #: Tickets of all that were chosen at first; of those that are not members nobody heard, or they dealt wrongly.
    chosen: tuple[Hash, ...] = ()


class Office(Message, frozen=True):
    """Who is in office."""

    epoch: Count  #: the newest that there is a committee of
    ticket: (
        Hash | None
    )  #: of its member, the first one's if there are several; None: nobody is in office
    height: Count = (
        0  #: of the block after which it is in office, or after which nobody was before it
    )


class Candidate(Message, frozen=True):
    """A supervisor that may become a member of the next committee."""

    account: Account
    ticket: Hash
    seal_key: Hash


class KeyGeneration(Message, frozen=True, dict=True):
    """The making of a committee's key: who takes part, and since when."""

    epoch: Count
    height: Count  #: of the block that began it; deals are taken from the next one on
    candidates: tuple[
        Candidate, ...
    ]  #: ascending by account; a candidate's number is its place + 1
    threshold: Small  #: shares that will make a signature
    chosen: tuple[Hash, ...]  #: tickets of all that were chosen, also of those that are out by now

    @cached_property
    def id(self) -> bytes:
        """Return the height, 8 bytes, then 24 of H("generation", its bytes): the same on all branches that agree so far.

        So whoever does not know it sees whether it is over or has not begun.
        """
        return _number(self.height) + tagged("generation", encode(self))[:24]

    def place(self, account: bytes) -> int | None:
        """Return an account's place among the candidates; None: it is none of them."""
        accounts = [candidate.account for candidate in self.candidates]
        return accounts.index(account) if account in accounts else None


class Reputation(Message, frozen=True):
    """What is known of an account's work: (1 + good) / (2 + good + bad)."""

    good: Count = 0  #: in hundredths: a certified slot is one
    bad: Count = 0  #: in hundredths: 2000 for a fault, 100 for 20 missed slots in a row
    period: Count = 0  #: both were halved so many times


class Slash(Message, frozen=True):
    """What an offence has cost."""

    ticket: Hash  #: that is no more
    role: Small  #: that it was for
    stake: Count  #: µPAI, all of it
    finder: Account
    bounty: Count  #: µPAI of it, to the finder
    task: Hash | None  #: whose pot has the rest; None: nobody has
    height: Count  #: of the block that has the evidence
    transaction: Hash  #: the evidence


class Supply(Message, frozen=True):
    """All coins that there are, and those that are nobody's yet."""

    issued: Count = 0  #: µPAI
    pool: Count = 0  #: µPAI, of bounties


class Clock(Message, frozen=True):
    """The time of the chain."""

    height: Count
    time_ms: Count
    lag_ms: _Any = 0  #: how far trained blocks are behind their schedule


def account_key(account: bytes) -> bytes:
    """Return the key of an `AccountRecord`."""
    return b"a" + account


def ticket_key(ticket: bytes) -> bytes:
    """Return the key of a `TicketRecord`."""
    return b"t" + ticket


def live_key(role: int, account: bytes = b"") -> bytes:
    """Return the key of the id of an account's live ticket, or the prefix of all of a role."""
    return b"l" + bytes([role]) + account


def unbonding_key(height: int, ticket: bytes = b"") -> bytes:
    """Return the key of a stake that is free at a height, or the prefix of all of them."""
    return b"u" + _number(height) + ticket


def task_key(task: bytes) -> bytes:
    """Return the key of a `TaskRecord`."""
    return b"k" + task


def open_key(deadline_ms: int, task: bytes) -> bytes:
    """Return the key by which an open task stands in the order of deadlines."""
    return b"o" + _number(deadline_ms) + task


def order_key(client: bytes, task: bytes = b"") -> bytes:
    """Return the key by which an open task stands among its client's, or the prefix of all of them."""
    return b"q" + client + task


def due_key(height: int, task: bytes = b"") -> bytes:
    """Return the key of a task that is paid out at a height, or the prefix of all of them."""
    return b"e" + _number(height) + task


def work_key(task: bytes) -> bytes:
    """Return the key of a `Work`."""
    return b"w" + task


def payments_key(task: bytes) -> bytes:
    """Return the key of `Payments`."""
    return b"y" + task


def result_key(task: bytes, account: bytes = b"") -> bytes:
    """Return the key of an evaluator's `Result`, or the prefix of all of a task."""
    return b"r" + task + account


def committee_key(epoch: int) -> bytes:
    """Return the key of a `Committee`."""
    return b"c" + _number(epoch)


def generation_key(epoch: int) -> bytes:
    """Return the key of a `KeyGeneration`."""
    return b"g" + _number(epoch)


def deal_key(epoch: int, place: int | None = None) -> bytes:
    """Return the key of a candidate's `Deal`, or the prefix of all of an epoch."""
    return b"d" + _number(epoch) + (b"" if place is None else bytes([place]))


def complaint_key(epoch: int, dealer: int | None = None, place: int | None = None) -> bytes:
    """Return the key of a candidate's complaint about a dealer, or the prefix of all about it or of an epoch."""
    places = (place for place in (dealer, place) if place is not None)
    return b"m" + _number(epoch) + bytes(places)


def confirmed_key(epoch: int, place: int | None = None) -> bytes:
    """Return the key of what a candidate says of its shares, or the prefix of all of an epoch."""
    return b"f" + _number(epoch) + (b"" if place is None else bytes([place]))


def reputation_key(account: bytes) -> bytes:
    """Return the key of a `Reputation`."""
    return b"p" + account


def slash_key(account: bytes = b"", offence: bytes = b"") -> bytes:
    """Return the key of a `Slash`, or the prefix of all of an account or of all."""
    return b"x" + account + offence


def _number(value: int) -> bytes:
    return value.to_bytes(8, "big")
