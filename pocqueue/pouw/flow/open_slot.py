"""The slot that a member would propose: of the task that is chosen, with the messages that are here."""

from __future__ import annotations

import time

from pocqueue.pouw.committee.turn import Turn
from pocqueue.pouw.flow.core import Core, now_ms
from pocqueue.pouw.flow.lanes import Lanes
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.flow.task_choice import TaskChoice
from pocqueue.pouw.slots.collector import Anchor, Collector
from pocqueue.pouw.slots.history import Lane, SlotHistory, Unsigned
from pocqueue.pouw.slots.task import LAP
from pocqueue.pouw.wire.slots import Certificate, SlotRecord

#: Tasks whose collectors are kept: what they know of how long lanes take.
_KEPT = 4
#: A choice of the task stands so long within a turn.
_CHOSEN_S = 1.0


class OpenSlot:
    """The open slot of the chosen task.

    Args:
        core, slots: of the node.
        choice: chooses the task.
        lanes: whose messages are waited for, and certified.
    """

    def __init__(self, core: Core, slots: SlotFlow, choice: TaskChoice, lanes: Lanes) -> None:
        self._core, self._slots, self._choice, self._lanes = core, slots, choice, lanes
        self._collectors: dict[bytes, tuple[SlotHistory, Collector]] = {}
        #: What was chosen, at which turn, tip and anchor, and until when (monotonic) that stands.
        self._chosen: tuple[tuple[int, bytes, bytes], float, bytes] | None = None
        #: What was proposed last of a private task, and by task and lane from which slot on it is proposed again.
        self._tried: Unsigned | None = None
        self._left_out: dict[tuple[bytes, Lane], int] = {}

    async def closes_at(self, newest: Certificate | None) -> int:
        """Return when the slot is to be closed if no other message comes, in ms since 1970.

        Args:
            newest: certificate of the turn before. The first slot after one of another task is closed at once: nobody
                works for it before it is certified.
        """
        history, collector = await self._collector()
        if newest is not None and newest.task != history.task.id:
            return newest.time_ms + self._core.genesis.parameters.slot_ms
        awaited = await self._lanes.awaited(history.task.id, history.next_slot)
        return await self._slots.with_history(history, collector.closes_at, now_ms(), awaited)

    async def value(self, turn: Turn, anchor: Anchor, newest: Certificate | None) -> Unsigned:
        """Return the slot as it would be proposed now; see `Collector.value`."""
        history, collector = await self._collector()
        task, slot, is_shown = history.task, history.next_slot, self._core.is_shown
        limits = await self._lanes.limits(task.id, slot)
        if self._tried is not None and self._tried.certificate.turn == turn.number:
            self._leave_out(self._tried, ())  # an earlier ballot of this turn was in vain
        left_out = {
            lane for (of, lane), end in self._left_out.items() if of == task.id and slot < end
        }
        found = await self._slots.with_messages(
            history,
            collector.value,
            now_ms(),
            turn.committee.epoch,
            anchor,
            newest,
            lambda lane: (
                lane[1] < limits.get(lane[0], 0)
                and lane not in left_out
                and is_shown(history, slot, lane)
            ),
        )
        self._tried = None if task.noise is None else found
        return found

    def certified(self, record: SlotRecord) -> None:
        """Hear what a turn has come to.

        A miner may show the noise of its message to some members alone: whoever leads and was shown it proposes it, and
        the others wait for it in vain. So what was proposed of a private task and not certified is left out for a lap.
        """
        tried, self._tried = self._tried, None
        if tried is not None and tried.certificate.turn == record.signed.certificate.turn:
            self._leave_out(tried, record.ids)

    def drop(self) -> None:
        """Wait for nothing any more."""
        self._slots.collect(None)

    def _leave_out(self, tried: Unsigned, certified: tuple[bytes, ...]) -> None:
        task, slot = tried.certificate.task, tried.certificate.slot
        kept = {at: end for at, end in self._left_out.items() if at[0] == task and slot < end}
        iterations = [message.iteration for message in tried.messages]
        self._left_out = kept | {
            (task, one.order): slot + LAP for one in iterations if one.id not in certified
        }

    async def _task(self) -> bytes:
        chain, now_s = self._core.chain, time.monotonic()
        at = (self._slots.next_turn, chain.tip.id, chain.anchor.id)
        if self._chosen is None or self._chosen[0] != at or now_s >= self._chosen[1]:
            self._chosen = (at, now_s + _CHOSEN_S, await self._choice.chosen())
        return self._chosen[2]

    async def _collector(self) -> tuple[SlotHistory, Collector]:
        history = await self._slots.certified_next(await self._task())
        task = history.task.id
        known = self._collectors.get(task)
        if known is None or known[0] is not history:
            collector = Collector(history, slot_ms=self._core.genesis.parameters.slot_ms)
            known = self._collectors[task] = (history, collector)
            if len(self._collectors) > _KEPT:
                del self._collectors[next(iter(self._collectors))]
        self._slots.collect(known)
        return known
