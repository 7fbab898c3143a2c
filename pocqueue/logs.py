"""How processes other than Celery's log: to standard error, one line a message."""

from __future__ import annotations

import logging


def log_to_stderr(level: str) -> None:
    """Log pocqueue's messages from `level` on, and others' warnings."""
    logging.basicConfig(
        level=logging.WARNING, format="[%(asctime)s: %(levelname)s] %(message)s", force=True
    )
    logging.getLogger("pocqueue").setLevel(level)
