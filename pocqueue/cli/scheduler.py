"""`pocqueue scheduler`: the process that gives nonce ranges to GPUs."""

from __future__ import annotations

import signal
import threading
from typing import Any


def scheduler() -> None:
    """Give nonce ranges to GPUs. Several may run: one leads, another takes over within 5 seconds."""
    from pocqueue.app import app
    from pocqueue.logs import log_to_stderr
    from pocqueue.rounds.sending import scheduler_service
    from pocqueue.settings import load_settings

    settings = load_settings()
    log_to_stderr(settings.log_level)
    stop = threading.Event()

    def end(_signum: int, _frame: Any) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with scheduler_service(settings, app) as service:
        service.run(stop)
