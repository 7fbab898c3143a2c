"""Transactions that wait for a block. Decides with values; the state, the time and the peers are outside."""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Iterator
from itertools import count
from math import inf
from typing import NamedTuple

from pocqueue.pouw.chain.apply import (
    apply_transaction,
    begin_block,
    check_transaction,
    income,
    spent,
)
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.office import Step, check_sender, is_over
from pocqueue.pouw.chain.refusals import refusal
from pocqueue.pouw.chain.state import Draft, State
from pocqueue.pouw.errors import InvalidTransaction
from pocqueue.pouw.wire.blocks import MAX_BLOCK_TRANSACTIONS
from pocqueue.pouw.wire.transactions import Transaction, Transfer

MAX_TRANSACTIONS = 20_000
MAX_BYTES = 8_000_000
#: Of one sender, from its next sequence on.
MAX_AHEAD = 64
LIFETIME_MS = 2 * 3600 * 1000

#: What may be good in a later block though it is not in this one.
_MAY_PASS = ("sequence", "balance", "early")
#: What is so often because the newest block is not here yet that it is taken in: it goes at the next tip.
_MAY_BE_NEW = (*_MAY_PASS, "stage")


class _Entry(NamedTuple):
    rate: float  #: fee per byte; those of key generations, which pay none and have little time, are before all
    number: int  #: in the order of arrival
    added_ms: int
    transaction: Transaction


