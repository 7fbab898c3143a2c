"""The table below the layers: as a plain dictionary, only that ranges are found without going through all."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import pytest
from hypothesis import given, strategies as st

from pocqueue.pouw.chain import table as table_module
from pocqueue.pouw.chain.state import MemoryTable
from pocqueue.pouw.chain.table import SortedTable

_KEYS = st.text("ab\xff", max_size=4).map(lambda text: text.encode("latin-1"))
_DIFFS = st.lists(st.dictionaries(_KEYS, st.none() | st.binary(max_size=2)), max_size=5)


@given(st.dictionaries(_KEYS, st.binary(max_size=2)), _DIFFS, _KEYS)
def test_it_is_a_sorted_dictionary(
    items: dict[bytes, bytes], diffs: list[dict[bytes, bytes | None]], prefix: bytes
) -> None:
    """After any changes, for any prefix."""
    table, plain = SortedTable(items), MemoryTable(items)
    for diff in diffs:
        table.change(diff)
        plain.update({key: value for key, value in diff.items() if value is not None})
        for key in [key for key, value in diff.items() if value is None]:
            plain.pop(key, None)
    assert table.scan(prefix) == sorted(plain.scan(prefix))
    assert table.get(prefix) == plain.get(prefix)


@pytest.mark.parametrize("diff", [{b"a0": b"new"}, {b"a1": None}])
def test_a_scan_meanwhile_finds_what_was_there(
    monkeypatch: pytest.MonkeyPatch, diff: dict[bytes, bytes | None]
) -> None:
    """Another thread moves the anchor between the two looks for the ends of the range."""
    table = SortedTable({key: key for key in (b"a1", b"b1", b"b2", b"c1")})

    def found(*args: Any) -> int:
        monkeypatch.setattr(table_module, "bisect_left", bisect_left)
        at = bisect_left(*args)
        table.change(diff)
        return at

    monkeypatch.setattr(table_module, "bisect_left", found)
    assert table.scan(b"b") == [(b"b1", b"b1"), (b"b2", b"b2")]
