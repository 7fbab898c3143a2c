"""A node in a process of its own: ``python -m tests.pouw.p2p.node_process KEY_FILE PORT``.

Prints the port that it listens on, answers requests with their own bytes, and runs until it is ended.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from pocqueue.node.keys import SigningKey
from tests.pouw.p2p.nodes import Node, running


async def _run(key: SigningKey, port: int) -> None:
    node = Node("child", key, port=port)
    async with running(node):
        sys.stdout.write(f"{node.network.port}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_run(SigningKey.load(Path(sys.argv[1])), int(sys.argv[2])))
