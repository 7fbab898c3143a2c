"""The state of the chain after a block: a layer of changes over the state after its parent.

Each block has a layer. What a layer does not have, the layers below it have, down to a table: the database, with
everything up to the anchor. A reorganisation moves the tip to another layer and undoes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Protocol, TypeVar

from msgspec.structs import replace
from typing_extensions import override

from pocqueue.pouw.chain.records import (
    CLOCK,
    OFFICE,
    SUPPLY,
    AccountRecord,
    Clock,
    Committee,
    KeyGeneration,
    Office,
    Payments,
    Reputation,
    Slash,
    Supply,
    TaskRecord,
    TicketRecord,
    Work,
    account_key,
    committee_key,
    complaint_key,
    confirmed_key,
    deal_key,
    generation_key,
    live_key,
    payments_key,
    reputation_key,
    result_key,
    slash_key,
    task_key,
    ticket_key,
    work_key,
)
from pocqueue.pouw.wire.codec import Message, decode, encode
from pocqueue.pouw.wire.hashes import tagged
from pocqueue.pouw.wire.transactions import Answer, Deal, Result

_T = TypeVar("_T", bound=Message)


class Table(Protocol):
    """What is below the lowest layer."""

    def get(self, key: bytes, /) -> bytes | None:
        """Return the value of a key."""
        ...

    def scan(self, prefix: bytes, /) -> Iterable[tuple[bytes, bytes]]:
        """Return the keys that begin so, with their values, in any order."""
        ...


class MemoryTable(dict[bytes, bytes]):
    """A table in memory."""

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Return the keys that begin so, with their values."""
        return (item for item in self.items() if item[0].startswith(prefix))


class _Layer:
    """Changes over what is below, and how the state is read through them."""

    def __init__(self, below: _Layer | Table, changes: Mapping[bytes, bytes | None]) -> None:
        self._below = below
        self._changes = changes

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, None if there is none."""
        layer: _Layer | Table = self
        # No recursion: there may be many layers before a first anchor.
        while isinstance(layer, _Layer):
            if key in layer._changes:
                return layer._changes[key]
            layer = layer._below
        return layer.get(key)

    def scan(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """Return the keys that begin so, with their values, ascending by key."""
        found: dict[bytes, bytes | None] = {}
        layer: _Layer | Table = self
        while isinstance(layer, _Layer):
            for key, value in layer._changes.items():
                if key.startswith(prefix):
                    found.setdefault(key, value)
            layer = layer._below
        for key, value in layer.scan(prefix):
            found.setdefault(key, value)
        return sorted((key, value) for key, value in found.items() if value is not None)

    def account(self, account: bytes) -> AccountRecord:
        """Return what an account owns; nothing, if it is not known."""
        return self._read(account_key(account), AccountRecord) or AccountRecord()

    def ticket(self, ticket: bytes) -> TicketRecord | None:
        """Return a ticket, live or released, whose stake is still locked."""
        return self._read(ticket_key(ticket), TicketRecord)

    def live_ticket(self, account: bytes, role: int) -> bytes | None:
        """Return the id of an account's live ticket of a role."""
        return self.get(live_key(role, account))

    def live_tickets(self, role: int) -> dict[bytes, TicketRecord]:
        """Return all live tickets of a role by their ids, ascending by account."""
        ids = [ticket for _, ticket in self.scan(live_key(role))]
        return {ticket: self._have(ticket_key(ticket), TicketRecord) for ticket in ids}

    def has_live(self, role: int) -> bool:
        """Some account has a live ticket of this role."""
        return bool(self.scan(live_key(role)))

    def task(self, task: bytes) -> TaskRecord | None:
        """Return a client's task, open or over."""
        return self._read(task_key(task), TaskRecord)

    def tasks(self) -> dict[bytes, TaskRecord]:
        """Return all clients' tasks by their ids, open or over."""
        return {key[1:]: decode(value, TaskRecord) for key, value in self.scan(b"k")}

    def open_tasks(self) -> dict[bytes, TaskRecord]:
        """Return the tasks that are to be trained by their ids, earliest deadline first."""
        found = {}
        for _, task in self.open_deadlines():
            value = self.get(task_key(task))
            assert value is not None, f"the state has no {task_key(task).hex()}"
            found[task] = _task_record(value)
        return found

    def open_deadlines(self) -> list[tuple[int, bytes]]:
        """Return deadline (ms since 1970) and id of each of these tasks, earliest first."""
        return [(int.from_bytes(key[1:-32]), key[-32:]) for key, _ in self.scan(b"o")]

    def closed_tasks(self) -> dict[bytes, TaskRecord]:
        """Return the tasks by their ids that are closed and not paid out yet, those that are paid first before."""
        ids = [key[-32:] for key, _ in self.scan(b"e")]
        return {task: self._have(task_key(task), TaskRecord) for task in ids}

    def results(self, task: bytes) -> dict[bytes, Result]:
        """Return what evaluators have found of a closed task, by account, until it is paid out."""
        return {key[33:]: decode(value, Result) for key, value in self.scan(result_key(task))}

    def work(self, task: bytes) -> Work:
        """Return who has worked on a closed task, until it is paid out."""
        return self._read(work_key(task), Work) or Work(())

    def payments(self, task: bytes) -> Payments:
        """Return who got what of a task; nobody, while it is not over."""
        return self._read(payments_key(task), Payments) or Payments(())

    def reputation(self, account: bytes) -> Reputation:
        """Return what was known of an account's work when it was last added to (`chain.reputation`)."""
        return self._read(reputation_key(account), Reputation) or Reputation()

    def committee(self, epoch: int) -> Committee | None:
        """Return the committee of an epoch, in office or not any more."""
        return self._read(committee_key(epoch), Committee)

    def slashes(self, account: bytes = b"") -> dict[bytes, list[Slash]]:
        """Return what offences have cost by the accounts whose they were, of all or of one."""
        found: dict[bytes, list[Slash]] = {}
        for key, value in self.scan(slash_key(account)):
            found.setdefault(key[1:-32], []).append(decode(value, Slash))
        return found

    @property
    def office(self) -> Office | None:
        """Return who is in office; None before the first epoch."""
        return self._read(OFFICE, Office)

    @property
    def committee_in_office(self) -> Committee | None:
        """Return the committee that signs now."""
        office = self.office
        return self.committee(office.epoch) if office and office.ticket else None

    @property
    def members(self) -> tuple[bytes, ...]:
        """Return the accounts of the committee that signs now."""
        committee = self.committee_in_office
        return committee.members if committee else ()

    @property
    def next_epoch(self) -> int:
        """Return the epoch after the one in office."""
        office = self.office
        return office.epoch + 1 if office else 0

    @property
    def generation(self) -> KeyGeneration | None:
        """Return the committee in the making; None: none is."""
        return self.generation_of(self.next_epoch)

    def generation_of(self, epoch: int) -> KeyGeneration | None:
        """Return how a committee was made, of the one in office and the one in the making; None: it has one member."""
        return self._read(generation_key(epoch), KeyGeneration)

    def deals(self, epoch: int) -> dict[int, Deal]:
        """Return what candidates of a committee have dealt, by their places; of the one in office and the one in the
        making."""
        return {key[-1]: decode(value, Deal) for key, value in self.scan(deal_key(epoch))}

    def complaints(self, epoch: int) -> dict[tuple[int, int], Answer | None]:
        """Return the answers to complaints by the places of dealer and candidate; None: there is no answer."""
        return {
            (key[-2], key[-1]): decode(value, Answer) if value else None
            for key, value in self.scan(complaint_key(epoch))
        }

    def confirmed(self, epoch: int) -> set[int]:
        """Return the places of the candidates of a committee that have confirmed their shares."""
        return {key[-1] for key, _ in self.scan(confirmed_key(epoch))}

    @property
    def supply(self) -> Supply:
        """Return how many coins there are."""
        return self._have(SUPPLY, Supply)

    @property
    def clock(self) -> Clock:
        """Return the block's height and time, and how far the chain is behind its schedule."""
        return self._have(CLOCK, Clock)

    def _read(self, key: bytes, kind: type[_T]) -> _T | None:
        value = self.get(key)
        return None if value is None else decode(value, kind)

    def _have(self, key: bytes, kind: type[_T]) -> _T:
        record = self._read(key, kind)
        assert record is not None, f"the state has no {key.hex()}"
        return record


