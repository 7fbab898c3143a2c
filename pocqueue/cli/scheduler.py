"""`pocqueue scheduler`: the process that gives nonce ranges to GPUs."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from pocqueue.cli.options import Host, Port
from pocqueue.cli.watch import Interrupts

if TYPE_CHECKING:
    from pocqueue.settings import Settings


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
    with Interrupts(signal.SIGTERM, signal.SIGINT) as stop:
        run_scheduler(settings, app, stop, SchedulerTimings(**timings))
