"""Histories of tasks: of those that the chain or the genesis names, and in memory those that were used last."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pocqueue.pouw.chain.mining import spec_of
from pocqueue.pouw.errors import SlotError, UnknownTask
from pocqueue.pouw.flow.core import Core
from pocqueue.pouw.slots.history import SlotHistory
from pocqueue.pouw.slots.slot_store import SlotStore

#: In memory at a time; the others are read again when they are needed.
MAX_HISTORIES = 16


class Histories:
    """The histories of a node. Of its event loop; what takes longer is done in the slots' thread.

    Args:
        core, store: of the node.
        in_slots: does something in that thread.
    """

    def __init__(
        self, core: Core, store: SlotStore, in_slots: Callable[..., Awaitable[Any]]
    ) -> None:
        self._core, self._store, self._in_slots = core, store, in_slots
        self._kept: dict[bytes, SlotHistory] = {}

    def get(self, task: bytes) -> SlotHistory | None:
        """Return a task's history if it is in memory."""
        return self._kept.get(task)

    async def of(self, task: bytes) -> SlotHistory:
        """Return a task's history as far as this node has it; one that it has nothing of begins at slot 0.

        Raises:
            SlotError: ``missing``: the task's order is not in the chain here, and it is no filler.
        """
        if task not in self._kept:
            found = await self._in_slots(self._read, task)
            if task not in self._kept:
                return self.put(found)
        # The newest one is at the end.
        return self.put(self._kept[task])

    def put(self, history: SlotHistory) -> SlotHistory:
        """Use this history of its task from now on; return it."""
        self._kept.pop(history.task.id, None)
        self._kept[history.task.id] = history
        if len(self._kept) > MAX_HISTORIES:
            del self._kept[next(iter(self._kept))]
        return history

    def forget(self, task: bytes) -> None:
        """Read a task's history again when it is needed next."""
        self._kept.pop(task, None)

    def _read(self, task: bytes) -> SlotHistory:
        try:
            spec = spec_of(self._core.genesis, self._core.chain.tip.state, task)
        except UnknownTask as exc:
            raise SlotError("missing", str(exc)) from None
        return self._store.history(spec)
