"""The real `pocqueue up`: all processes, one round's worth of life, and nothing left afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pocqueue.errors import StoreError
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.pool import Gpu
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.settings import Settings
from tests.support.commands import without_settings
from tests.support.ports import free_port
from tests.support.stack import QUICK
from tests.support.waiting import PATIENCE_S, wait_until


class Up:
    """One `pocqueue up` on a state folder of its own."""

    def __init__(self, state_dir: Path, *options: str, **env: str) -> None:
        self.state_dir = state_dir
        own = {"POCQUEUE_STATE_DIR": str(state_dir), "POCQUEUE_NUM_THREADS": "1"}
        self.env = without_settings() | own | QUICK | env
        self.log = state_dir / "up.log"
        self._backend: Backend | None = None
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pocqueue", "up", *options],
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def processes(self) -> list[psutil.Process]:
        """Return every living process of this state folder, whoever its parent is."""
        found = []
        for process in psutil.process_iter():
            try:
                # Redis writes its title, which has the path, over its environment.
                ours = process.environ().get("POCQUEUE_STATE_DIR") == str(self.state_dir)
                named = f"{self.state_dir}/" in " ".join(process.cmdline())
                if (ours or named) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        """Wait for a line of its output."""
        found = wait_until(
            lambda: re.search(pattern, self.log.read_text(), re.MULTILINE) or self._has_ended(),
            PATIENCE_S,
            f"a line like {pattern!r}",
        )
        assert isinstance(found, re.Match), self.log.read_text()
        return found

    def live_gpus(self) -> list[Gpu]:
        """Return the pool; empty while there is no Redis yet."""
        try:
            # Opened once, which takes ten times as long as a look.
            self._backend = self._backend or Backend.open(Settings(state_dir=self.state_dir))
            return [gpu for gpu in self._backend.pool.live() if not gpu.draining]
        except StoreError:
            return []

    def wait_for_gpus(self, *queues: str) -> list[Gpu]:
        """Wait until these queues have live workers."""

        def ready() -> list[Gpu]:
            assert not self._has_ended(), self.log.read_text()
            gpus = self.live_gpus()
            return gpus if {gpu.queue for gpu in gpus} == set(queues) else []

        return wait_until(ready, PATIENCE_S, f"the pool of {queues}")

    def wait_for_nothing(self) -> None:
        """Wait until no process of it is left."""
        try:
            wait_until(lambda: not self.processes(), PATIENCE_S, "the end of every process")
        except AssertionError as exc:
            left = [" ".join(process.cmdline()) for process in self.processes()]
            exc.add_note("\n".join([*left, self.log.read_text()]))
            raise

    def end(self) -> None:
        """Kill what is left of it."""
        if self._backend is not None:
            self._backend.close()
        self.process.kill()
        self.process.wait()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _has_ended(self) -> bool:
        return self.process.poll() is not None


@pytest.fixture
def state_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder whose path is short enough for a socket, and no settings of the caller's."""
    for name in [name for name in os.environ if name.startswith("POCQUEUE_")]:
        monkeypatch.delenv(name)
    with tempfile.TemporaryDirectory(prefix="pq-") as folder:
        yield Path(folder)


@pytest.fixture
def ups(state_dir: Path) -> Iterator[list[Up]]:
    """Whatever a test starts and puts in here is ended, and a failure shows its output."""
    started: list[Up] = []
    yield started
    for up in started:
        up.end()


def healthy(url: str) -> bool:
    """Tell whether Flower answers."""
    try:
        with urllib.request.urlopen(f"{url}/healthcheck", timeout=60) as answer:  # noqa: S310 - http
            return bool(answer.read() == b"OK")
    except (urllib.error.URLError, OSError):
        return False


