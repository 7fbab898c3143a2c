"""Which task a committee trains: the client's that pays best, else the network's own.

What is chosen follows from the chain and from certified slots alone, so members choose alike; one that is behind
for a moment waits for the others.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from pocqueue.pouw.chain.records import MINER, TaskRecord
from pocqueue.pouw.chain.tasks import TaskModel
from pocqueue.pouw.errors import PouwError, SlotError
from pocqueue.pouw.flow.core import Core, now_ms
from pocqueue.pouw.flow.matching import Matching
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.slots.history import SlotHistory
from pocqueue.pouw.slots.task import LAP
from pocqueue.pouw.wire.codec import decode
from pocqueue.pouw.wire.slots import Certificate

#: Blocks that are looked at for the newest filler.
_LOOKED_BACK = 1000
#: A task that is in trouble is tried again after this.
_PAUSE_MS = 30_000
#: Tasks that are looked at for a choice. Where more could be trained, those that were looked at in vain pause.
_LOOKED_AT: Final = 32
#: After so many slots in a row without a message a task is left; for this long, and longer each time.
_EMPTY_SLOTS: Final = 2 * LAP
_REST_MS: Final = 600_000

#: Says whether a client's task is not to be trained any more; it may raise a PouwError.
IsOver = Callable[[bytes, TaskRecord], Awaitable[bool]]

_log = logging.getLogger(__name__)


class TaskChoice:
    """What is to be trained next.

    Args:
        core, slots: of the node.
        matching: who trains which slot.
        is_over: of clients' tasks.
    """

    def __init__(self, core: Core, slots: SlotFlow, matching: Matching, is_over: IsOver) -> None:
        self._core, self._slots, self._is_over = core, slots, is_over
        self._matching = matching
        #: Until when (ms) a client's task is not looked at.
        self._pauses: dict[bytes, int] = {}
        self._generation: int | None = None
        #: Id of an anchor, and what is open there, what pays best first, with how many miners each wants.
        self._best: tuple[bytes, list[tuple[bytes, TaskRecord, int]]] = (b"", [])

    async def chosen(self) -> bytes:
        """Return what is to be trained: the client's task that is final, not over and pays best for a lap, else the
        filler. What goes wrong with one of them holds up no other.
        """
        core = self._core
        some = list(itertools.islice(self._possible(), _LOOKED_AT + 1))
        for task, record in some[:_LOOKED_AT]:
            try:
                if await self._is_due(task, record):
                    return task
                if len(some) > _LOOKED_AT:
                    self._pauses[task] = now_ms() + _PAUSE_MS
            except PouwError as exc:
                self._pauses[task] = now_ms() + _PAUSE_MS
                _log.error("%s Task %s waits: %s", core.name, record.name, exc)
        return await self._filler()

    async def allows(self, task: bytes) -> bool:
        """Say whether a leader may choose a task: a client's that is final and open, or the current filler, or the next.

        Which of them it has to be depends on when it looked, so that is left to it.
        """
        genesis = self._core.genesis
        if genesis.is_filler(task):
            current = await self._filler()
            return task in (current, genesis.filler_task((genesis.generation(current) or 0) + 1))
        return task in self._core.chain.anchor.state.open_tasks() and self._is_open(task)

    async def allows_empty(self, task: bytes, newest: Certificate | None) -> bool:
        """Say whether a leader may choose a task, that `allows` allows, for a slot without a message.

        Such slots count towards what a client pays for. So its task neither rests nor is over; and it is that of the
        turn before, or it pays no less than what this member would choose, which may have put it off.

        Args:
            task: its id.
            newest: certificate of the turn before.
        """
        if self._core.genesis.is_filler(task):
            return True
        waiting = self._core.chain.anchor.state.open_tasks()
        record = waiting.get(task)
        if record is None or now_ms() < _rests_until(await self._slots.history(task)):
            return False
        if newest is not None and newest.task == task:
            return not await self._is_over(task, record)
        chosen = await self.chosen()
        better = waiting.get(chosen)
        if better is not None and _turn((chosen, better)) < _turn((task, record)):
            return False
        return chosen == task or await self._is_due(task, record)

    def note(self, history: SlotHistory) -> None:
        """Tell if a client's task is left for a while with the slot that was certified last."""
        is_client = not self._core.genesis.is_filler(history.task.id)
        if is_client and history.num_empty and history.num_empty % _EMPTY_SLOTS == 0:
            _log.warning(
                "%s Task %s is left for %d min: nobody trains it",
                self._core.name,
                self._core.genesis.task_name(history.task.id),
                history.num_empty // _EMPTY_SLOTS * _REST_MS // 60_000,
            )

    def _possible(self) -> Iterator[tuple[bytes, TaskRecord]]:
        """Yield the open tasks that there are miners and data for, what pays best first."""
        chain, now = self._core.chain, now_ms()
        if self._best[0] != chain.anchor.id:
            waiting = chain.anchor.state.open_tasks()
            self._pauses = {task: ms for task, ms in self._pauses.items() if task in waiting}
            best_first = [
                (task, record, decode(record.requirements, TaskModel).min_miners)
                for task, record in sorted(waiting.items(), key=_turn)
            ]
            self._best = (chain.anchor.id, best_first)
        if not self._best[1]:
            return
        miners = len(chain.tip.state.live_tickets(MINER))
        for task, record, min_miners in self._best[1]:
            if min_miners > miners or now < self._pauses.get(task, 0):
                continue
            if self._is_open(task) and self._core.has_data(task):
                yield task, record

    def _is_open(self, task: bytes) -> bool:
        record = self._core.chain.tip.state.task(task)
        return record is not None and not record.closing and record.outcome is None

    async def _is_due(self, task: bytes, record: TaskRecord) -> bool:
        """Say whether a client's task that there are miners and data for is to be trained."""
        if await self._is_over(task, record):
            return False
        history = await self._slots.history(task)
        if now_ms() < _rests_until(history):
            return False
        try:
            await self._matching.accounts(task, history.next_slot)
        except SlotError as exc:
            if exc.rule != "matched":
                raise
            return False  # the next turn's beacon may match more
        return True

    async def _filler(self) -> bytes:
        """Return the filler task that is not over yet."""
        core = self._core
        if self._generation is None:
            self._generation = await core.in_chain(self._newest_generation)
        while True:
            task = core.genesis.filler_task(self._generation)
            if await self._slots.num_slots(task) < core.genesis.parameters.filler_slots:
                return task
            self._generation += 1

    def _newest_generation(self) -> int:
        """Return which filler is the newest that slots or blocks are of. In the chain's thread."""
        genesis, tip = self._core.genesis, self._core.chain.tip
        blocks = itertools.islice(self._core.chain.ancestors(tip.id), _LOOKED_BACK)
        known = (self._slots.newest[0], *(header.task for header in blocks))
        return max(genesis.generation(task) or 0 for task in known)


def _rests_until(history: SlotHistory) -> int:
    """Return until when a task is left because nobody trains it, in ms since 1970; 0: it is not."""
    if history.parent is None or history.num_empty == 0 or history.num_empty % _EMPTY_SLOTS:
        return 0
    return history.parent.time_ms + history.num_empty // _EMPTY_SLOTS * _REST_MS


def _turn(item: tuple[bytes, TaskRecord]) -> tuple[int, int, bytes]:
    """Return the place of an open task: what pays most for a lap's training is first, then the oldest."""
    task, record = item
    laps = decode(record.requirements, TaskModel).max_epochs
    return (-(record.training_fee // laps), record.height, task)
