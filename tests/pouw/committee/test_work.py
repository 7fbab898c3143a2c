"""Who has worked on a task: the same table whoever makes it."""

from __future__ import annotations

from pocqueue.pouw.committee.work import work_table
from pocqueue.pouw.wire.transactions import MAX_WORKERS

A, B = b"a" * 33, b"b" * 33


def test_slots_times_parts_by_account() -> None:
    """Ascending, whatever the order of rows; slots that do not count are left out."""
    rows = [(0, B, 2), (1, A, 8), (1, B, 1), (2, A, 1)]
    assert work_table(rows, 2) == ((A, 8, 0), (B, 3, 0))
    assert work_table(rows[::-1], 3) == ((A, 9, 0), (B, 3, 0))
    assert work_table([], 3) == ()


def test_twenty_missed_slots_in_a_row_are_counted() -> None:
    """From an account's first message on: before it nobody waited for it."""
    assert work_table([(30, A, 1)], 50) == ((A, 1, 0),)
    assert work_table([(30, A, 1)], 51) == ((A, 1, 1),)
    assert work_table([(0, A, 1), (20, A, 1), (41, A, 1)], 42) == ((A, 3, 1),)
    assert work_table([(0, A, 1)], 61) == ((A, 1, 3),)


def test_terms_without_any_message_are_not_missed() -> None:
    """An account that is not matched for a term has a rest in it."""
    rows = [(0, A, 1), (128, A, 1), (148, A, 1)]
    assert work_table(rows, 192) == ((A, 3, 3 + 0 + 2),)
    assert work_table([(60, A, 1)], 128) == ((A, 1, 0),)


def test_those_who_did_most_are_named() -> None:
    """As many as a statement has room for."""
    rows = [(0, number.to_bytes(33, "big"), 1 + number % 8) for number in range(300)]
    table = work_table(rows, 1)
    assert len(table) == MAX_WORKERS
    assert table == tuple(sorted(table))
    named = {who for who, _, _ in table}
    assert max(parts for _, who, parts in rows if who not in named) <= min(it[1] for it in table)
