"""What a node does beside other things: it goes on whatever fails, and says so in words where there are some."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from pocqueue.pouw.errors import NodeDataError
from pocqueue.pouw.flow import core
from pocqueue.pouw.flow.core import Tasks

_FULL = NodeDataError("The chain cannot be used: disk is full.")


async def _fails(exc: Exception) -> None:
    raise exc


async def _two() -> None:
    """Fail as a loop of two tasks does."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_fails(_FULL))
        group.create_task(_fails(ValueError("a bug")))


async def _one() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_fails(_FULL))


@pytest.mark.parametrize(
    ("run", "said", "traceback"),
    [
        (lambda: _fails(_FULL), [str(_FULL)], None),
        (_one, [str(_FULL)], None),
        (_two, [str(_FULL), "failed and begins again"], "a bug"),
        (lambda: _fails(ValueError("a bug")), ["failed and begins again"], "a bug"),
    ],
)
async def test_a_loop_that_fails_says_why_and_begins_again(
    run: Callable[[], Awaitable[None]],
    said: list[str],
    traceback: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A full disk is a sentence, also where one of several tasks finds it; what nobody thought of has its traceback."""
    monkeypatch.setattr(core, "_PAUSE_S", 0.0)
    runs, is_over, tasks = 0, asyncio.Event(), Tasks("[node]")

    async def once() -> None:
        nonlocal runs
        runs += 1
        if runs > 1:
            is_over.set()
            await asyncio.Event().wait()
        await run()

    with caplog.at_level(logging.ERROR):
        tasks.keep(once)
        await asyncio.wait_for(is_over.wait(), 60)
        await tasks.close()
    for word, record in zip(said, caplog.records, strict=True):
        assert word in record.getMessage()
    shown = "".join(record.exc_text or "" for record in caplog.records)
    assert shown == "" if traceback is None else traceback in shown
    assert "disk is full" not in shown
