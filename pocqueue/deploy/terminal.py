"""Questions to a person at the terminal, while the work on other servers goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
from collections.abc import Iterator


async def ask(question: str, *, is_hidden: bool = False) -> str:
    """Return the line that is typed, without its end; empty: the input has ended.

    Nothing else waits meanwhile, and Ctrl-C ends it, since no thread hangs in a read.

    Args:
        question: with a blank behind it.
        is_hidden: what is typed is not shown.
    """
    fd = sys.stdin.fileno()
    sys.stdout.write(question)
    sys.stdout.flush()
    loop, is_ready = asyncio.get_running_loop(), asyncio.Event()
    with _unseen(fd) if is_hidden else contextlib.nullcontext():
        loop.add_reader(fd, is_ready.set)
        try:
            await is_ready.wait()
        finally:
            loop.remove_reader(fd)
        # A terminal gives one line at a time.
        return os.read(fd, 4096).decode("utf-8", "replace").removesuffix("\n")


@contextlib.contextmanager
def _unseen(fd: int) -> Iterator[None]:
    """Have the terminal not show what is typed within the block; as it was before also after Ctrl-C."""
    before = termios.tcgetattr(fd)
    hidden = termios.tcgetattr(fd)
    hidden[3] &= ~termios.ECHO
    termios.tcsetattr(fd, termios.TCSAFLUSH, hidden)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)
        sys.stdout.write("\n")
        sys.stdout.flush()
