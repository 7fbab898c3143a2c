"""What a member of a committee would propose: when a task's open slot is to be closed, and with which messages.

Time is an argument, nothing is signed, sent or written here.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from pocqueue.pouw.slots.history import Lane, SlotHistory, Unsigned
from pocqueue.pouw.slots.maps import decode_map
from pocqueue.pouw.slots.messages import WINDOW
from pocqueue.pouw.slots.task import LAP
from pocqueue.pouw.slots.weights import next_weights, weights_hash
from pocqueue.pouw.wire.hashes import ZERO, merkle_root
from pocqueue.pouw.wire.requests import IterationWithMap
from pocqueue.pouw.wire.slots import MAX_LANES, Certificate

#: A slot that nobody has a message of is closed after this, so that anchors move ...
IDLE_MS: Final = 5000
#: ... and the next one after twice as long, up to this, while lanes are awaited: they may be slow.
MAX_IDLE_MS: Final = 120_000
#: A slot is kept open for late lanes at least this long ...
MIN_WAIT_MS: Final = 300
#: ... and so many times what half of the messages have taken lately.
WAIT_FACTOR: Final = 2
#: A lane that has missed so many slots in a row is not waited for.
MISSES: Final = LAP
#: Bytes of the messages and maps of a slot: it fits into one answer (`wire.requests.Slots`).
MAX_SLOT_BYTES: Final = 1_500_000
#: Of a message beside its map, with room to spare.
_MESSAGE_BYTES: Final = 512
_REMEMBERED = 64


class Anchor(NamedTuple):
    """A block that a certificate makes final."""

    id: bytes
    height: int


class Collector:
    """Looks when slots of one task are to be closed. Of one thread, the same as its history's.

    Args:
        history: of the task.
        slot_ms: a slot is not shorter than this; 0: as short as it can be.
    """

    def __init__(self, history: SlotHistory, *, slot_ms: int) -> None:
        self._history = history
        self._slot_ms = slot_ms
        # Slots in a row that nobody had a message of though some were awaited; and whether some are now.
        self._num_empty, self._is_awaited = 0, False
        # When the open slot and those just before it began.
        self._opened: dict[int, int] = {}
        # Milliseconds from a slot's beginning to a message of it, also of one that came too late.
        self._delays: deque[int] = deque(maxlen=_REMEMBERED)
        # Newest slot that a lane's message came for, or the one before the first in which it was awaited.
        self._heard: dict[Lane, int] = {}

    def add(self, message: IterationWithMap, now_ms: int) -> bool:
        """Keep a checked message (`messages.check`) for its slot.

        Returns:
            Whether it is new and worth passing on, as `SlotHistory.keep`.
        """
        self._begin(now_ms)
        iteration = message.iteration
        if iteration.slot in self._opened and iteration.slot > self._heard.get(iteration.order, -1):
            self._heard[iteration.order] = iteration.slot
            self._delays.append(now_ms - self._opened[iteration.slot])
        return self._history.keep(message)

    def closes_at(self, now_ms: int, lanes: Collection[Lane]) -> int:
        """Return when the open slot is to be closed if no other message comes, in ms since 1970.

        Args:
            now_ms: Unix time.
            lanes: those that take part: their messages are waited for, a while.
        """
        began = self._begin(now_ms)
        slot = self._history.next_slot
        self._heard = {lane: self._heard.get(lane, slot - 1) for lane in lanes}
        awaited = {lane for lane, heard in self._heard.items() if slot - heard <= MISSES}
        self._is_awaited = bool(awaited)
        return began + self._length(self._history.pending()[:MAX_LANES], awaited)

    def value(
        self,
        now_ms: int,
        epoch: int,
        anchor: Anchor,
        newest: Certificate | None,
        takes_part: Callable[[Lane], bool] = lambda _lane: True,
    ) -> Unsigned:
        """Return the open slot with what is here of it, to be proposed.

        Args:
            now_ms: Unix time. The certificate's is not before those that it follows on.
            epoch: of the committee.
            anchor: block to name as final. One that is not higher than the newest certificate's is not taken.
            newest: the newest certificate of all tasks.
            takes_part: whose messages may be certified.
        """
        history, task, parent = self._history, self._history.task, self._history.parent
        for before in (newest, parent):
            if before is not None:
                now_ms = max(now_ms, before.time_ms)
                if anchor.height <= before.anchor_height:
                    anchor = Anchor(before.anchor, before.anchor_height)
        ready = [one for one in history.pending() if takes_part(one.iteration.order)]
        chosen = _fitting(ready[:MAX_LANES], history.next_slot, task.max_messages)
        ids = [message.iteration.id for message in chosen]
        maps = [decode_map(message.map, task.num_weights, task.cap) for message in chosen]
        weights = next_weights(task, history.weights, maps)
        certificate = Certificate(
            network=history.network,
            epoch=epoch,
            turn=0 if newest is None else newest.turn + 1,
            parent=ZERO if newest is None else newest.id,
            task=task.id,
            slot=history.next_slot,
            ballot=0,
            previous=history.previous,
            root=merkle_root(ids),
            count=len(ids),
            theta=weights_hash(weights),
            anchor=anchor.id,
            anchor_height=anchor.height,
            time_ms=now_ms,
        )
        return Unsigned(certificate, tuple(chosen), weights)

    def _begin(self, now_ms: int) -> int:
        """Return when the open slot began: now, if nothing was heard of it yet."""
        slot = self._history.next_slot
        if slot not in self._opened:
            before = self._history.parent
            is_next = before is not None and before.slot in self._opened
            was_empty = is_next and before is not None and not before.count and self._is_awaited
            self._num_empty = self._num_empty + 1 if was_empty else 0
        began = self._opened.setdefault(slot, now_ms)
        if began > now_ms:  # the clock was set back
            self._opened = {slot: now_ms}
        elif len(self._opened) > WINDOW + 1:
            self._opened = {at: ms for at, ms in self._opened.items() if at >= slot - WINDOW}
        return self._opened[slot]

    def _length(self, ready: Collection[IterationWithMap], awaited: set[Lane]) -> int:
        """Return how many milliseconds the open slot lasts, if no other message comes."""
        if not ready:
            # At most MISSES of them are awaited in vain, so the shift is small.
            doubled = min(IDLE_MS << self._num_empty, MAX_IDLE_MS)
            return max(self._slot_ms, doubled if awaited else IDLE_MS)
        if awaited <= {message.iteration.order for message in ready}:
            return self._slot_ms
        # With half of the lanes, not the slowest one: a few cannot hold all others up more and more.
        usual = statistics.median(self._delays) if self._delays else IDLE_MS
        return max(self._slot_ms, MIN_WAIT_MS, int(WAIT_FACTOR * usual))


def _fitting(ready: list[IterationWithMap], slot: int, most: int) -> list[IterationWithMap]:
    """Return the messages that a slot has room for, in their order; each slot begins with another lane."""
    first = slot % len(ready) if ready else 0
    chosen, size = list[IterationWithMap](), 0
    for message in (ready[first:] + ready[:first])[:most]:
        size += _MESSAGE_BYTES + len(message.map)
        if size > MAX_SLOT_BYTES:
            break
        chosen.append(message)
    return sorted(chosen, key=lambda message: message.iteration.order)
