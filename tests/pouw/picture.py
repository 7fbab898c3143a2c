"""Makes docs/pouw.svg: the table of a testnet that runs for a while.

`python -m tests.pouw.picture docs/pouw.svg` (`make pouw-picture`) runs a supervisor, three miners and a verifier as `pocqueue
pouw testnet` does, and draws the last table that it would show.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from pocqueue.cli.pouw_nodes import look, places, running
from pocqueue.cli.pouw_view import table, verdict

_ROLES = ["supervisor", "miner", "miner", "miner", "verifier"]
_WIDTH = 100
_SECONDS = 70.0


def picture(seconds: float = _SECONDS) -> str:
    """Return the picture of a network that has run for so long."""
    nodes = places(_ROLES)
    with (
        tempfile.TemporaryDirectory(prefix="pocqueue-testnet-") as folder,
        running(nodes, Path(folder)) as tree,
    ):
        failure = tree.wait(seconds)
        if failure is not None:
            raise SystemExit(failure.message)
        found = look(nodes)
    said = verdict(found)
    if not said["agree"]:
        raise SystemExit(said["sentence"])
    screen = Console(record=True, file=io.StringIO(), force_terminal=True, width=_WIDTH)
    screen.print(table(found, width=_WIDTH, up_s=seconds))
    return screen.export_svg(title="pocqueue pouw testnet --miners 3 --verifiers 1")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture())
