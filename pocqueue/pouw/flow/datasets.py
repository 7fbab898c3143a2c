"""Clients' own data at a node: its own files, those of tasks that are to be trained, and what others ask for of them.

Every node that trains or looks at training fetches the data of each task that is final, and gives what it has to
others, half fetched or whole. A task counts as ready here once its data are whole, and are what its order says.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from pocqueue.pouw.chain.mining import spec_of
from pocqueue.pouw.chain.records import TaskRecord
from pocqueue.pouw.data.parts import TESTING, TRAINING, read
from pocqueue.pouw.data.store import DataStore
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.errors import DataError, LinkError, NodeDataError, PouwError
from pocqueue.pouw.flow.core import Bell, Core
from pocqueue.pouw.flow.fetches import Fetches
from pocqueue.pouw.wire.codec import encode
from pocqueue.pouw.wire.data import name_of
from pocqueue.pouw.wire.requests import Chunk, ChunkRequest

#: A task whose data did not come for so long cannot be trained.
PATIENCE_S: Final = 600.0
_LOOK_S = 2.0
#: What failed for want of a trainer is tried again after this.
_PAUSE_S = 30.0
#: Data that so many looks in a row ended the trainer, or found no room in it, are no good.
_TRIES = 4

_log = logging.getLogger(__name__)


class Datasets:
    """The data of a node. Of its event loop.

    Args:
        core: of the node.
        store: its files.
    """

    def __init__(self, core: Core, store: DataStore) -> None:
        self._core, self._store = core, store
        self._fetches = Fetches(core, store)
        #: Files that this node added.
        self._own: set[str] = set()
        #: Tasks whose data are whole and fit, and why others' do not.
        self._ready: set[bytes] = set()
        self._unfit: dict[bytes, str] = {}
        #: When a task was first waited for, and when one that failed is tried again, by the monotonic clock.
        self._waits: dict[bytes, float] = {}
        self._pauses: dict[bytes, float] = {}
        self._failures: Counter[bytes] = Counter()
        self._known: dict[str, Path] = {}  # to the trainer
        #: Files that somebody here waits for.
        self._wished: Counter[str] = Counter()
        self._is_wished = Bell()
        #: A task more is ready.
        self.changed = Bell()

    async def add(self, path: Path, *, is_hidden: bool = False) -> str:
        """Take a copy of a file of this node's own; return the name of its data.

        Args:
            path: of the file.
            is_hidden: it has a test part, and nobody else gets it until `show`.

        Raises:
            DataError: it is none; says what is wrong with it.
        """
        await asyncio.to_thread(read, path, TESTING if is_hidden else TRAINING)
        name = await asyncio.to_thread(self._store.add, path, self._kept, is_hidden=is_hidden)
        self._own.add(name)
        return name

    async def show(self, name: str) -> None:
        """Give a hidden file to whoever asks from now on."""
        await asyncio.to_thread(self._store.show, name)

    def path(self, name: str) -> Path | None:
        """Return where a file is; None: it is not here, or not whole."""
        return self._store.path(name)

    async def have(self, name: str, timeout_s: float | None = None) -> Path | None:
        """Return where a file is, once it is; None: it did not come in time. `run` fetches it, and nothing else may
        take its room until then."""
        self._wished[name] += 1
        self._is_wished.ring()
        try:
            async with asyncio.timeout(timeout_s):
                while self._store.path(name) is None:
                    await self._fetches.changed.heard(_LOOK_S)
        except TimeoutError:
            return None
        finally:
            self._wished[name] -= 1
        return self._store.path(name)

    async def ready(self, name: str, timeout_s: float | None = None) -> bool:
        """Have a client's data here for the trainer, also of a task that is closed; False: they did not come in time."""
        path = await self.have(name, timeout_s)
        if path is not None and name not in self._known:
            self._known[name] = path
            self._core.trainer.know(name, path)
        return path is not None

    def has(self, task: bytes) -> bool:
        """Say whether there is nothing of a task's data that this node lacks to train it."""
        if self._core.genesis.is_filler(task):
            return True
        record = self._core.chain.tip.state.task(task)
        return record is None or record.shape is None or task in self._ready

    def problem(self, task: bytes) -> str | None:
        """Return why a task cannot be trained for its data; None: it can, or they may still come."""
        if task in self._unfit:
            return self._unfit[task]
        waited_s = time.monotonic() - self._waits.get(task, time.monotonic())
        if waited_s > PATIENCE_S:
            return f"nobody gave its data to this node for {waited_s / 60:.0f} min"
        return None

    async def answer(self, request: ChunkRequest) -> bytes:
        """Return a chunk or a manifest for whoever asks.

        Raises:
            LinkError: it is not here, or is not shown yet.
        """
        name = name_of(request.data)
        manifest = None if self._store.is_hidden(name) else self._store.manifest(name)
        if manifest is None:
            raise LinkError("no such data are here")
        if request.index is None:
            return encode(manifest)
        try:
            chunk = await asyncio.to_thread(self._store.chunk, name, request.index)
        except NodeDataError as exc:
            _log.error("%s %s", self._core.name, exc)
            chunk = None
        if chunk is None:
            raise LinkError("that chunk is not here")
        return encode(Chunk(chunk))

    async def run(self) -> None:
        """Fetch what tasks need, as long as they need it."""
        try:
            while True:
                tasks = self._tasks()
                self._wished = +self._wished
                wanted = (*self._wished, *(record.data for record in tasks.values()))
                names = list(dict.fromkeys(wanted))
                self._fetches.follow(names, self._kept)
                for task, record in tasks.items():
                    await self._judge(task, record)
                self._look_again(tasks)
                await _first(
                    self._core.chain_changed.heard(_LOOK_S),
                    self._fetches.changed.heard(),
                    self._is_wished.heard(),
                )
        finally:
            await self._fetches.close()

    def close(self) -> None:
        """Have the trainer forget this node's files."""
        for name, path in self._known.items():
            self._core.trainer.forget(name, path)
        self._known.clear()

    @property
    def _kept(self) -> set[str]:
        """Return the names of data that make room for nothing: this node's own, and what somebody here waits for."""
        return self._own | set(+self._wished)

    def _tasks(self) -> dict[bytes, TaskRecord]:
        """Return the tasks that are to be trained or looked at on data of their clients', those that pay best first."""
        if self._core.config.role is NodeRole.PEER:
            return {}
        state = self._core.chain.anchor.state
        found = {**state.closed_tasks(), **state.open_tasks()}
        best_first = sorted(found.items(), key=lambda item: (-item[1].training_fee, item[0]))
        return {task: record for task, record in best_first if record.shape is not None}

    async def _judge(self, task: bytes, record: TaskRecord) -> None:
        """See whether a task can be trained on what has come."""
        now_s = time.monotonic()
        path = self._store.path(record.data)
        if path is None:
            self._waits.setdefault(task, now_s)
            self._ready.discard(task)
            return
        self._waits.pop(task, None)
        if task in self._ready or task in self._unfit or now_s < self._pauses.get(task, 0.0):
            return
        core = self._core
        if record.data not in self._known:
            self._known[record.data] = path
            core.trainer.know(record.data, path)
        try:
            await core.trainer.check(spec_of(core.genesis, core.chain.anchor.state, task))
        except DataError as exc:
            self._unfit[task] = str(exc)
            _log.warning("%s Task %s cannot be trained: %s", core.name, record.name, exc)
        except PouwError as exc:
            self._failures[task] += 1
            self._pauses[task] = now_s + _PAUSE_S
            if self._failures[task] == _TRIES:
                self._unfit[task] = f"looked at {_TRIES} times, each time in vain: {exc}"
            _log.warning("%s Data of task %s wait: %s", core.name, record.name, exc)
        else:
            self._ready.add(task)
            _log.info("%s Data of task %s are here.", core.name, record.name)
            self.changed.ring()

    def _look_again(self, tasks: dict[bytes, TaskRecord]) -> None:
        """Forget what was known of tasks that are over, and of files that made way."""
        self._ready &= tasks.keys()
        for known in (self._unfit, self._waits, self._pauses, self._failures):
            for task in known.keys() - tasks.keys():
                del known[task]
        for name, path in list(self._known.items()):
            if self._store.path(name) is None:
                del self._known[name]
                self._core.trainer.forget(name, path)


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait for the first of several things."""
    tasks = [asyncio.ensure_future(one) for one in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
