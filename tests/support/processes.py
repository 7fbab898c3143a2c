"""Real processes for the tests of configuration files, and waiting for them with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pocqueue.processes import child_exec
from pocqueue.rounds.redis_server import executable
from tests.support.waiting import PATIENCE_S, wait_until

REDIS_SERVER = executable()


def with_us(*argv: str) -> list[str]:
    """Return the command that runs another one for as long as this thread lives: SIGTERM ends it when we are killed."""
    return [sys.executable, "-I", "-S", child_exec.__file__, str(os.getpid()), *argv]


def open_transports() -> list[asyncio.SubprocessTransport]:
    """Return the transports of processes that are not closed: none of a loop's may be left when that closes."""
    # Some proxies raise whatever they like when they are asked for their class.
    found = [one for one in gc.get_objects() if issubclass(type(one), asyncio.SubprocessTransport)]
    return [one for one in found if not one.is_closing()]


def wait_ready(
    condition: Callable[[], bool], process: subprocess.Popen[str], *, timeout_s: float = PATIENCE_S
) -> None:
    """Return as soon as the condition holds; fail when the process ends or time is up."""

    def holds() -> bool:
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        return condition()

    wait_until(holds, timeout_s, f"{process.args!r}")


@contextlib.contextmanager
def running(
    command: Sequence[str], log: Path, env: dict[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a process with its output in a file; end it with SIGTERM, or SIGKILL after a minute."""
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, text=True, env=env, cwd=cwd
        )
        try:
            yield process
        except AssertionError as exc:
            exc.add_note(log.read_text()[-4000:])
            raise
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def connect(socket: Path, password: str | None = None) -> redis.Redis:
    """Return a client that fails at once: redis-py's own retries would slow `wait_ready` down."""
    return redis.Redis(
        unix_socket_path=str(socket),
        password=password,
        decode_responses=True,
        retry=Retry(NoBackoff(), 0),
    )


def answers_ping(client: redis.Redis) -> bool:
    """Tell whether a Redis server is up and has read its data."""
    try:
        return bool(client.ping())
    except (redis.ConnectionError, redis.BusyLoadingError):
        return False
