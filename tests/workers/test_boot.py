"""A worker that starts on a Redis which will never do: one sentence and code 2, before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import without_settings
from tests.support.processes import running, wait_ready
from tests.support.refusing_redis import RefusingRedis, refusing_redis
from tests.support.stack import QUICK


@pytest.fixture(scope="module")
def server() -> Iterator[RefusingRedis]:
    """A server of this module's own."""
    with refusing_redis() as server:
        yield server


def _env(url: str, folder: Path) -> dict[str, str]:
    ours = {
        "POCQUEUE_REDIS_URL": url,
        "POCQUEUE_STATE_DIR": str(folder),
        "PYTHONWARNINGS": "ignore",
    }
    return without_settings() | ours


def _end(url: str, folder: Path, *command: str) -> tuple[int, str]:
    """Run a process that ends by itself; return its code and what it wrote to standard error."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env=_env(url, folder),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stderr


WORKER = ("celery", "-A", "pocqueue", "worker", "-Q", "io")
SCHEDULER = ("pocqueue", "scheduler")


@pytest.mark.parametrize(
    ("command", "rights", "password", "said"),
    [
        (WORKER, "~* &* +@all", "hunter3", "another user or password"),
        (WORKER, "~other:* &* +@all", "hunter2", "docs/operating.md"),
        (WORKER, "~* resetchannels +@all", "hunter2", "docs/operating.md"),
        (WORKER, "~pocqueue:* &* +@all", "hunter2", "docs/operating.md"),
        (SCHEDULER, "~* &* +@all", "hunter3", "another user or password"),
        (SCHEDULER, "~other:* &* +@all", "hunter2", "docs/operating.md"),
    ],
)
def test_what_an_operator_has_to_change_ends_a_process_that_starts(
    command: tuple[str, ...],
    rights: str,
    password: str,
    said: str,
    server: RefusingRedis,
    tmp_path: Path,
) -> None:
    """A wrong password, and a user without channels, our keys or Celery's."""
    admin: Any = server.client
    admin.execute_command("ACL", "SETUSER", "guest", "reset", "on", ">hunter2", *rights.split())
    url = server.url.replace("unix://", f"unix://guest:{password}@")
    code, text = _end(url, tmp_path, *command)
    assert code == 2, text
    assert said in text
    assert "Traceback" not in text
    assert "hunter" not in text


@pytest.mark.parametrize("command", [WORKER, SCHEDULER])
def test_a_redis_that_may_forget_rounds_is_refused(
    command: tuple[str, ...], server: RefusingRedis, tmp_path: Path
) -> None:
    """With the setting and how to mend it."""
    server.client.config_set("maxmemory-policy", "volatile-lru")
    try:
        code, text = _end(server.url, tmp_path, *command)
    finally:
        server.client.config_set("maxmemory-policy", "noeviction")
    assert code == 2
    assert "CONFIG SET maxmemory-policy noeviction" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("queues", ["gpo0", "io,gpu-0"])
def test_a_queue_that_nothing_is_sent_to_is_refused(queues: str, tmp_path: Path) -> None:
    """Whatever else is named beside it; Redis is not asked for that."""
    name = queues.rpartition(",")[2]
    code, text = _end("redis://127.0.0.1:1/0", tmp_path, *WORKER[:-1], queues)
    assert code == 2, text
    assert f"-Q names '{name}', and nothing is sent there; allowed: gpu0" in text
    assert "Traceback" not in text


def test_a_worker_that_is_stopped_while_it_waits_ends_as_one_that_was_stopped(
    tmp_path: Path,
) -> None:
    """Code 0 for its supervisor: nothing is wrong with it."""
    log = tmp_path / "worker.log"
    command = [sys.executable, "-m", "celery", "-A", "pocqueue", "worker", "-Q", "gpu0"]
    env = _env("redis://127.0.0.1:1/0", tmp_path) | QUICK | {"POCQUEUE_NUM_THREADS": "1"}
    with running(command, log, env, tmp_path) as worker:
        wait_ready(lambda: "gpu0 waits: Redis" in log.read_text(), worker)
        worker.terminate()
        assert worker.wait(timeout=300) == 0
