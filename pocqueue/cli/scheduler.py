"""`pocqueue scheduler`: the process that gives nonce ranges to GPUs."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from pocqueue.cli.options import Host, Port

if TYPE_CHECKING:
    from pocqueue.settings import Settings


class _Stop:
    """A flag that a signal handler may set.

    Not `threading.Event`: its lock may be held by the very code that the handler interrupts.
    """

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while not self._set and time.monotonic() < deadline:
            time.sleep(0.05)
        return self._set


def scheduler(metrics_port: Port = None, metrics_address: Host = None) -> None:
    """Give nonce ranges to GPUs. Several may run: one leads, another takes over within 4 seconds.

    Where a metrics port is set it serves Prometheus metrics there.
    """
    from pocqueue.settings import Settings

    run(Settings.override(metrics_port=metrics_port, metrics_address=metrics_address))


def run(settings: Settings, **timings: float) -> None:
    """Schedule until SIGTERM or Ctrl-C.

    Args:
        timings: that differ from those of `SchedulerTimings`.
    """
    from pocqueue.app import app
    from pocqueue.logs import log_to_stderr
    from pocqueue.rounds.scheduler import SchedulerTimings
    from pocqueue.rounds.scheduler_process import run_scheduler

    log_to_stderr(settings.log_level)
    stop = _Stop()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    run_scheduler(settings, app, stop, SchedulerTimings(**timings))
