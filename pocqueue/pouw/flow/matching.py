"""Who trains a slot of a client's task: matched anew for each term of 64 slots, from what is certified.

The beacon of a term is that of the certificate of the turn before its first slot, and the state that of that
certificate's anchor. So all who have the same certificates match alike; and while too few miners are matched for a
term, the next turn's beacon decides anew. If those who are matched do nothing, everybody trains the rest of the term.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from pocqueue.pouw.chain.records import MINER
from pocqueue.pouw.chain.tasks import TaskModel
from pocqueue.pouw.committee.matching import matched
from pocqueue.pouw.committee.work import TERM
from pocqueue.pouw.errors import ChainError, SlotError
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.slots.slot_store import SlotStore
from pocqueue.pouw.wire.codec import decode
from pocqueue.pouw.wire.slots import SignedCertificate

_KEPT: Final = 64
#: Slots after a term's first one in which those who are matched have to show up.
_TRIED: Final = 2


class Matching:
    """The matches of a node's tasks. Of its event loop.

    Args:
        core, slots, store: of the node.
    """

    def __init__(self, core: Core, slots: SlotFlow, store: SlotStore) -> None:
        self._core, self._slots, self._store = core, slots, store
        #: With the number of miners among them, by task and certificate whose beacon decided.
        self._matched: OrderedDict[tuple[bytes, bytes], tuple[frozenset[bytes], int]] = (
            OrderedDict()
        )
        self._idle: OrderedDict[tuple[bytes, int], bool] = OrderedDict()
        #: What decided terms that have begun, by task and first slot.
        self._begun: OrderedDict[tuple[bytes, int], SignedCertificate | None] = OrderedDict()

    async def accounts(self, task: bytes, slot: int) -> frozenset[bytes] | None:
        """Return the accounts that train a slot of a task: of its open one, or of one that is certified.

        Returns:
            None: everybody does.

        Raises:
            SlotError: ``missing``: what decides is not here; ``matched``: too few are, so that slot is not to be
                certified in this turn.
        """
        if self._core.genesis.is_filler(task):
            return None
        record = self._core.chain.tip.state.task(task)
        if record is None:
            raise SlotError("missing", f"{task.hex()} is no task of the chain here.")
        first = slot - slot % TERM
        if slot > first + _TRIED and await self._is_idle(task, first):
            return None
        before = await self._before(task, first)
        if before is None:  # the very first turn of a network
            return None
        key = (task, before.certificate.id)
        if key not in self._matched:
            try:
                state = await self._core.in_chain(
                    self._core.chain.state_at, before.certificate.anchor
                )
            except ChainError as exc:
                raise SlotError("missing", str(exc)) from None
            found = await self._core.in_chain(matched, state, before.beacon, task, record)
            # A supervisor may train as well, but nobody knows whether it does.
            miners = sum(state.live_ticket(account, MINER) is not None for account in found)
            self._matched[key] = (found, miners)
            if len(self._matched) > _KEPT:
                self._matched.popitem(last=False)
        found, miners = self._matched[key]
        least = decode(record.requirements, TaskModel).min_miners
        if miners < least:
            raise SlotError("matched", f"{miners} of {least} miners that task {record.name} wants.")
        return found

    async def _is_idle(self, task: bytes, first: int) -> bool:
        """Nobody had a message in a term's second and third slot; the first one may be closed at once."""
        if (task, first) not in self._idle:
            slots = range(first + 1, first + 1 + _TRIED)
            counts = await self._slots.in_slots(self._store.counts, task, slots)
            if len(counts) < _TRIED:
                raise SlotError("missing", f"slots {slots[0]} and {slots[-1]} of {task.hex()}.")
            self._idle[task, first] = not any(counts)
            if len(self._idle) > _KEPT:
                self._idle.popitem(last=False)
        return self._idle[task, first]

    async def _before(self, task: bytes, first: int) -> SignedCertificate | None:
        """Return the certificate of the turn before a term's first slot, which may be open."""
        history = await self._slots.history(task)
        if history.next_slot <= first:
            return self._slots.newest[2]
        if (task, first) not in self._begun:
            found = await self._slots.in_slots(self._store.before, task, first)
            self._begun[task, first] = found
            if len(self._begun) > _KEPT:
                self._begun.popitem(last=False)
        return self._begun[task, first]