def test_up_and_down(state_dir: Path, ups: list[Up]) -> None:
    """Everything comes up; SIGINT ends it all with code 0 and leaves no process and no Redis."""
    options = ("--gpus", "2", "--device", "cpu", "--flower-port", "0", "--hosts")
    port, ws_port = str(free_port()), str(free_port())
    ports = {"POCQUEUE_HOSTS_PORT": port, "POCQUEUE_HOSTS_WS_PORT": ws_port}
    up = Up(state_dir, *options, **ports, POCQUEUE_HOSTS_HOST="127.0.0.1")
    ups.append(up)
    url = up.wait_for_line(r"^pocqueue   \| Flower: (\S+)$")[1]
    up.wait_for_gpus("gpu0", "gpu1")
    wait_until(lambda: healthy(url), PATIENCE_S, "Flower's health check")
    up.wait_for_line(
        rf"GPU hosts: http://127\.0\.0\.1:{port}, and agents at 127\.0\.0\.1:{ws_port}"
    )
    text = up.log.read_text()
    assert "pocqueue   | 2 GPU workers: gpu0, gpu1" in text
    assert "pocqueue round start --block-hash" in text
    assert "superuser" not in text
    assert "gpu1       | " in text
    commands = [" ".join(process.cmdline()[1:]) for process in up.processes()]
    parts = (
        "redis run",
        "scheduler",
        "-Q io",
        "-Q gpu0",
        "-Q gpu1",
        "pocqueue flower",
        "-Q relay.",
    )
    for part in parts:
        assert sum(part in command for command in commands) == 1, (part, commands)

    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(PATIENCE_S) == 0, up.log.read_text()
    assert up.processes() == []
    assert not RedisServer(state_dir).is_running()
    assert "Traceback" not in up.log.read_text()


@pytest.mark.long
def test_dead_parts_come_back_and_a_killed_up_leaves_nothing(
    state_dir: Path, ups: list[Up]
) -> None:
    """A killed worker and a killed Redis are started again; killing `up` itself ends everything."""
    up = Up(state_dir, "--device", "cpu", "--no-flower")
    ups.append(up)
    [gpu] = up.wait_for_gpus("gpu0")
    os.kill(gpu.pid, signal.SIGKILL)
    up.wait_for_line(r"^gpu0       \| \[gpu0 was killed by SIGKILL; it starts again in 0.5 s\]$")
    again = wait_until(
        lambda: [g for g in up.live_gpus() if g.worker != gpu.worker], PATIENCE_S, "a new worker"
    )
    [server] = [p for p in up.processes() if p.name().startswith("valkey-server")]
    server.kill()
    up.wait_for_line(r"^redis      \| Redis had ended and was started again$")
    assert up.wait_for_gpus("gpu0")[0].worker == again[0].worker

    up.process.kill()
    up.wait_for_nothing()
    assert not RedisServer(state_dir).is_running()


def test_a_redis_that_ran_before_goes_on(state_dir: Path, ups: list[Up]) -> None:
    """`up` stops only what it started; SIGTERM is as good as Ctrl-C."""
    server = RedisServer(state_dir)
    assert server.ensure()
    try:
        up = Up(state_dir, "--device", "cpu", "--no-flower")
        ups.append(up)
        up.wait_for_line(r"^redis      \| Redis runs at ")
        up.wait_for_line(r"^pocqueue   \| Ctrl-C ends everything")
        up.process.terminate()
        assert up.process.wait(PATIENCE_S) == 0, up.log.read_text()
        assert [process.name() for process in up.processes()] == ["valkey-server"]
        assert server.is_running()
    finally:
        server.stop()


def test_a_worker_that_refuses_ends_everything(state_dir: Path, ups: list[Up]) -> None:
    """Its sentence is the last line, the exit code is 2, and nothing is left."""
    up = Up(state_dir, "--device", "cuda:99", "--no-flower")
    ups.append(up)
    assert up.process.wait(PATIENCE_S) == 2, up.log.read_text()
    last = up.log.read_text().splitlines()[-1]
    assert re.match(r"pocqueue: gpu0: POCQUEUE_DEVICE=cuda:99 names CUDA device 99, but", last)
    assert up.processes() == []
    assert not RedisServer(state_dir).is_running()
