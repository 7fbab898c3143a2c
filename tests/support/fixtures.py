"""Types of the fixtures in `tests/conftest.py`."""

from __future__ import annotations

from typing import Any, Protocol

from pocqueue.settings import Settings


class SettingsFactory(Protocol):
    """Makes settings with some fields changed."""

    def __call__(self, **changes: Any) -> Settings: ...
