"""Who has worked on a task, as its committee says it at the end: the same table at every member."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable
from operator import itemgetter
from typing import Final

from pocqueue.pouw.wire.transactions import MAX_WORKERS

#: Slots for which accounts are matched (`matching`).
TERM: Final = 64
#: So many slots missed in a row count against an account.
MISSED_RUN: Final = 20

#: By account, ascending: certified slots x parts, and how often `MISSED_RUN` slots in a row were missed.
WorkTable = tuple[tuple[bytes, int, int], ...]


def work_table(rows: Iterable[tuple[int, bytes, int]], num_slots: int) -> WorkTable:
    """Return `Close.work` of a task: of those who did most, if there are more than it can name.

    Args:
        rows: slot, account and parts of all certified messages.
        num_slots: that count; messages of later ones do not.
    """
    done: dict[bytes, int] = defaultdict(int)
    slots: dict[bytes, set[int]] = defaultdict(set)
    for slot, account, parts in rows:
        if slot < num_slots:
            done[account] += parts
            slots[account].add(slot)
    most = heapq.nlargest(MAX_WORKERS, done.items(), key=itemgetter(1, 0))
    return tuple(
        (account, parts, _runs(slots[account], num_slots)) for account, parts in sorted(most)
    )


def _runs(had: set[int], num_slots: int) -> int:
    """Return how often an account missed so many slots in a row, in terms that it has begun to work in.

    In those it was matched; whether it was in others, it may have had a rest.
    """
    runs = 0
    begun: dict[int, int] = {}
    for slot in sorted(had, reverse=True):
        begun[slot // TERM] = slot
    for term, first in begun.items():
        missed = 0
        for slot in range(first, min((term + 1) * TERM, num_slots)):
            missed = 0 if slot in had else missed + 1
            if missed == MISSED_RUN:
                runs, missed = runs + 1, 0
    return runs
