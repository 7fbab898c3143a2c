"""Runs the programs of docs/pouw.md, their own text but for shorter sleeps, and reads the files that one makes; as `run`,
in a network of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from pocqueue.pouw.chain.tasks import parse_requirements
from pocqueue.pouw.data.parts import TESTING, read
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.node import PoUWNode
from tests.pouw.examples.run import examples, find, until
from tests.support.waiting import PATIENCE_S


async def main(document: Path) -> dict[str, Any]:
    """Run the network; then the client and the watch over a node beside a supervisor. Return what was said."""
    texts, said = examples(document), io.StringIO()
    with contextlib.redirect_stdout(said):
        [network] = find(texts, "small_network").coroutines
        await asyncio.wait_for(network, PATIENCE_S)
        supervisor = PoUWNode("bootstrap_001", NodeRole.SUPERVISOR)
        await supervisor.start()
        try:
            alerts = list[str]()
            find(texts, "watch_over").names["watch_over"](supervisor, alerts.append)
            supervisor.stake_and_register(1000.0)
            [client] = find(texts, "order_a_model").coroutines
            await asyncio.wait_for(client, PATIENCE_S)
            assert supervisor.security_system is not None
            supervisor.security_system.tell(
                "isolated", source_peer="", detail="a try", height=1, slot=0, evidence=""
            )
            await until(lambda: bool(alerts), "an alert")
        finally:
            await supervisor.stop()
    private = find(texts, "noise_multiplier").names["model_requirements"]
    laps = parse_requirements(private, "digits").max_epochs
    with tempfile.TemporaryDirectory() as folder:
        find(texts, "make_files").names["make_files"](Path(folder))
        own = read(Path(folder) / "own.safetensors")
        sizes = [
            len(own.parts["train"].y),
            *read(Path(folder) / "hidden.safetensors", TESTING).parts["test"].x.shape,
        ]
    return {
        "sizes": sizes,
        "private laps": laps,
        "num": len(texts),
        "said": said.getvalue().splitlines(),
        "alerts": alerts,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(Path(sys.argv[1])))) + "\n")
