"""The end of a client's training: each supervisor sees for itself when a task is over and what is to be said of it.

What is said goes to the chain as one `Close` with the committee's signature. A member signs only what it finds
itself: the same slots, weights and work, and a count of right answers within 2 % of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from pocqueue.pouw.chain.payout import TRAINED, is_near
from pocqueue.pouw.chain.records import MINER, TaskRecord
from pocqueue.pouw.chain.tasks import MILLION, TaskModel
from pocqueue.pouw.committee.work import WorkTable, work_table
from pocqueue.pouw.errors import InvalidTransaction, PouwError, SlotError
from pocqueue.pouw.flow.core import Core, now_ms
from pocqueue.pouw.flow.orders import Orders
from pocqueue.pouw.flow.slots import SlotFlow
from pocqueue.pouw.flow.statements import Statements
from pocqueue.pouw.slots.history import SlotHistory
from pocqueue.pouw.slots.slot_store import SlotStore
from pocqueue.pouw.slots.task import LAP, TaskSpec
from pocqueue.pouw.slots.weights import weights_hash
from pocqueue.pouw.training.messages import PartName
from pocqueue.pouw.wire.codec import decode
from pocqueue.pouw.wire.hashes import ZERO
from pocqueue.pouw.wire.statements import UNSIGNED
from pocqueue.pouw.wire.transactions import REASONS, Close

#: If messages of the first so many slots move less than a weight each, its client has chosen too large a tau.
_TRIED = 2 * LAP
#: Clocks of members differ by so much.
_CLOCKS_MS = 5000
#: A task whose end is in trouble is looked at again after this.
_PAUSE_MS = 30_000
_LOOK_S = 1.0
#: Tasks that are looked at at a time.
_LOOKED_AT = 32
#: Whoever comes next in a committee says how a task went if the one before has not, after this.
_TURN_MS = 5000

#: The others of a committee have so long to find a statement right.
_SIGN_S = 20.0

_log = logging.getLogger(__name__)


class Closings:
    """What this node finds of clients' tasks whose training is over.

    Args:
        core, slots, store, orders, statements: of the node.
        fill: has all slots of a task here; see `Gaps.fill`.
    """

    def __init__(
        self,
        core: Core,
        slots: SlotFlow,
        store: SlotStore,
        orders: Orders,
        statements: Statements,
        fill: Callable[[bytes], Awaitable[None]],
    ) -> None:
        self._core, self._slots, self._store = core, slots, store
        self._orders, self._statements, self._fill = orders, statements, fill
        statements.judges[Close] = self.judge
        #: Share of right answers of the newest look at the common model, by task.
        self.accuracy: dict[bytes, float] = {}
        #: Slots and share of right answers (`x_val`) of the newest look, by client's task.
        self._looks: dict[bytes, tuple[int, int]] = {}
        self._looking = asyncio.Lock()
        #: Whether the first slots moved anything.
        self._tried: dict[bytes, bool] = {}
        #: When a task was found to be over (ms), and until when it is not looked at.
        self._over: dict[bytes, int] = {}
        self._pauses: dict[bytes, int] = {}
        #: Where to go on among the open tasks.
        self._place = 0

    async def run(self) -> None:
        """Say of each task whose training is over how it went, until a block has it."""
        while True:
            await self._core.chain_changed.heard(_LOOK_S)
            await self.close_due()

    async def close_due(self) -> None:
        """Say of the tasks that are over and that the chain has no end of how they went.

        Of many, some are looked at now and the next ones the next time: it takes the slots' thread for each of them.
        """
        core = self._core
        committee = await self._slots.committee()
        if committee is None or core.account not in committee.members:
            return
        open_tasks = core.chain.anchor.state.open_tasks()
        self._over = {task: at for task, at in self._over.items() if task in open_tasks}
        self._pauses = {task: ms for task, ms in self._pauses.items() if task in open_tasks}
        for task, record in self._some(list(open_tasks.items())):
            if now_ms() < self._pauses.get(task, 0) or self._is_said(task):
                continue
            try:
                if not await self.is_over(task, record):
                    continue
                since_ms = now_ms() - self._over.setdefault(task, now_ms())
                place = (committee.members.index(core.account) - task[0]) % len(committee.members)
                if since_ms >= place * _TURN_MS:
                    self._pauses[task] = now_ms() + _PAUSE_MS
                    await self._close(task, record, committee.epoch)
            except InvalidTransaction as exc:
                _log.info("%s Task %s is not closed by us: %s", core.name, record.name, exc)
            except PouwError as exc:
                self._pauses[task] = now_ms() + _PAUSE_MS
                _log.error("%s Task %s is not closed yet: %s", core.name, record.name, exc)

    def _some(self, tasks: list[tuple[bytes, TaskRecord]]) -> list[tuple[bytes, TaskRecord]]:
        """Return those of the open tasks whose turn it is to be looked at."""
        if len(tasks) <= _LOOKED_AT:
            return tasks
        first = self._place % len(tasks)
        self._place = first + _LOOKED_AT
        return (tasks[first:] + tasks[:first])[:_LOOKED_AT]

    async def is_over(self, task: bytes, record: TaskRecord) -> bool:
        """Say whether a client's task is not to be trained any more.

        Raises:
            PouwError: that cannot be said now.
        """
        return await self._reason(task, record, await self._slots.num_slots(task)) is not None

    async def look(self, history: SlotHistory) -> None:
        """Count the right answers of the common model (`x_val`), where the network's rules want it."""
        if history.next_slot % (self._core.genesis.parameters.check_laps * LAP) == 0:
            await self._look(history)

    async def judge(self, close: Close) -> bool:
        """Say whether this node finds a statement right.

        Raises:
            PouwError: that cannot be said now: to this node its training is not over yet.
        """
        record = self._core.chain.tip.state.task(close.task)
        if record is None or record.closing or record.outcome:
            return False
        num_slots = await self._slots.num_slots(close.task)
        if close.reason >= len(REASONS) or num_slots - close.slots > 2 * LAP:
            return False
        reason = await self._reason(close.task, record, num_slots, early_ms=_CLOCKS_MS)
        if reason is None or num_slots < close.slots:
            raise SlotError(
                "missing", f"task {record.name} is not over at its slot {num_slots} here."
            )
        if (reason == TRAINED) != (close.reason == TRAINED):
            return False
        own = await self._statement(close.task, record, close.epoch, close.reason, close.slots)
        is_same = (close.total, close.majority) == (own.total, own.majority)
        counts = close.reason != TRAINED or (is_same and is_near(close, own))
        return counts and (close.slots, close.theta, close.work) == (
            own.slots,
            own.theta,
            own.work,
        )

    def _is_said(self, task: bytes) -> bool:
        """It is closed in the newest block, or what closes it waits for one."""
        record = self._core.chain.tip.state.task(task)
        if record is None or record.closing or record.outcome:
            return True
        waiting = (one.body for one in self._core.mempool)
        return any(isinstance(body, Close) and body.task == task for body in waiting)

    async def _close(self, task: bytes, record: TaskRecord, epoch: int) -> None:
        num_slots = await self._slots.num_slots(task)
        reason = await self._reason(task, record, num_slots)
        if reason is None:
            return
        # A lap is the least that counts: its end's weights are kept by everybody.
        statement = await self._statement(
            task, record, epoch, reason, num_slots - num_slots % LAP if num_slots >= LAP else 0
        )
        signature = await self._statements.sign(statement, _SIGN_S)
        if not self._is_said(task):
            await self._orders.send(self._orders.make(replace(statement, signature=signature)))

    async def _reason(
        self, task: bytes, record: TaskRecord, num_slots: int, early_ms: int = 0
    ) -> int | None:
        """Return why a task's training is over, as `Close.reason` has it; None: it goes on."""
        model = decode(record.requirements, TaskModel)
        is_late = now_ms() + early_ms >= record.deadline_ms
        if self._core.data_problem(task) is not None:
            return REASONS.index("data")
        if num_slots >= _TRIED and not await self._moves(task):
            return REASONS.index("tau")
        if num_slots >= model.max_epochs * LAP or await self._is_good(task, model, num_slots):
            return TRAINED
        if not is_late:
            return None
        worked = await self._slots.in_slots(self._store.parts, task)
        if num_slots >= LAP and worked:
            return TRAINED
        miners = len(self._core.chain.tip.state.live_tickets(MINER))
        is_lonely = num_slots or miners < model.min_miners
        return REASONS.index("miners" if is_lonely else "deadline")

    async def _moves(self, task: bytes) -> bool:
        """Messages of the first slots moved a weight each, on average; or there were none: then nobody has tried."""
        if task not in self._tried:
            found = await self._slots.in_slots(self._store.entries, task, _TRIED)
            self._tried[task] = not found or sum(found) >= len(found)
        return self._tried[task]

    async def _is_good(self, task: bytes, model: TaskModel, num_slots: int) -> bool:
        """As many right answers as its client asked for, at the last look that was due."""
        every = self._core.genesis.parameters.check_laps * LAP
        due = num_slots - num_slots % every
        if due and self._looks.get(task, (0, 0))[0] < due:
            await self._look(await self._at(task, due))
        return self._looks.get(task, (0, 0))[1] >= model.min_accuracy

    async def _look(self, history: SlotHistory) -> None:
        task, slot, theta = history.task.id, history.next_slot, history.theta
        async with self._looking:
            if self._looks.get(task, (0, 0))[0] < slot:
                await self._count(history.task, slot, theta)

    async def _count(self, spec: TaskSpec, slot: int, theta: bytes) -> None:
        task, found = spec.id, await self._core.trainer.accuracy(spec, theta, "val")
        self.accuracy[task] = found.correct / found.total
        self._looks[task] = (slot, found.correct * MILLION // found.total)
        _log.info(
            "%s Task %s slot %d: %d of %d right",
            *(self._core.name, self._core.genesis.task_name(task), slot),
            *(found.correct, found.total),
        )

    async def _statement(
        self, task: bytes, record: TaskRecord, epoch: int, reason: int, num_slots: int
    ) -> Close:
        """Return what this node says of a task whose training is over, unsigned."""
        # Who came when it was trained already does not know yet who worked before.
        await self._fill(task)
        count, theta = (0, 0, 0), ZERO
        if num_slots:
            history = await self._at(task, num_slots)
            theta = weights_hash(history.weights)
            if reason == TRAINED:
                # The hidden part is the evaluators'; what is built in has a test part that everybody knows.
                part: PartName = "test" if record.shape is None else "val"
                found = await self._core.trainer.accuracy(history.task, history.theta, part)
                count = (found.correct, found.total, found.majority)
        work = await self._slots.in_slots(self._work, task, num_slots)
        return Close(epoch, task, reason, num_slots, theta, *count, work, UNSIGNED)

    async def _at(self, task: bytes, num_slots: int) -> SlotHistory:
        """Return a task's history after so many slots."""
        history = await self._slots.history(task)
        if history.next_slot != num_slots:
            upto = num_slots - 1
            history = await self._slots.in_slots(self._store.history, history.task, upto)
        return history

    def _work(self, task: bytes, num_slots: int) -> WorkTable:
        return work_table(self._store.parts(task), num_slots)
