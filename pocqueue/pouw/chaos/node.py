"""A real node that can be told over HTTP to lose its links and to cheat.

    python -m pocqueue.pouw.chaos.node --role miner …

It is `pocqueue pouw node`, options and all, with a roster that can be cut and three more routes: POST
/api/chaos/cut?account=…, /api/chaos/heal and /api/chaos/cheat/NAME.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any
from unittest.mock import patch

from fastapi import APIRouter, FastAPI, Query

from pocqueue import cli
from pocqueue.pouw import service
from pocqueue.pouw.chaos import cheats, links
from pocqueue.pouw.node import PoUWNode
from pocqueue.pouw.p2p import network


def main() -> None:
    """Run the node until it is told to end."""
    honest_app = service.make_node_app

    def make_node_app(node: PoUWNode, **options: Any) -> FastAPI:
        app = honest_app(node, **options)
        app.include_router(_routes(node))
        return app

    sys.argv = ["pocqueue", "pouw", "node", *sys.argv[1:]]
    with (
        patch.object(network, "Roster", links.CutRoster),
        patch.object(service, "make_node_app", make_node_app),
    ):
        cli.main()


def _routes(node: PoUWNode) -> APIRouter:
    router = APIRouter(prefix="/api/chaos")
    undone: list[cheats.Undo] = []

    @router.post("/cut")
    async def cut(account: Annotated[list[str], Query()]) -> bool:
        """End the links with these accounts, until it is healed."""
        links.cut(node._running.network, [bytes.fromhex(one) for one in account])
        return True

    @router.post("/heal")
    async def heal() -> bool:
        """Link to everybody again."""
        links.heal()
        return True

    @router.post("/cheat/{name}")
    async def cheat(name: str) -> bool:
        """Cheat in this way from now on; `none`: in no way."""
        while undone:
            undone.pop()()
        if name != "none":
            undone.append(cheats.CHEATS[name](node._running._core))
        return True

    return router


if __name__ == "__main__":
    main()
