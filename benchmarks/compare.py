"""Compare two runs of `make bench`: the ratio of each figure, and what the two were measured on.

python -m benchmarks.compare OLD.json NEW.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

#: What has to be the same before a ratio says anything about the code.
HARDWARE = ("cpu", "cores", "gpu")


def main() -> None:
    """Print the table; exit with 2 where a file is no result of `make bench`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    arguments = parser.parse_args()
    try:
        old, new = _read(arguments.old), _read(arguments.new)
    except ValueError as exc:
        sys.stderr.write(f"benchmarks.compare: {exc}\n")
        sys.exit(2)
    print(comparison(old, new))


def comparison(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return the table of two results, as text.

    Args:
        old: content of the file that `benchmarks.run` wrote.
        new: the same of another run.
    """
    lines = [
        f"{name} differs: {old['machine'].get(name)} and {new['machine'].get(name)}"
        for name in HARDWARE
        if old["machine"].get(name) != new["machine"].get(name)
    ]
    before = {figure["name"]: figure for figure in old["figures"]}
    after = {figure["name"]: figure for figure in new["figures"]}
    width = max(map(len, before | after), default=0)
    lines.append(f"{'':{width}}  {'old':>12}  {'new':>12}  new/old  measured new/old")
    for name, figure in after.items():
        if name in before:
            lines.append(f"{name:{width}}  {_row(before[name], figure)}")
    lines += [f"{name:{width}}  only in the new run" for name in after if name not in before]
    lines += [f"{name:{width}}  only in the old run" for name in before if name not in after]
    return "\n".join(lines)


def _row(old: dict[str, Any], new: dict[str, Any]) -> str:
    values = old["value"], new["value"]
    medians = old["measured"]["median"], new["measured"]["median"]
    return f"{values[0]:12.4g}  {values[1]:12.4g}  {_ratio(*values):>7}  {_ratio(*medians):>7} {new['measured']['unit']}"


def _ratio(old: float, new: float) -> str:
    return f"{new / old:.3f}" if old else "-"


def _read(path: Path) -> dict[str, Any]:
    """Read a result.

    Raises:
        ValueError: it cannot be read, or is something else; says which file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not all(
            "value" in figure and "median" in figure["measured"] for figure in content["figures"]
        ):
            raise ValueError("figures without a value")
        dict(content["machine"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ValueError(
            f"{path} is no result of `make bench` ({type(exc).__name__}: {exc}); give two files that "
            "`python -m benchmarks.run --output FILE` wrote."
        ) from exc
    result: dict[str, Any] = content
    return result


if __name__ == "__main__":
    main()
