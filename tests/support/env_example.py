"""Read config/env.example: comment lines, then `NAME=value` or, for a default, `#NAME=value`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_VARIABLE = re.compile(r"(?P<off>#?)(?P<name>[A-Z][A-Z0-9_]*)=(?P<value>.*)")


@dataclass(frozen=True)
class Variable:
    """One variable of the file."""

    name: str
    value: str
    active: bool  # False behind `#`: the value is the default
    explanation: str  # the comment line above


def read_env_example() -> dict[str, Variable]:
    """Return the variables of config/env.example by name, in its order."""
    found: dict[str, Variable] = {}
    explanation = ""
    for line in (ROOT / "config" / "env.example").read_text().splitlines():
        if match := _VARIABLE.fullmatch(line):
            name = match["name"]
            assert name not in found, f"{name} stands twice in config/env.example"
            found[name] = Variable(name, match["value"], not match["off"], explanation)
            explanation = ""
        elif line.startswith("# "):
            explanation = line.removeprefix("# ")
        else:
            assert not line, f"neither comment nor variable: {line!r}"
            explanation = ""
    return found
