"""What follows a task's training: its client shows the hidden test part, evaluators say what the weights get right.

Each task is seen to beside the others: one whose files do not come holds up none of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from pocqueue.pouw.chain.mining import spec_of
from pocqueue.pouw.chain.records import EVALUATOR, Closing, TaskRecord
from pocqueue.pouw.chain.tasks import TaskModel
from pocqueue.pouw.errors import DataError, PouwError
from pocqueue.pouw.flow.core import Core, now_ms
from pocqueue.pouw.flow.datasets import Datasets
from pocqueue.pouw.flow.orders import Orders
from pocqueue.pouw.flow.slot_sync import SlotSync
from pocqueue.pouw.training.messages import Accuracy, PartName
from pocqueue.pouw.wire.codec import decode
from pocqueue.pouw.wire.data import name_of
from pocqueue.pouw.wire.transactions import Body, Result, Reveal

_LOOK_S = 1.0
#: What failed is tried again after this, while there is time.
_PAUSE_MS = 2000
#: A file of a task has so long to come from others.
_DATA_S = 60.0

_log = logging.getLogger(__name__)


class Evaluation:
    """An evaluator's work on tasks that were closed, and a client's on its own ones.

    Args:
        core, slot_sync, datasets, orders: of the node.
    """

    def __init__(self, core: Core, slot_sync: SlotSync, datasets: Datasets, orders: Orders) -> None:
        self._core, self._slot_sync = core, slot_sync
        self._datasets, self._orders = datasets, orders
        #: What was found, by task and whether on its hidden part; and until when (ms) a task is left.
        self._found: dict[tuple[bytes, bool], Accuracy] = {}
        self._pauses: dict[bytes, int] = {}
        #: Tasks that are seen to right now.
        self._busy: set[bytes] = set()

    async def run(self) -> None:
        """Show what is asked for of this node's own tasks; evaluate others', with a ticket for it."""
        async with asyncio.TaskGroup() as group:
            while True:
                self.step(group)
                await self._core.chain_changed.heard(_LOOK_S)

    def step(self, group: asyncio.TaskGroup) -> None:
        """Start what is to be done at the tip of the chain, and is not under way."""
        core, state = self._core, self._core.chain.tip.state
        closed = state.closed_tasks()
        self._found = {at: found for at, found in self._found.items() if at[0] in closed}
        self._pauses = {task: ms for task, ms in self._pauses.items() if task in closed}
        is_evaluator = state.live_ticket(core.account, EVALUATOR) is not None
        for task, record in closed.items():
            closing = record.closing
            if closing is None or task in self._busy or now_ms() < self._pauses.get(task, 0):
                continue
            if record.client == core.account:
                work = self._show(task, record, closing)
            elif is_evaluator and core.account not in state.results(task):
                work = self._evaluate(task, record, closing)
            else:
                continue
            self._busy.add(task)
            group.create_task(self._see_to(task, record, work))

    async def _see_to(
        self, task: bytes, record: TaskRecord, work: Coroutine[Any, Any, None]
    ) -> None:
        """Do what is to be done of a task; what goes wrong is tried again later."""
        try:
            await work
        except PouwError as exc:
            self._pauses[task] = now_ms() + _PAUSE_MS
            _log.warning("%s Task %s: %s", self._core.name, record.name, exc)
        finally:
            self._busy.discard(task)

    async def _show(self, task: bytes, record: TaskRecord, closing: Closing) -> None:
        """Give the hidden test part to whoever asks, and say so on the chain."""
        height, name = self._core.chain.tip.height, _test_name(record)
        if name is None or closing.is_revealed or height >= closing.asks_until:
            return
        if self._datasets.path(name) is None:
            raise DataError(f"its test part {name} is not here, so it cannot be shown.")
        await self._datasets.show(name)
        await self._send(Reveal(task))

    async def _evaluate(self, task: bytes, record: TaskRecord, closing: Closing) -> None:
        """Say what this node finds, as soon as a block may have it."""
        if not self._counts_now(closing):
            return
        found = self._found.get((task, closing.is_revealed))
        if found is None:
            found = await self._measured(task, record, closing)
            self._found[task, closing.is_revealed] = found
            _log.info(
                "%s Task %s evaluated: %d of %d right",
                *(self._core.name, record.name, found.correct, found.total),
            )
        if self._counts_now(closing):  # files take their time
            await self._send(Result(task, found.correct, found.total, found.majority))

    def _counts_now(self, closing: Closing) -> bool:
        """The next block may have a result."""
        return closing.opens_at <= self._core.chain.tip.height + 1 < closing.pays_at

    async def _measured(self, task: bytes, record: TaskRecord, closing: Closing) -> Accuracy:
        core = self._core
        spec = spec_of(core.genesis, core.chain.tip.state, task)
        if record.shape is not None and not await self._datasets.ready(record.data, _DATA_S):
            raise DataError(f"its data {record.data} do not come.")
        name, path = _test_name(record), None
        if name is not None and closing.is_revealed:
            path = await self._datasets.have(name, _DATA_S)
            if path is None:
                raise DataError(f"its test part {name} does not come.")
        theta = await self._slot_sync.weights(spec, closing.slots, closing.theta)
        if path is not None:
            try:
                return await core.trainer.accuracy(spec, theta, "test", path)
            except DataError as exc:
                # As if it had not been shown: whoever hides nothing good gains nothing by it.
                _log.warning("%s Task %s: its test part: %s", core.name, record.name, exc)
        # The test part of what is built in is everybody's.
        part: PartName = "test" if record.shape is None else "val"
        return await core.trainer.accuracy(spec, theta, part)

    async def _send(self, body: Body) -> None:
        """Send a transaction, unless one just like it is on its way."""
        if all(one.body != body for one in self._orders.own.values()):
            await self._orders.send(self._orders.make(body))


def _test_name(record: TaskRecord) -> str | None:
    """Return how data name the hidden test part of a task; None: it has none."""
    test_hash = decode(record.requirements, TaskModel).test_hash
    return None if test_hash is None else name_of(test_hash)
