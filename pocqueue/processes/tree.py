"""A supervised tree of child processes in the foreground: what `pocqueue up` and `demo` stand on.

Promises:
- Children start in the order of the calls of `start` and stop in the reverse order: SIGTERM, a
  bounded wait, then SIGKILL to the whole process group. Ctrl-C while stopping kills at once.
- A Ctrl-C at the terminal reaches only the owner: each child leads a session of its own.
- A child that ends by itself is started again, later each time, and given up after a few times. One
  that ends with code 2 (bad input, and it said what) is not: nothing would be better next time.
- However the owner ends, by SIGKILL too, every child gets SIGTERM (on Linux): no orphan goes on.
- Nothing goes through a shell.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from typing_extensions import override

from pocqueue.closing import Closing
from pocqueue.processes.child import Child, Failure, RestartPolicy, Sink

#: How long a child may take to end after SIGTERM; a GPU worker finishes its batch within 25 s.
STOP_TIMEOUT_S = 30.0

# What is left to do after SIGKILL takes milliseconds; this bounds a process stuck in the kernel.
_KILL_WAIT_S = 5.0


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Within the block SIGINT, SIGTERM and a hang-up of the terminal raise KeyboardInterrupt.

    Main thread only. A hang-up that is ignored, as under nohup, stays ignored.
    """
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    before = [(number, signal.signal(number, signal.default_int_handler)) for number in signals]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def drop(_name: str, _line: str) -> None:
    """Take a line and do nothing with it: the sink of whoever wants none."""


def log_files(folder: Path) -> Sink:
    """Return a sink that writes a log file for each child, `<name>.log`, afresh each time."""
    folder.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        log.unlink()

    def write(name: str, line: str) -> None:
        # A full disk, say, must not end the thread that reads the child's lines.
        with (
            contextlib.suppress(OSError),
            (folder / f"{name}.log").open("a", encoding="utf-8") as log,
        ):
            log.write(f"{line}\n")

    return write


@dataclass(eq=False)
class ProcessTree(Closing):
    """Child processes that start, run and stop together. A context manager that stops them."""

    #: Gets every line of every child, from several threads.
    sink: Sink = drop
    stop_timeout_s: float = STOP_TIMEOUT_S  #: seconds between SIGTERM and SIGKILL
    #: When a child that ended is started again.
    restarts: RestartPolicy = field(default_factory=RestartPolicy)

    def __post_init__(self) -> None:
        self._added: list[Child] = []
        self._stages: list[list[Child]] = []
        self._failures: list[Failure] = []
        self._failed = threading.Event()

    def add(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        pass_fds: Sequence[int] = (),
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        """Add a child for the next `start`.

        Args:
            name: what its lines are called.
            argv: the program, by path or looked up on the PATH, and its arguments.
            env: its whole environment; None is ours.
            pass_fds: open files that it inherits; a lock among them lasts as long as the child.
            stop_signal: what asks it to end. When its owner dies, it gets SIGTERM all the same.
        """
        self._added.append(
            Child(
                name,
                argv,
                env,
                self.sink,
                pass_fds=tuple(pass_fds),
                stop_signal=stop_signal,
                restarts=self.restarts,
                on_failure=self._fail,
            )
        )

    def start(self) -> None:
        """Start what was added since the last call, as one stage: these stop at the same time."""
        stage, self._added = self._added, []
        self._stages.append(stage)
        for child in stage:
            child.start()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to the process group of the child of that name, if it runs now.

        One that ends by it is started again, as after any end of its own.
        """
        for stage in self._stages:
            for child in stage:
                if child.name == name:
                    child.signal(number)

    def wait(self, timeout_s: float | None = None) -> Failure | None:
        """Wait until a child has ended for good; return it, or None when time is up.

        The others go on; leaving the context, or `close`, ends them.
        """
        self._failed.wait(timeout_s)
        return self._failures[0] if self._failures else None

    @override
    def close(self) -> None:
        """Stop all children in the reverse order of their start; may be called again.

        Raises:
            KeyboardInterrupt: a second Ctrl-C; everything was killed by then.
        """
        try:
            while self._stages:
                self._stop_stage(self._stages[-1])
                self._stages.pop()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End all children at once with SIGKILL."""
        children = [child for stage in self._stages for child in stage]
        for child in children:
            child.kill()
        for child in children:
            child.join(_KILL_WAIT_S)
        self._stages.clear()

    def _stop_stage(self, stage: list[Child]) -> None:
        for child in reversed(stage):
            child.terminate()
        deadline = time.monotonic() + self.stop_timeout_s
        for child in reversed(stage):
            if not child.join(max(0.0, deadline - time.monotonic())):
                child.note(f"did not end within {self.stop_timeout_s:g} s and is killed")
                child.kill()
                child.join(_KILL_WAIT_S)

    def _fail(self, failure: Failure) -> None:
        self._failures.append(failure)
        self._failed.set()
