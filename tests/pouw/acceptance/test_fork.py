"""One account's coins, spent on two sides of a fork."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from pocqueue.node.keys import SigningKey
from pocqueue.pouw.blockchain import MLTask
from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.node import NodeConfig, PoUWNode
from tests.pouw.acceptance.history import assert_one_history
from tests.pouw.acceptance.processes import NodeProcess
from tests.pouw.flow.nodes import quick_genesis
from tests.support.waiting import until


async def _order(network: str, key: SigningKey, name: str, through: NodeProcess) -> None:
    """Have a client order a task; return when it is in a block."""
    config = NodeConfig(
        *("client", NodeRole.PEER, "127.0.0.1", 0),
        network=network,
        initial_stake=1000.0,
        bootstrap_peers=[("127.0.0.1", through.port)],
        key=key,
    )
    client = PoUWNode("client", NodeRole.PEER, config=config)
    await client.start()
    try:
        await until(lambda: client.get_economic_status()["balance"] >= 1000)
        task = MLTask(
            *(name, "image_classification", "digits", {"min_accuracy": 0.5, "max_epochs": 10}),
            *(1000.0, int(time.time()) + 3600),
        )
        assert await client.submit_task(task, 100.0)
        await until(lambda: _names(through) == {name})
    finally:
        await client.stop()


def _names(one: NodeProcess) -> set[str]:
    return {task["name"] for task in one.ask("tasks") or ()}


@pytest.mark.long
async def test_a_double_spend_on_two_sides_of_a_fork_counts_once(tmp_path: Path) -> None:
    """Two supervisors that do not see each other each make a block of it; joined, both have the same one of the two."""
    network, key = quick_genesis(tmp_path), SigningKey.generate()
    one = NodeProcess(tmp_path / "one", "supervisor", network, options="--no-mine")
    other = NodeProcess(tmp_path / "other", "supervisor", network, one, options="--no-mine")
    account = key.public_hex
    try:
        one.start()
        await asyncio.to_thread(one.until_past, "blockchain_height", 0)
        other.start()
        await until(lambda: len(one.ask("peers")) == 1)
        owner = other.ask()["public_key"]
        await until(lambda: one.ask(f"accounts/{owner}")["tickets"])
        # Both have the client's coins.
        faucet = PoUWNode(
            "faucet",
            NodeRole.PEER,
            config=NodeConfig(
                *("faucet", NodeRole.PEER, "127.0.0.1", 0),
                network=network,
                initial_stake=1000.0,
                bootstrap_peers=[("127.0.0.1", one.port)],
                key=key,
            ),
        )
        await faucet.start()
        try:
            await until(
                lambda: all(
                    node.ask(f"accounts/{account}")["balance"] == 2000 for node in (one, other)
                )
            )
        finally:
            await faucet.stop()

        await asyncio.to_thread(other.stop)
        await _order(network, key, "first", one)
        await asyncio.to_thread(one.stop)
        other.start()
        await asyncio.to_thread(other.until_past, "blockchain_height", 0)
        await _order(network, key, "second", other)
        heights = [other.number("blockchain_height")]
        one.start()
        await until(lambda: one.ask() is not None and one.ask("peers"))
        await until(lambda: _names(one) == _names(other) and len(_names(one)) == 1)
        for node in (one, other):
            left = node.ask(f"accounts/{account}")["balance"]
            assert 899.9 < left < 900, "reward, fees, and once"
            assert node.number("blockchain_height") >= heights[0]
        [tips] = {tuple(block["id"] for block in node.ask("blocks")) for node in (one, other)}
        assert tips
        for node in (one, other):
            await asyncio.to_thread(node.until_past, "anchor_height", 0)
        assert_one_history((one, other))
    finally:
        one.stop()
        other.stop()