class Mempool:
    """What waits, by sender and sequence."""

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis
        self._entries: dict[bytes, _Entry] = {}  # by id, in the order of arrival
        self._queues: dict[bytes, dict[int, bytes]] = {}  # id by sequence by sender
        self._cheapest: list[tuple[float, int, bytes]] = []  # a heap; some in it are gone
        self._numbers = count()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, transaction_id: object) -> bool:
        return transaction_id in self._entries

    def __iter__(self) -> Iterator[Transaction]:
        # A copy, made in one step: another thread may take some in meanwhile.
        return (entry.transaction for entry in list(self._entries.values()))

    def get(self, transaction_id: bytes) -> Transaction | None:
        """Return the one with this id."""
        entry = self._entries.get(transaction_id)
        return entry and entry.transaction

    def next_sequence(self, sender: bytes, state: State, taken: Container[int] = ()) -> int:
        """Return the first sequence of an account that nothing which waits has, and that is not in `taken`."""
        sequence, queue = state.account(sender).sequence, self._queues.get(sender, {})
        while sequence in queue or sequence in taken:
            sequence += 1
        return sequence

    def add(self, transaction: Transaction, state: State, now_ms: int) -> bool:
        """Take a transaction in, in place of cheaper ones if need be.

        Args:
            transaction: from anybody.
            state: of the tip.
            now_ms: since 1970.

        Returns:
            False: it is there already.

        Raises:
            InvalidTransaction: it is not good, or not better than what is there; see its `is_fault`.
        """
        self.expire(now_ms)
        if transaction.id in self._entries:
            return False
        # First what is cheap to see: signatures and points of curves take a thousand times as long.
        replaced = self._check_place(transaction, state)
        check_transaction(self._genesis, transaction)
        refused = self._refused(self._begun(state, now_ms), transaction)
        if refused is not None and refused.rule not in _MAY_BE_NEW:
            raise refused
        is_step = isinstance(transaction.body, Step)
        rate = inf if is_step else transaction.fee / transaction.size
        self._make_room(transaction.size, rate)
        if replaced is not None and replaced.transaction.id in self._entries:
            self._drop(replaced.transaction)
        entry = _Entry(rate, next(self._numbers), now_ms, transaction)
        self._entries[transaction.id] = entry
        self._queues.setdefault(transaction.sender, {})[transaction.sequence] = transaction.id
        self.size_bytes += transaction.size
        self._push(entry)
        return True

    def select(self, draft: Draft, max_bytes: int) -> list[Transaction]:
        """Apply the best paying transactions to a draft, and return them in that order.

        What is not good there is left out; what will not be good later either is dropped.

        Args:
            draft: of a block that was begun (`apply.begin_block`).
            max_bytes: of all of them.
        """
        chosen: list[Transaction] = []
        heads = [head for sender in self._queues if (head := self._head(sender, draft))]
        heapq.heapify(heads)
        while heads and len(chosen) < MAX_BLOCK_TRANSACTIONS:
            transaction = heapq.heappop(heads)[2]
            if transaction.size > max_bytes:
                continue
            try:
                apply_transaction(self._genesis, draft, transaction)
            except InvalidTransaction as refused:
                if refused.rule not in _MAY_PASS:
                    self._drop(transaction)
                continue
            chosen.append(transaction)
            max_bytes -= transaction.size
            if head := self._head(transaction.sender, draft):
                heapq.heappush(heads, head)
        return chosen

    def remove(self, transactions: Iterable[Transaction]) -> None:
        """Take out what is in a block now, and what waited with the same or an earlier sequence."""
        for transaction in transactions:
            queue = self._queues.get(transaction.sender, {})
            for sequence in [number for number in queue if number <= transaction.sequence]:
                self._drop(self._entries[queue[sequence]].transaction)

    def readd(self, transactions: Iterable[Transaction], state: State, now_ms: int) -> None:
        """Take in what was in blocks that are not on the heaviest chain any more, as far as it is good there."""
        for transaction in transactions:
            try:
                self.add(transaction, state, now_ms)
            except InvalidTransaction:
                continue

    def expire(self, now_ms: int) -> None:
        """Take out what has waited too long."""
        while self._entries:
            oldest = next(iter(self._entries.values()))
            if oldest.added_ms + LIFETIME_MS > now_ms:
                return
            self._drop(oldest.transaction)

    def retry(self, state: State, now_ms: int) -> None:
        """Take out what is its sender's next one, and no block on this tip can have any more.

        Transfers are not looked at: they can wait for a balance only.
        """
        begun = self._begun(state, now_ms)
        heads = [head[2] for sender in list(self._queues) if (head := self._head(sender, begun))]
        for transaction in heads:
            if isinstance(transaction.body, Transfer):
                continue
            refused = self._refused(begun, transaction)
            if refused is not None and refused.rule not in _MAY_PASS:
                self._drop(transaction)

    def drop_steps(self, height: int) -> None:
        """Take out what is of key generations that the next block, of this height, is too late for."""
        for transaction in self:
            if isinstance(transaction.body, Step) and is_over(transaction.body, height):
                self._drop(transaction)

    def _begun(self, state: State, now_ms: int) -> State:
        """Return the state in which the first transaction of a block on this one would be applied."""
        draft = state.child()
        begin_block(self._genesis, draft, now_ms, is_founding=True)
        return draft.seal()

    def _refused(self, begun: State, transaction: Transaction) -> InvalidTransaction | None:
        """Return why a transaction is not good as the first one of a block; None: it is.

        It costs its sender nothing unless a block has it. So what no block takes is not passed on either.
        """
        try:
            apply_transaction(self._genesis, begun.child(), transaction)
        except InvalidTransaction as refused:
            return refused
        return None

    def _check_place(self, transaction: Transaction, state: State) -> _Entry | None:
        """Return what waits with the same sender and sequence, if this one may take its place."""
        account = state.account(transaction.sender)
        if not account.sequence <= transaction.sequence < account.sequence + MAX_AHEAD:
            raise refusal(
                "sequence",
                f"it is number {transaction.sequence} of its sender; allowed are {account.sequence} to "
                f"{account.sequence + MAX_AHEAD - 1}.",
            )
        if isinstance(transaction.body, Step):
            check_sender(state, transaction)
        queue = self._queues.get(transaction.sender, {})
        waiting = {
            number: self._entries[transaction_id]
            for number, transaction_id in queue.items()
            if number >= account.sequence
        }
        replaced = waiting.pop(transaction.sequence, None)
        if replaced and (
            transaction.fee * 10 < replaced.transaction.fee * 11 or not transaction.fee
        ):
            raise refusal(
                "replacement",
                f"{replaced.transaction.id.hex()} waits with the same sequence; to replace it, the fee has to be "
                "10 % higher.",
            )
        of_sender = [entry.transaction for entry in waiting.values()] + [transaction]
        given = 0 if account.has_faucet else max(income(self._genesis, each) for each in of_sender)
        if sum(map(spent, of_sender)) > account.balance + given:
            raise refusal("balance", "its sender cannot pay for it and all that waits of it.")
        return replaced

    def _make_room(self, size: int, rate: float) -> None:
        """Drop what pays less per byte, with what follows it of its sender, until there is room; or nothing."""
        going: dict[bytes, Transaction] = {}
        looked_at: list[_Entry] = []
        size_bytes = self.size_bytes + size
        while size_bytes > MAX_BYTES or len(self) - len(going) >= MAX_TRANSACTIONS:
            looked_at.append(cheapest := self._pop())
            if cheapest.rate >= rate:
                for entry in looked_at:
                    self._push(entry)
                raise refusal(
                    "full", f"too little of what waits pays less than {rate:.6g} µPAI per byte."
                )
            first = cheapest.transaction
            for number, transaction_id in self._queues[first.sender].items():
                if number >= first.sequence and transaction_id not in going:
                    going[transaction_id] = self._entries[transaction_id].transaction
                    size_bytes -= going[transaction_id].size
        for transaction in going.values():
            self._drop(transaction)

    def _head(self, sender: bytes, draft: State | Draft) -> tuple[float, int, Transaction] | None:
        """Return the sender's next transaction as a heap has it: best paying first, then earliest."""
        transaction_id = self._queues.get(sender, {}).get(draft.account(sender).sequence)
        if transaction_id is None:
            return None
        entry = self._entries[transaction_id]
        return -entry.rate, entry.number, entry.transaction

    def _push(self, entry: _Entry) -> None:
        heapq.heappush(self._cheapest, (entry.rate, -entry.number, entry.transaction.id))
        if len(self._cheapest) > 2 * MAX_TRANSACTIONS + len(self):
            self._cheapest = [
                (each.rate, -each.number, each.transaction.id) for each in self._entries.values()
            ]
            heapq.heapify(self._cheapest)

    def _pop(self) -> _Entry:
        while True:
            transaction_id = heapq.heappop(self._cheapest)[2]
            if transaction_id in self._entries:
                return self._entries[transaction_id]

    def _drop(self, transaction: Transaction) -> None:
        del self._entries[transaction.id]
        self.size_bytes -= transaction.size
        queue = self._queues[transaction.sender]
        del queue[transaction.sequence]
        if not queue:
            del self._queues[transaction.sender]
