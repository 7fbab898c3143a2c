"""Makes docs/pouw.svg: the table of a testnet that runs for a while.

`python -m tests.pouw.picture docs/pouw.svg` (`make pouw-picture`) runs four supervisors, three miners, a verifier and an evaluator as `pocqueue
pouw testnet` does, and draws the last table that it would show.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from pocqueue.cli.pouw_nodes import found_network, look, places, running
from pocqueue.cli.pouw_view import table, verdict

_ROLES = [*["supervisor"] * 4, *["miner"] * 3, "verifier", "evaluator"]
_COMMAND = "pocqueue pouw testnet --supervisors 4 --miners 3 --verifiers 1 --evaluators 1"
_WIDTH = 112
_SECONDS = 100.0


def picture(seconds: float = _SECONDS) -> str:
    """Return the picture of a network that has run for so long."""
    nodes = places(_ROLES)
    with (
        tempfile.TemporaryDirectory(prefix="pocqueue-testnet-") as folder,
        running(nodes, Path(folder), found_network(nodes, Path(folder))) as tree,
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
    return screen.export_svg(title=_COMMAND)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture())
