"""Real processes for acceptance tests: bundled Redis, schedulers, Celery workers on the CPU."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import redis

from pocqueue.rounds.backend import Backend
from pocqueue.rounds.records import RoundStatus
from pocqueue.rounds.redis_server import RedisServer
from pocqueue.rounds.start import decided, deployed_model, draft_spec
from pocqueue.settings import Settings
from tests.support import commands
from tests.support.commands import without_settings
from tests.support.waiting import PATIENCE_S, pause_s

ROOT = Path(__file__).parents[2]
#: Variables for rounds whose values nobody looks at: no CPU has fewer instructions for this type than for bfloat16, and
#: many take four times as long for that one.
QUICK = {"POCQUEUE_DTYPE": "float32"}


class Stack:
    """A whole pocqueue in one state folder; every process is ours to kill.

    Args:
        folder: for its state and logs.
        redis_url: of a server of somebody else's; None: it has one of its own.
        variables: more of the environment of its processes.
    """

    def __init__(
        self,
        folder: Path,
        redis_url: str | None = None,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.folder = folder
        self.variables = variables
        self.settings = Settings(state_dir=folder / "state", redis_url=redis_url)
        self.server = RedisServer(self.settings.state_dir)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        if redis_url is None:
            self.server.ensure()
        self.backend = Backend.open(self.settings)

    @property
    def env(self) -> dict[str, str]:
        """Environment of every process: CPU, one thread each, as there are only two cores."""
        return without_settings() | {
            "POCQUEUE_STATE_DIR": str(self.settings.state_dir),
            "POCQUEUE_REDIS_URL": self.settings.variables()["POCQUEUE_REDIS_URL"] or "",
            "POCQUEUE_DEVICE": "cpu",
            "POCQUEUE_NUM_THREADS": "1",
            # Callback receivers of tests are on loopback.
            "POCQUEUE_CALLBACK_PRIVATE": "1",
            "PYTHONWARNINGS": "ignore",
            **self.variables,
        }

    def spawn(
        self, name: str, *argv: str, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `python -m ...` with its output in NAME.log, and `env` beside its environment."""
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *argv],
                env=self.env | (env or {}),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes[name] = process
        return process

    def worker(self, queue: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start the worker of a queue, with the very line that the README gives."""
        return self.spawn(queue, "celery", "-A", "pocqueue", "worker", "-Q", queue, env=env)

    def scheduler(self, name: str = "scheduler") -> subprocess.Popen[bytes]:
        """Start a scheduler. Short ranges: rounds of seconds here are to show what minutes would."""
        return self.spawn(name, "tests.support.scheduler", env={"PYTHONPATH": str(ROOT)})

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def kill(self, name: str) -> None:
        """Kill a process as if its machine had lost power."""
        process = self.processes.pop(name)
        process.kill()
        process.wait(timeout=PATIENCE_S)

    def terminate(self, name: str) -> int:
        """Ask a process to end; return its exit code."""
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(timeout=PATIENCE_S)

    def kill_redis(self) -> None:
        """Kill the Redis server without letting it write anything more."""
        pid = int(self.backend.client.info("server")["process_id"])
        os.kill(pid, signal.SIGKILL)
        self.wait(lambda: not self.server.is_running(), "Redis to be gone")

    def wait_live(self, *queues: str) -> None:
        """Wait until exactly these queues have live workers."""

        def live() -> bool:
            self.check_alive()
            return {gpu.queue for gpu in self.backend.pool.live()} == set(queues)

        self.wait(live, f"live workers on {', '.join(queues)}")

    def check_alive(self) -> None:
        """Fail at once, with its log, where a process ended by itself."""
        for name, process in self.processes.items():
            code = process.poll()
            assert code is None, f"{name} ended with {code}:\n{self.log(name).read_text()[-3000:]}"

    def wait(self, condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> float:
        """Wait for a condition; return the seconds that took."""
        began = time.monotonic()
        while True:
            with contextlib.suppress(ConnectionError, redis.ConnectionError):
                if condition():
                    return time.monotonic() - began
            waited_s = time.monotonic() - began
            assert waited_s < timeout_s, f"waited {timeout_s:.0f} s for {what}\n" + self.tails()
            time.sleep(pause_s(waited_s, 0.02))

    def tails(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}"
            for path in sorted(self.folder.glob("*.log"))
        )

    def start(self, **fields: Any) -> str:
        """Start a round in which every nonce is valid, unless told otherwise."""
        small = {"public_key": "key", "r_target": 2.0, "seq_len": 16, "batch_size": 8}
        # What ends by its number of nonces, or is stopped, does so at any load.
        small |= {"window_s": 900.0}
        draft = draft_spec(**{"block_hash": os.urandom(8).hex()} | small | fields)
        # A busy machine may keep a worker from its heartbeat for a while.
        self.wait(self.backend.pool.live, "a live GPU")
        spec, round_id = (
            decided(draft, deployed_model(self.backend, draft, None)),
            str(uuid.uuid4()),
        )
        # A Redis that fails over may refuse just now; asked twice, it is one round.
        self.wait(lambda: self.backend.store.create(spec, round_id), f"{round_id} to be made")
        return round_id

    def start_that_expires(self, num: int, window_s: float) -> str:
        """Start a round that ends at its deadline, and return once so many nonces of it are checked.

        Args:
            num: nonces that are to be checked before its deadline.
            window_s: a machine that does not come so far in it gets twice the time, and so on.
        """
        while True:
            round_id = self.start(window_s=window_s)
            self.wait(
                lambda: self.status(round_id).checked >= num or self._is_over(round_id),  # noqa: B023
                f"{num} nonces of {round_id}, or its end",
            )
            if not self._is_over(round_id):
                return round_id
            window_s *= 2

    def _is_over(self, round_id: str) -> bool:
        return not self.status(round_id).state.is_active

    def status(self, round_id: str) -> RoundStatus:
        return self.backend.store.status(round_id)

    def checked(self, round_ids: Sequence[str]) -> list[int]:
        """Return how many nonces of each round are checked, all at one moment."""
        return [status.checked for status in self.backend.store.statuses(list(round_ids))]

    def wait_checked(self, round_id: str, num: int) -> None:
        self.wait(lambda: self.status(round_id).checked >= num, f"{num} nonces of {round_id}")

    def wait_over(self, round_id: str) -> RoundStatus:
        self.wait(lambda: self._is_over(round_id), f"the end of {round_id}")
        return self.status(round_id)

    def nonces(self, round_id: str) -> list[int]:
        """Return every nonce in the round's stream, in the order they were counted."""
        entries = self.backend.store.iter_proofs(self.status(round_id))
        return [nonce for entry in entries for nonce in entry.proofs.nonces]

    def check_exactly_once(self, round_id: str, num: int) -> None:
        """Check that the counted nonce indices are 0 to num - 1, none missing, none repeated.

        For rounds with r_target 2, where the stream has every nonce that was checked, and node 0
        of 1, where a nonce is its index.
        """
        status = self.status(round_id)
        assert self.backend.store.coverage(round_id) == [(0, num)]
        assert sorted(self.nonces(round_id)) == list(range(num))
        assert (status.checked, status.valid) == (num, num)

    def close(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=PATIENCE_S)
        self.backend.client.close()
        self.server.stop()


def pocqueue(
    stack: Stack, *argv: str, timeout_s: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """Run the command line against the stack."""
    try:
        return subprocess.run(
            [sys.executable, "-m", "pocqueue", *argv],
            env=stack.env,
            cwd=stack.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        pytest.fail(f"{exc}\n{exc.stderr!r}\n{stack.tails()}")


def pocqueue_here(stack: Stack, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run the command line against the stack in this process; see `commands.pocqueue_here`."""
    return commands.pocqueue_here(stack.env, *argv)
