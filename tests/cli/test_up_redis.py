"""`pocqueue redis` on a real server: start, status, stop, and keeping it in the foreground."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pocqueue.processes.stack_lock import stack_lock
from pocqueue.rounds.redis_server import RedisServer
from tests.support.waiting import PATIENCE_S, wait_until


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    """The server of a new state folder, which the environment names; not started."""
    for name in [name for name in os.environ if name.startswith("POCQUEUE_")]:
        monkeypatch.delenv(name)
    with tempfile.TemporaryDirectory(prefix="pq-") as folder:
        monkeypatch.setenv("POCQUEUE_STATE_DIR", folder)
        server = RedisServer(Path(folder))
        yield server
        server.stop()


def pocqueue(*arguments: str) -> tuple[int, str]:
    """Run a command; return its exit code and all it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "pocqueue", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.strip()


def server_process(server: RedisServer) -> psutil.Process | None:
    """Return the server's process."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            running = process.status() != psutil.STATUS_ZOMBIE
            if running and str(server.socket_path) in " ".join(process.cmdline()):
                return process
    return None


def test_start_status_stop(server: RedisServer) -> None:
    """One line each, with the URL; status tells by its code; a second time nothing happens."""
    assert pocqueue("redis", "status") == (1, f"Redis does not run: {server.url}")
    assert pocqueue("redis", "start") == (0, f"Redis started: {server.url}")
    assert pocqueue("redis", "start") == (0, f"Redis runs already: {server.url}")
    assert pocqueue("redis", "status") == (0, f"Redis runs: {server.url}")
    assert pocqueue("redis", "stop") == (0, "Redis stopped.")
    assert pocqueue("redis", "stop") == (0, "Redis did not run.")


@pytest.mark.parametrize("command", ["start", "stop", "status", "run"])
def test_none_of_ours_where_a_url_is_set(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Code 2 and a sentence with the URL, without its password."""
    monkeypatch.setenv("POCQUEUE_REDIS_URL", "redis://:hunter2@example.org:6379/0")
    code, text = pocqueue("redis", command)
    assert code == 2
    assert text.startswith("pocqueue: POCQUEUE_REDIS_URL is set, so the server at redis://example")
    assert "hunter2" not in text
    assert "\n" not in text
    assert not server.folder.exists()


def test_up_keeps_its_redis(server: RedisServer) -> None:
    """`redis stop` does not pull it away from under a running `pocqueue up`."""
    server.ensure()
    with stack_lock(server.folder.parent):
        code, text = pocqueue("redis", "stop")
    assert code == 2
    assert f"process {os.getpid()}" in text
    assert server.is_running()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_keeps_it_running(server: RedisServer, number: signal.Signals) -> None:
    """A server that is killed starts again; ending the command ends the server."""
    with subprocess.Popen(
        [sys.executable, "-m", "pocqueue", "redis", "run"], stdout=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == f"Redis started at {server.url}\n"
        first = server_process(server)
        assert first is not None
        first.kill()
        assert keeper.stdout.readline() == "Redis had ended and was started again\n"
        assert server_process(server) not in {first, None}
        keeper.send_signal(number)
        assert keeper.wait(PATIENCE_S) == 0
    assert not server.is_running()


def test_run_waits_for_a_server_that_cannot_start_again(server: RedisServer) -> None:
    """It ran before, so what stands in its way passes: it says so once, and tries on."""
    with subprocess.Popen(
        [sys.executable, "-m", "pocqueue", "redis", "run"], stdout=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdout is not None
        keeper.stdout.readline()
        first = server_process(server)
        assert first is not None
        first.suspend()
        in_the_way = server.folder / "server.lock"
        in_the_way.unlink()
        in_the_way.mkdir()
        first.kill()
        line = keeper.stdout.readline()
        assert line.startswith("Redis had ended and cannot be started yet, which is tried on: ")
        in_the_way.rmdir()
        assert keeper.stdout.readline() == "Redis had ended and was started again\n"
        keeper.terminate()
        assert keeper.stdout.read() == "Redis stopped\n"


def test_run_can_leave_it_running(server: RedisServer) -> None:
    """With --keep only the watching ends."""
    with subprocess.Popen([sys.executable, "-m", "pocqueue", "redis", "run", "--keep"]) as keeper:
        wait_until(server.is_running, message="Redis")
        keeper.terminate()
        assert keeper.wait(PATIENCE_S) == 0
    assert server.is_running()


def test_a_busy_server_gets_no_rival(server: RedisServer) -> None:
    """A server that is stopped for a while, and does not answer, is not taken for a dead one."""
    with subprocess.Popen(
        [sys.executable, "-m", "pocqueue", "redis", "run"], stdout=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdout is not None
        assert "started" in keeper.stdout.readline()
        process = server_process(server)
        assert process is not None
        looks = keeper_looks(keeper.pid)
        process.suspend()
        wait_until(lambda: keeper_looks(keeper.pid) >= looks + 2, message="two looks of the keeper")
        process.resume()
        assert server_process(server) == process
        keeper.terminate()
        assert keeper.stdout.read() == "Redis stopped\n"


def keeper_looks(pid: int) -> int:
    """Return how often a process woke up by itself, which the keeper does once a look."""
    return int(psutil.Process(pid).num_ctx_switches().voluntary)
