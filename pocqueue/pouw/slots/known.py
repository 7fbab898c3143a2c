"""Signatures that were checked: one comes from its committee's members, in its record and in proofs of blocks."""

from __future__ import annotations

import threading
from collections import OrderedDict

_MAX_KNOWN = 4096

#: Key, digest and signature.
Triple = tuple[bytes, bytes, bytes]


class KnownSignatures:
    """Those that were found right last. From any thread.

    Wrong ones are not kept: whoever sends such pushes no right ones out.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Triple, None] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, one: Triple) -> bool:
        return one in self._known

    def add(self, one: Triple) -> None:
        """Remember one, and forget the oldest if there are too many."""
        with self._lock:
            self._known[one] = None
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
