"""JSON that every reader reads alike: no name twice in an object, no NaN or infinity."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


def loads(text: str) -> Any:
    """Return what a text holds.

    Raises:
        ValueError: it is no such JSON; says why, without a capital or a full stop.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as exc:
        raise ValueError(f"{exc.msg}: line {exc.lineno} column {exc.colno}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Readers differ in which of the two they take: one may see what another has not verified.
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the field {twice[:40]!r} is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
