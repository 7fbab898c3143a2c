"""`pocqueue scheduler`: the process that gives nonce ranges to GPUs."""

from __future__ import annotations

import signal
import time
from typing import Any


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


def scheduler() -> None:
    """Give nonce ranges to GPUs. Several may run: one leads, another takes over within 5 seconds."""
    from pocqueue.app import app
    from pocqueue.logs import log_to_stderr
    from pocqueue.rounds.sending import scheduler_service
    from pocqueue.settings import load_settings

    settings = load_settings()
    log_to_stderr(settings.log_level)
    stop = _Stop()

    def end(_signum: int, _frame: Any) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with scheduler_service(settings, app) as service:
        service.run(stop)
