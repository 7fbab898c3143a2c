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

import redis

from pocqueue.rounds.redis_server import RedisServer

_LOOK_EVERY_S = 1.0
#: How long an orphan waits for the workers and the scheduler, which are ending as well.
ORPHAN_GRACE_S = 25.0


def keep_redis(server: RedisServer, say: Callable[[str], None], *, keep: bool = False) -> None:
    """Start the server, start it again whenever it has ended, stop it on SIGINT or SIGTERM.

    Main thread only.

    Args:
        server: the server of a state folder.
        say: gets a line for each of these.
        keep: leave the server running at the end.

    Raises:
        ProcessError: it does not start.
    """
    parent_pid = os.getppid()
    with _signals() as signals:
        started = server.ensure()
        say(f"{'started' if started else 'found running'} at {server.url}")
        while not _within(signals, _LOOK_EVERY_S):
            # Not asked for a reply: a busy server must not be taken for a dead one and get a rival.
            if _is_gone(server.socket_path) and server.ensure():
                say("had ended and was started again")
        if keep:
            return
        if os.getppid() != parent_pid:
            # `pocqueue up` was killed and everybody got SIGTERM at the same time. Workers hand
            # their ranges back before they end, and that takes Redis.
            _wait_for_others(server)
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


def _within(signals: queue.SimpleQueue[int], timeout_s: float) -> bool:
    try:
        signals.get(timeout=timeout_s)
    except queue.Empty:
        return False
    return True


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


def _wait_for_others(server: RedisServer) -> None:
    deadline = time.monotonic() + ORPHAN_GRACE_S
    try:
        with redis.Redis(unix_socket_path=str(server.socket_path), socket_timeout=5) as client:
            while len(client.client_list()) > 1 and time.monotonic() < deadline:
                time.sleep(0.1)
    except redis.RedisError:
        return
