"""One supervised child process: start it, pass its lines on, wait for its end, start it again.

`pocqueue.processes.tree` makes trees of these and holds the promises.
"""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from pocqueue.processes import child_exec

#: Our commands' exit code for bad input.
BAD_INPUT = 2

_TAIL_LINES = 20
# Longer ones are cut into pieces, so that a child which never ends its line costs no memory.
_MAX_LINE_BYTES = 64 * 1024

#: Takes the name of a child and one line that it wrote, without its line end. Must not raise.
Sink = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a child that ended by itself is started again."""

    first_delay_s: float = (
        0.5  #: before the first restart; doubles with each exit within the window
    )
    max_delay_s: float = 10.0
    max_restarts: int = 5  #: within the window; one exit more and the child is given up
    window_s: float = 60.0

    def delay_s(self, num_exits: int) -> float | None:
        """Return the seconds to wait before the next start after so many exits; None to give up."""
        if num_exits > self.max_restarts:
            return None
        return min(self.max_delay_s, self.first_delay_s * 2.0 ** (num_exits - 1))


@dataclass(frozen=True, slots=True)
class Failure:
    """A child that ended for good although nobody stopped it."""

    name: str
    code: int  #: its last exit code; minus the signal's number if a signal ended it
    lines: tuple[str, ...]  #: the last ones that it wrote, oldest first
    num_exits: int = 1

    @property
    def is_bad_input(self) -> bool:
        """It refused what it was given and said why; starting it again changes nothing."""
        return self.code == BAD_INPUT

    @property
    def message(self) -> str:
        """What to tell the operator."""
        said = [line for line in self.lines if line.strip()]
        if self.is_bad_input and said:
            # `pocqueue:` begins our own commands' sentence, `Error:` that of Celery's and Flower's.
            marked = [line for line in said if line.startswith(("pocqueue: ", "Error: "))]
            sentence = (marked or said)[-1]
            return f"{self.name}: {sentence.removeprefix('pocqueue: ').removeprefix('Error: ')}"
        end = describe_exit(self.code)
        what = f"{self.name} {end}"
        if self.num_exits > 1:
            what = f"{self.name} ended {self.num_exits} times in a row; the last time it {end}"
        if not said:
            return f"{what}. It wrote nothing."
        return "\n  ".join([f"{what}. Its last lines:", *said])


def describe_exit(code: int) -> str:
    """Say how a process ended: ``ended with code 1``, ``was killed by SIGKILL``."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


@dataclass(eq=False)
class Child:
    """One child: a thread starts it, waits for its end and starts it again.

    The thread that starts a process is the one whose end Linux reports to it as its parent's death
    (see `child_exec`), so it has to live as long; hence one thread each.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] | None
    sink: Sink
    pass_fds: tuple[int, ...]
    stop_signal: signal.Signals
    restarts: RestartPolicy
    on_failure: Callable[[Failure], None]  #: called, from its thread, when it has ended for good

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._keep, name=f"keep {self.name}", daemon=True)
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self._started = threading.Event()
        self._stopping = threading.Event()
        self._ended = threading.Event()
        # Held to start, to signal and to reap: no signal goes to a process id that is free again.
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns when it runs."""
        self._thread.start()
        self._started.wait()

    def terminate(self) -> None:
        """Ask it to end, and do not start it again."""
        with self._lock:
            self._stopping.set()
            if self._process is not None:
                # Only the leader: it knows best how to end what it started itself.
                os.kill(self._process.pid, self.stop_signal)

    def kill(self) -> None:
        """End it and everything in its process group now."""
        with self._lock:
            self._stopping.set()
            if self._process is not None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process group, if it runs; of what that ends, it is started again."""
        with self._lock:
            if self._process is not None:
                os.killpg(self._process.pid, number)

    def join(self, timeout_s: float) -> bool:
        """Wait for its end; return whether it has ended."""
        if self._thread.ident is None:
            return True
        # Not Thread.join: a Ctrl-C within it makes Python 3.11 take the thread for finished.
        return self._ended.wait(timeout_s)

    def note(self, text: str) -> None:
        """Add a line of ours to its output."""
        self.sink(self.name, f"[{self.name} {text}]")

    def _keep(self) -> None:
        try:
            failure = self._run()
        finally:
            self._started.set()
            self._ended.set()
        if failure is not None:
            self.on_failure(failure)

    def _run(self) -> Failure | None:
        """Keep it running until it is to stop, or has failed for good."""
        exits: list[float] = []
        while True:
            try:
                process = self._spawn()
            except OSError as exc:  # no memory, no room for a process or on the disk
                return Failure(self.name, BAD_INPUT, (f"cannot be started: {exc}.",))
            if process is None:
                return None
            code = self._wait_for_end(process)
            if self._stopping.is_set():
                return None
            now = time.monotonic()
            exits = [*(exit_s for exit_s in exits if now - exit_s < self.restarts.window_s), now]
            delay_s = None if code == BAD_INPUT else self.restarts.delay_s(len(exits))
            if delay_s is None:
                return Failure(self.name, code, tuple(self._tail), len(exits))
            self.note(f"{describe_exit(code)}; it starts again in {delay_s:g} s")
            if self._stopping.wait(delay_s):
                return None

    def _spawn(self) -> subprocess.Popen[bytes] | None:
        """Start the process, unless it is to stop."""
        wrapper = [sys.executable, "-I", "-S", child_exec.__file__, str(os.getpid())]
        with self._lock:
            if self._stopping.is_set():
                return None
            self._process = subprocess.Popen(  # noqa: S603 - the caller's fixed list, no shell
                [*wrapper, *self.argv],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=self.pass_fds,
                start_new_session=True,
            )
            self._started.set()
            return self._process

    def _wait_for_end(self, process: subprocess.Popen[bytes]) -> int:
        """Pass its lines on until it ends; return its exit code."""
        assert process.stdout is not None
        pump = threading.Thread(
            target=self._pump, args=(process.stdout,), name=f"read {self.name}", daemon=True
        )
        pump.start()
        # Not reaped yet: until it is, its process group's number belongs to nobody else.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            # What it started and left behind goes with it.
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            self._process = None
        # Bounded: a grandchild in a session of its own may hold the pipe open for ever.
        pump.join(1.0)
        return code

    def _pump(self, stream: IO[bytes]) -> None:
        with stream:
            for raw in iter(lambda: stream.readline(_MAX_LINE_BYTES), b""):
                # Of a progress bar that rewrites its line, what a terminal would show in the end.
                line = raw.decode("utf-8", "replace").rstrip().rpartition("\r")[2]
                self._tail.append(line)
                self.sink(self.name, line)
