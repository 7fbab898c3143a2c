"""One thing after another, in a thread or past it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from pocqueue.pouw.flow.one_thread import OneThread


@pytest.fixture
def thread() -> Iterator[OneThread]:
    one = OneThread("test")
    yield one
    one.shutdown()


async def test_what_is_short_is_done_at_once_if_the_thread_is_idle(thread: OneThread) -> None:
    """In the event loop's thread; anything else in its own."""
    assert await thread.run_short(threading.get_ident) == threading.get_ident()
    assert await thread.run(threading.get_ident) != threading.get_ident()
    assert await thread.run_short(threading.get_ident) == threading.get_ident()


async def test_what_is_short_waits_for_what_the_thread_does(thread: OneThread) -> None:
    """So no two things are done at a time, and they are done in the order in which they were given."""
    go_on, done = threading.Event(), list[str]()

    def long() -> None:
        go_on.wait()
        done.append("long")

    first = asyncio.create_task(thread.run(long))
    second = asyncio.create_task(thread.run_short(done.append, "short"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert done == []
    go_on.set()
    await asyncio.gather(first, second)
    assert done == ["long", "short"]


async def test_what_was_given_up_is_not_waited_for(thread: OneThread) -> None:
    """A task that was cancelled before its turn came leaves the thread idle."""
    go_on = threading.Event()
    first = asyncio.create_task(thread.run(go_on.wait))
    second = asyncio.create_task(thread.run(int))
    await asyncio.sleep(0)
    second.cancel()
    go_on.set()
    await first
    assert await thread.run_short(threading.get_ident) == threading.get_ident()


async def test_what_is_raised_comes_through(thread: OneThread) -> None:
    """Either way, and the thread goes on."""
    for way in (thread.run, thread.run_short):
        with pytest.raises(ValueError, match="invalid literal"):
            await way(int, "x")
    assert await thread.run(int, "1") == 1
