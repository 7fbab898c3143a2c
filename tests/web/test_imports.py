"""The toolkit stands below every feature."""

from __future__ import annotations

import ast
from pathlib import Path

import pocqueue.web.app

#: What the toolkit may know of pocqueue, beside itself.
KNOWN = {"pocqueue", "closing", "errors", "files", "web"}


def test_the_toolkit_knows_no_feature() -> None:
    """Neither rounds nor a service: what it needs of them, such as a count in Redis, comes as an argument."""
    imported: set[str] = set()
    for file in Path(pocqueue.web.app.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [node.module]
            ours = [name.split(".") for name in names if name.split(".")[0] == "pocqueue"]
            imported |= {parts[1] if len(parts) > 1 else "pocqueue" for parts in ours}
    assert imported <= KNOWN
