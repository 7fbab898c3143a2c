"""An agent in bubblewrap that is held in the moment in which it starts a job."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.waiting import wait_until


@contextlib.contextmanager
def held_agent(owner: str, *argv: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """An agent whose sandbox is stopped before it follows anybody; with the first process in it."""
    code = """
import asyncio, os, signal, sys
from pocqueue.hosts.agent.sandbox import bubblewrap
from pocqueue.hosts.agent.sandbox.base import Command

def hold(pid, *args, bound=bubblewrap._bound, **kwargs):
    bound(pid, *args, **kwargs)
    os.kill(pid, signal.SIGSTOP)
    # Once the agent has said everything that it says without waiting.
    asyncio.get_running_loop().call_soon(print, pid)

bubblewrap._bound = hold
box = bubblewrap.Bubblewrap(None, sys.argv[1])
asyncio.run(box.run(Command(tuple(sys.argv[2:])), asyncio.Event()))
"""
    agent = subprocess.Popen(
        [sys.executable, "-u", "-c", code, owner, *argv], stdout=subprocess.PIPE, text=True
    )
    assert agent.stdout is not None
    with agent, agent.stdout:
        first = int(agent.stdout.readline())
        try:
            outside = parent_of(first)
            # Until then it would wait for the one outside for ever, if that died.
            wait_until(lambda: _has_let_go(outside), message="bwrap's word to the process inside")
            yield agent, first
        finally:
            agent.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(first, signal.SIGKILL)


@contextlib.contextmanager
def silenced_agent(owner: str, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """An agent whose bwrap can never say who its process inside is, and so never lets that one go on."""
    code = """
import asyncio, fcntl, sys
from pocqueue.hosts.agent.sandbox import bubblewrap
from pocqueue.hosts.agent.sandbox.base import Command

def full(stack, pipe=bubblewrap._pipe):
    bubblewrap._pipe = pipe
    out, into = pipe(stack)
    into.write(bytes(fcntl.fcntl(into, fcntl.F_GETPIPE_SZ)))
    return out, into

async def never(_):
    await asyncio.Event().wait()

bubblewrap._pipe, bubblewrap._child_of = full, never
box = bubblewrap.Bubblewrap(None, sys.argv[1])
asyncio.run(box.run(Command(tuple(sys.argv[2:])), asyncio.Event()))
"""
    with subprocess.Popen([sys.executable, "-c", code, owner, *argv]) as agent:
        try:
            yield agent
        finally:
            agent.kill()


def _has_let_go(outside: int) -> bool:
    """Say whether bwrap's process outside has let the one inside go on: after that it watches over it by a signalfd."""
    for fd in Path(f"/proc/{outside}/fd").iterdir():
        # It closes some just then.
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(fd) == "anon_inode:[signalfd]":
                return True
    return False


def parent_of(pid: int) -> int:
    """Return the parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