class State(_Layer):
    """The state after a block. Does not change.

    Attributes:
        digest: 32 bytes, what the block's header has as `state`.
        diff: what this block changed, ascending by key; None: the key is gone.
    """

    def __init__(
        self, below: State | Table, digest: bytes, diff: Mapping[bytes, bytes | None] | None = None
    ) -> None:
        """Make the state over a table that has everything, or over another state with its block's diff."""
        self.digest = digest
        self._open_tasks: dict[bytes, TaskRecord] | None = None
        self.diff: Mapping[bytes, bytes | None] = MappingProxyType(dict(diff or {}))
        super().__init__(below, self.diff)

    @override
    def open_tasks(self) -> dict[bytes, TaskRecord]:
        """Return the tasks that are to be trained; put together once, however often they are asked for."""
        if self._open_tasks is None:
            self._open_tasks = super().open_tasks()
        return dict(self._open_tasks)

    def child(self) -> Draft:
        """Return a draft of the state after a block on this one."""
        return Draft(self)

    def rebase(self, table: Table) -> None:
        """Read from now on from a table that has everything of the state below, this diff with it or not."""
        self._below = table


class Draft(_Layer):
    """The state after a block that is being made or checked."""

    def __init__(self, parent: State) -> None:
        self._parent = parent
        self._writes: dict[bytes, bytes | None] = {}
        super().__init__(parent, self._writes)

    def put(self, key: bytes, value: Message | bytes | None) -> None:
        """Give a key a value; None takes the key away."""
        self._writes[key] = encode(value) if isinstance(value, Message) else value

    def credit(self, account: bytes, amount: int) -> None:
        """Add to an account's balance; nothing is not written."""
        if amount:
            record = self.account(account)
            self.put(account_key(account), replace(record, balance=record.balance + amount))

    def share(self, accounts: Sequence[bytes], amount: int) -> int:
        """Add equal parts of an amount to balances; return what was given: nothing, if there are no accounts."""
        part = amount // len(accounts) if accounts else 0
        for account in accounts:
            self.credit(account, part)
        return part * len(accounts)

    def diff(self) -> dict[bytes, bytes | None]:
        """Return what differs from the parent's state, ascending by key."""
        parent = self._parent
        return {
            key: value for key, value in sorted(self._writes.items()) if parent.get(key) != value
        }

    @property
    def digest(self) -> bytes:
        """Return H("state", the parent's digest ‖ the diff's items)."""
        return state_digest(self._parent.digest, self.diff())

    def seal(self) -> State:
        """Return the state that this draft is now."""
        diff = self.diff()
        return State(self._parent, state_digest(self._parent.digest, diff), diff)


@lru_cache(maxsize=16_384)  # of the open ones a block changes few
def _task_record(value: bytes) -> TaskRecord:
    return decode(value, TaskRecord)


def state_digest(parent: bytes, diff: Mapping[bytes, bytes | None]) -> bytes:
    """Return the digest of the state that this diff, ascending by key, makes of the one with `parent`."""
    return tagged("state", parent, encode(tuple(diff.items())))
