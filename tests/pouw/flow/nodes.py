"""Networks of a few nodes in this process: their links, chains and the trainer's child are real."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from pocqueue.pouw.chain import genesis as genesis_module
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.node import NodeConfig, PoUWNode
from tests.support.waiting import PATIENCE_S

_DEV = Path(genesis_module.__file__).with_name("dev.toml")


def quick_genesis(folder: Path, **changed: object) -> str:
    """Return the path of a network like `dev` whose blocks and slots follow each other quickly.

    Args:
        folder: for its file.
        changed: numbers of it, by name.
    """
    numbers = {"block_ms": 1000, "halflife_ms": 20_000, "first_target_bits": 252, "slot_ms": 0}
    lines = ['name = "quick"']
    for line in _DEV.read_text().splitlines()[2:]:
        name = line.partition(" = ")[0]
        value = {**numbers, **changed}.get(name)
        lines.append(line if value is None else f"{name} = {value}")
    path = folder / "quick.toml"
    path.write_text("\n".join(lines))
    return str(path)


def node(name: str, role: NodeRole, network: str, *peers: PoUWNode, **fields: Any) -> PoUWNode:
    """Return a node on a free port that dials others."""
    config = NodeConfig(
        name,
        role,
        host="127.0.0.1",
        port=0,
        network=network,
        initial_stake=2000.0,
        bootstrap_peers=[("127.0.0.1", peer.port) for peer in peers],
        **fields,
    )
    return PoUWNode(name, role, config=config)


@contextlib.asynccontextmanager
async def running(*nodes: PoUWNode) -> AsyncIterator[None]:
    """Stop nodes after the block, whichever of them run."""
    try:
        yield
    finally:
        await asyncio.gather(*(one.stop() for one in nodes))


async def begin(one: PoUWNode, stake: float = 100.0, *, mine: bool = True) -> None:
    """Start a node, take its ticket, and let it mine."""
    await one.start()
    one.stake_and_register(stake)
    if mine:
        await one.start_mining()


def height(one: PoUWNode) -> int:
    """Return the height of a node's chain."""
    found = one.get_status()["blockchain_height"]
    assert isinstance(found, int)
    return found


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something; fail if it does not come."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        await asyncio.sleep(0.05)
