"""Keeps the bundled Redis running as long as one process does: `pocqueue redis run`.

The server itself is detached from whoever started it, which suits a worker started by hand. Here
its life is tied to a process in the foreground, so that `pocqueue up` can leave nothing behind.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pocqueue.processes.stack_lock import stack_pid
from pocqueue.rounds.redis_server import RedisServer

_LOOK_EVERY_S = 1.0
#: How long an orphan waits for the workers and the scheduler, which are ending as well.
ORPHAN_GRACE_S = 60.0


def keep_redis(server: RedisServer, say: Callable[[str], None], *, keep: bool = False) -> None:
    """Start the server, start it again whenever it has ended, stop it on SIGINT or SIGTERM.

    Main thread only. `pocqueue up` ends it with SIGINT, once nobody needs Redis any more. SIGTERM
    comes also when `up` was killed, to everybody at the same time: then it is last.

    Args:
        server: the server of a state folder.
        say: gets a line for each of these.
        keep: leave the server running at the end.

    Raises:
        ProcessError: it does not start.
    """
    # Asking for it after the signal would be too late, or too early: a parent with several threads
    # dies one by one, and the signal comes with the first of them.
    parent_pid = os.getppid()
    with _signals() as signals:
        started = server.ensure()
        say(f"{'started' if started else 'found running'} at {server.url}")
        while (number := _next(signals, _LOOK_EVERY_S)) is None:
            # Not asked for a reply: a busy server must not be taken for a dead one and get a rival.
            if _is_gone(server.socket_path) and server.ensure():
                say("had ended and was started again")
        if keep:
            return
        if number == signal.SIGTERM and not _outlast_others(server.folder.parent, parent_pid):
            return
        server.stop()
        say("stopped")


@contextmanager
def _signals() -> Iterator[queue.SimpleQueue[int]]:
    """Collect SIGINT and SIGTERM: an exception could come in the middle of a start.

    SimpleQueue, because its `put` may interrupt its own `get`; Event.set in a handler may block.
    """
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    def note(number: int, _frame: Any) -> None:
        signals.put(number)

    before = [(n, signal.signal(n, note)) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield signals
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _next(signals: queue.SimpleQueue[int], timeout_s: float) -> int | None:
    try:
        return signals.get(timeout=timeout_s)
    except queue.Empty:
        return None


def _is_gone(path: Path) -> bool:
    """Say whether no process listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except BlockingIOError:  # its backlog is full: busy, not gone
            return False
    return False


def _outlast_others(state_dir: Path, parent_pid: int) -> bool:
    """Wait for the processes of the `pocqueue up` that started us, if one did.

    Workers hand their ranges back before they end, and one that was just connecting ends only once
    it has connected: both take Redis. All of them hold the lock of the state folder; we do not.

    Returns:
        False if somebody has started another `pocqueue up` in the meantime, which uses our Redis.
    """
    deadline = time.monotonic() + ORPHAN_GRACE_S
    while (holder := stack_pid(state_dir)) == parent_pid and time.monotonic() < deadline:
        time.sleep(0.1)
    return holder in {None, parent_pid}
