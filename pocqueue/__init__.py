"""pocqueue: rounds of proof-of-compute over any number of GPUs.

`celery -A pocqueue …` finds the Celery application here; it is made on first use, so that
`import pocqueue` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery

__version__ = "0.1.0"
__all__ = ["__version__", "celery"]

celery: Celery


def __getattr__(name: str) -> Any:
    if name == "celery":
        from pocqueue.app import app

        return app
    raise AttributeError(f"module 'pocqueue' has no attribute {name!r}")
