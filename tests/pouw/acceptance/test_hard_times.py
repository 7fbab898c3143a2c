"""A network of processes that things happen to: it goes on, with one history."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pocqueue.pouw.economics import NodeRole
from pocqueue.pouw.flow.blocks import BlockFlow
from pocqueue.pouw.node import NodeConfig, PoUWNode
from pocqueue.pouw.slots.slot_store import SLOTS_NAME
from pocqueue.pouw.wire.blocks import Block
from tests.pouw.acceptance.history import assert_one_history
from tests.pouw.acceptance.processes import NodeProcess
from tests.pouw.flow.nodes import quick_genesis
from tests.support.commands import pocqueue, pocqueue_here
from tests.support.small_disk import fill, small_disk
from tests.support.waiting import until, wait_for_line, wait_until


class _Network(NamedTuple):
    genesis: str
    folder: Path
    supervisor: NodeProcess
    miner: NodeProcess


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Network]:
    """Give a supervisor and a miner that have mined a few blocks; in the end they have one history."""
    folder = tmp_path_factory.mktemp("network")
    genesis = quick_genesis(folder, slot_ms=100, block_ms=1000, first_target_bits=250)
    supervisor = NodeProcess(folder / "supervisor", "supervisor", genesis, options="--no-mine")
    miner = NodeProcess(folder / "miner", "miner", genesis, supervisor)
    try:
        for one in (supervisor, miner):
            one.start()
        supervisor.until_past("anchor_height", 3)
        yield _Network(genesis, folder, supervisor, miner)
        height = supervisor.number("blockchain_height")
        miner.until_past("anchor_height", height)
        supervisor.until_past("anchor_height", height)
        assert_one_history((supervisor, miner))
    finally:
        for one in (miner, supervisor):
            one.stop()


@pytest.mark.long
def test_a_trainer_that_is_killed_costs_a_slot(network: _Network) -> None:
    """In the middle of an iteration: that is told once, and the next slots are mined."""
    miner = network.miner
    wait_until(lambda: (miner.ask() or {}).get("is_training"), message="an iteration")
    trainer = miner.trainer()
    assert trainer is not None
    trainer.kill()
    line = wait_for_line(miner.log, r"Mining goes on with the next slot: The trainer's child .*")
    assert "killed by SIGKILL" in line[0] or "signal 9" in line[0]
    miner.until_past("blockchain_height", miner.number("blockchain_height"))
    assert miner.log.read_text().count("Mining goes on with the next slot") == 1


def test_a_supervisor_that_stands_still_for_a_while_goes_on(network: _Network) -> None:
    """Nothing is certified without it, and its clock's jump is no harm."""
    supervisor, miner = network.supervisor, network.miner
    supervisor.signal(signal.SIGSTOP)
    try:
        time.sleep(4)  # what it had sent is there
        stood = miner.number("slot")
        time.sleep(1)
        assert miner.number("slot") == stood
    finally:
        supervisor.signal(signal.SIGCONT)
    miner.until_past("slot", stood + 5)
    miner.until_past("blockchain_height", miner.number("blockchain_height"))


def test_a_clients_task_is_trained_and_paid_for(network: _Network) -> None:
    """As `task submit --watch` tells it: a few laps, and who got what of the coins."""
    done = pocqueue(
        network.folder / "client",
        *("pouw", "task", "submit", "digits", "--reward", "50", "--fee", "5", "--watch", "--json"),
        *("--min-accuracy", "0.3", "--max-epochs", "30", "--name", "mine"),
        *("--bootstrap", f"127.0.0.1:{network.supervisor.port}"),
        POCQUEUE_POUW_NETWORK=network.genesis,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["state"] == "settled"
    assert "mine: settled" in done.stderr
    paid = {one["account"]: one["amount"] for one in found["payouts"]}
    assert network.miner.ask()["public_key"] in paid
    assert 0 < sum(paid.values()) <= 55
    [listed] = network.miner.ask("tasks")
    assert (listed["name"], listed["state"]) == ("mine", "settled")


async def test_a_newcomer_trains_over_nothing_that_is_final(
    network: _Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes all blocks and slots, and goes on with everybody."""
    trained_over: list[int] = []
    retrain = BlockFlow.retrain

    async def noted(self: BlockFlow, block: Block, *rest: Any) -> str:
        trained_over.append(block.header.height)
        return await retrain(self, block, *rest)

    monkeypatch.setattr(BlockFlow, "retrain", noted)
    final = network.supervisor.number("anchor_height")
    newcomer = PoUWNode(
        "newcomer",
        NodeRole.VERIFIER,
        config=NodeConfig(
            *("newcomer", NodeRole.VERIFIER, "127.0.0.1", 0),
            network=network.genesis,
            bootstrap_peers=[("127.0.0.1", network.supervisor.port)],
        ),
    )
    await newcomer.start()
    try:
        await until(lambda: newcomer.get_status()["anchor_height"] > final + 1)
        behind = await asyncio.to_thread(network.miner.number, "turn")
        await until(lambda: newcomer.get_status()["turn"] > behind)
        blocks = {one["height"]: one["id"] for one in await newcomer.views.blocks(1000)}
        theirs = await asyncio.to_thread(network.miner.ask, "blocks?last=1000")
        assert {one["height"]: one["id"] for one in theirs if one["height"] <= final} == {
            height: block for height, block in blocks.items() if height <= final
        }
    finally:
        await newcomer.stop()
    assert all(height > final for height in trained_over)


def test_a_node_on_a_full_disk_waits_for_room(network: _Network) -> None:
    """It says so, keeps what it has, and catches up as soon as there is room."""
    with small_disk(network.folder / "small"):
        node = NodeProcess(network.folder / "small", "peer", network.genesis, network.supervisor)
        node.start()
        try:
            node.until_past("anchor_height", 1)
            full = fill(node.folder)
            wait_for_line(node.log, "is full")
            height = network.miner.until_past(
                "blockchain_height", network.miner.number("blockchain_height")
            )
            assert node.number("blockchain_height") <= height
            full.unlink()
            node.until_past("anchor_height", height)
            assert_one_history((node, network.supervisor))
        finally:
            node.stop()


def test_a_block_is_verified_again(network: _Network) -> None:
    """Code 0 with its training done over; 1 once the maps that takes are gone."""
    supervisor = network.supervisor
    height = next(
        block["height"]
        for block in supervisor.ask("blocks?last=1000")
        if not block["proof"].startswith("founding")
    )
    env = {"POCQUEUE_STATE_DIR": str(network.folder)}
    command = ("pouw", "verify", str(height), "--http-port", str(supervisor.http_port))
    done = pocqueue_here(env, *command)
    assert done.returncode == 0, done.stdout
    assert "re-execution" in done.stdout
    with closing(sqlite3.connect(supervisor.folder / SLOTS_NAME, timeout=60)) as db:
        db.execute("DELETE FROM map")
        db.commit()
    # A winner's lap is kept in memory for two laps more.
    supervisor.until_past("slot", supervisor.number("slot") + 24)
    done = pocqueue_here(env, *command)
    assert done.returncode == 1, done.stdout
