"""Who has worked on a task, as its committee says it at the end: the same table at every member."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Final

from pocqueue.pouw.wire.transactions import MAX_WORKERS

#: So many slots missed in a row count against an account.
MISSED_RUN: Final = 20

#: By account, ascending: certified slots x parts, and how often `MISSED_RUN` slots in a row were missed.
WorkTable = tuple[tuple[bytes, int, int], ...]


def work_table(
    rows: Iterable[tuple[int, bytes, int]],
    num_slots: int,
    takes_part: Callable[[bytes, int], bool] = lambda _account, _slot: True,
) -> WorkTable:
    """Return `Close.work` of a task: of those who did most, if there are more than it can name.

    Args:
        rows: slot, account and parts of all certified messages.
        num_slots: that count; messages of later ones do not.
        takes_part: says whether an account was to train a slot; what it misses otherwise is not missed.
    """
    done: dict[bytes, int] = defaultdict(int)
    slots: dict[bytes, set[int]] = defaultdict(set)
    for slot, account, parts in rows:
        if slot < num_slots:
            done[account] += parts
            slots[account].add(slot)
    most = heapq.nlargest(MAX_WORKERS, done.items(), key=itemgetter(1, 0))
    return tuple(
        (account, parts, _runs(account, slots[account], num_slots, takes_part))
        for account, parts in sorted(most)
    )


def _runs(
    account: bytes, had: set[int], num_slots: int, takes_part: Callable[[bytes, int], bool]
) -> int:
    """Return how often an account that has begun to work missed so many slots in a row."""
    runs = missed = 0
    for slot in range(min(had), num_slots):
        missed = missed + 1 if slot not in had and takes_part(account, slot) else 0
        if missed == MISSED_RUN:
            runs, missed = runs + 1, 0
    return runs
