"""Waiting for conditions, and a clock that needs no waiting: no test sleeps by itself."""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

#: For what hangs: whatever else the machine does, nothing that works takes that long.
PATIENCE_S = 900.0


def pause_s(waited_s: float, least_s: float = 0.005) -> float:
    """Return how long to sleep until the next look: a fiftieth of what was waited so far, and 50 ms at most.

    Others need the cores that looking takes: to wait for a process that starts would cost a tenth of one.
    """
    return min(max(least_s, waited_s / 50), 0.05)


class Clock:
    """Seconds that stand still until a test moves them on."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def wait_until(
    condition: Callable[[], T | None], timeout_s: float = PATIENCE_S, message: str = "the condition"
) -> T:
    """Return what the condition gives as soon as that is true; fail when the time is up.

    Args:
        condition: called every 5 ms at first, ever more rarely then, and once more when the time is up.
        timeout_s: seconds to wait at most.
        message: what is waited for, for the failure.
    """
    began = time.monotonic()
    while True:
        waited_s = time.monotonic() - began
        late = waited_s > timeout_s
        if value := condition():
            return value
        if late:
            raise AssertionError(
                f"{message} did not come true within {timeout_s} s; it is {value!r}"
            )
        time.sleep(pause_s(waited_s))


def wait_for_line(log: Path, pattern: str, timeout_s: float = PATIENCE_S) -> re.Match[str]:
    """Return where a pattern stands in a log file, as soon as it does."""
    return wait_until(
        lambda: re.search(pattern, log.read_text()), timeout_s, f"{pattern!r} in {log}"
    )


async def until(condition: Callable[[], object], deadline_s: float = PATIENCE_S) -> None:
    """Wait until a condition holds, which may be a coroutine function; fail after the deadline."""
    began = time.monotonic()
    async with asyncio.timeout(deadline_s):
        while True:
            value = condition()
            if await value if inspect.isawaitable(value) else value:
                return
            await asyncio.sleep(pause_s(time.monotonic() - began, 0.001))
