"""What the bodies of several services have in common."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict


def example(**fields: Any) -> ConfigDict:
    """Return the configuration of a model that shows these fields as its example."""
    return ConfigDict(json_schema_extra={"examples": [fields]})
