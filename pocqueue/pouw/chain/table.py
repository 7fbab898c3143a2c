"""The state after the anchor, in memory: read by key, and by the beginning of keys in their order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from typing import Final

#: Behind a prefix it is greater than the rest of any key.
_AFTER_ALL: Final = b"\xff" * 64


class SortedTable:
    """Keys with their values; `scan` does not go through all of them."""

    def __init__(self, items: Mapping[bytes, bytes]) -> None:
        self._values = dict(items)
        self._keys = sorted(self._values)

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, None if there is none."""
        return self._values.get(key)

    def scan(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """Return the keys that begin so, with their values, ascending."""
        keys = self._keys  # read once: another thread may be moving the anchor
        first = bisect_left(keys, prefix)
        end = bisect_left(keys, prefix + _AFTER_ALL, first)
        found = [(key, self._values.get(key)) for key in keys[first:end]]
        return [(key, value) for key, value in found if value is not None]

    def change(self, diff: Mapping[bytes, bytes | None]) -> None:
        """Give keys their new values; None takes a key away."""
        keys = self._keys.copy()  # whoever scans meanwhile has the list as it was
        for key, value in diff.items():
            if value is None:
                if self._values.pop(key, None) is not None:
                    del keys[bisect_left(keys, key)]
            else:
                if key not in self._values:
                    insort(keys, key)
                self._values[key] = value
        self._keys = keys
