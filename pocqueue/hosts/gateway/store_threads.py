"""The threads in which a gateway calls its store.

On SQLite one thread, as one transaction writes there at a time. What waits for it when it comes to the next call is done
with that one and shares its commit, which waits for the disk and is most of what a small transaction costs. Nobody is
answered before that commit. So a call alone is done at once, and of thousands of nodes that come back together a dozen
or more are let in by each commit. On PostgreSQL, which does the same for its connections, four threads with a call each.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

from typing_extensions import override

from pocqueue.closing import Closing
from pocqueue.hosts.errors import DatabaseUnavailable, DatabaseUnfit
from pocqueue.hosts.store.database import Database

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds after which no more calls are taken to those that share a commit: the first of them waits for the last.
SHARE_S: Final = 0.02
#: What ends a transaction that others share. SQLite undoes it by itself when it finds no memory.
_TROUBLE = (DatabaseUnavailable, DatabaseUnfit, MemoryError)


@dataclass(frozen=True, slots=True)
class _Call:
    work: Callable[[], Any]
    future: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Done:
    call: _Call
    result: Any = None
    error: BaseException | None = None


class StoreThreads(Closing):
    """The threads; calls are made in the event loop's thread.

    Args:
        database: of the store.
        share_s: see `SHARE_S`.
    """

    def __init__(self, database: Database, *, share_s: float = SHARE_S) -> None:
        self._database, self._share_s = database, share_s
        self._calls = queue.SimpleQueue[_Call | None]()
        self._lock = threading.Lock()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"hosts-db-{number}", daemon=True)
            for number in range(1 if database.is_sqlite else 4)
        ]
        for thread in self._threads:
            thread.start()

    def call(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Have a method of the store called; it may be done twice if the database fails in between.

        Raises:
            RuntimeError: the threads have ended.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the store's threads have ended")
            self._calls.put(_Call(partial(work, *args, **kwargs), future))
        return future

    @override
    def close(self) -> None:
        """Do what was asked for, and end; blocks until then, and may be called again."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                for _ in self._threads:
                    self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            done = self._together(call) if self._database.is_sqlite else [_do(call)]
            # A loop that has ended waits for nothing.
            with contextlib.suppress(RuntimeError):
                call.future.get_loop().call_soon_threadsafe(_tell, done)

    def _together(self, first: _Call) -> list[_Done]:
        """Do a call and those that wait behind it."""
        done: list[_Done] = []
        try:
            with self._database.group():
                for call in self._with(first):
                    done.append(_do(call))
                    if isinstance(done[-1].error, _TROUBLE):
                        raise done[-1].error
        except BaseException as exc:  # noqa: BLE001 - whoever waits is told
            if done[-1].error is exc:
                # Nothing is kept of those before it, which may have been in no trouble by themselves.
                return [*(_do(one.call) for one in done[:-1]), done[-1]]
            # It was the commit. What they have found depends on what was not kept.
            return [_Done(one.call, error=exc) for one in done]
        return done

    def _with(self, first: _Call) -> Iterator[_Call]:
        """Give out a call, then what waits, for as long as calls may share a commit."""
        until_s = time.monotonic() + self._share_s
        yield first
        while time.monotonic() < until_s:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                return
            if call is None:
                self._calls.put(None)  # for whoever looks next
                return
            yield call


def _do(call: _Call) -> _Done:
    if call.future.cancelled():
        return _Done(call)
    try:
        return _Done(call, call.work())
    except BaseException as exc:  # noqa: BLE001 - whoever waits is told
        return _Done(call, error=exc)


def _tell(done: list[_Done]) -> None:
    for one in done:
        if one.call.future.done():
            continue  # nobody waits for it any more
        if one.error is not None:
            one.call.future.set_exception(one.error)
        else:
            one.call.future.set_result(one.result)
