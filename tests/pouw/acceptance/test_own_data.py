"""A client's own data between real processes: from two files of a client to what its model gets right, and who was paid."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from pocqueue.pouw.training.samples import load
from tests.pouw.acceptance.processes import NodeProcess
from tests.pouw.data.files import write
from tests.pouw.flow.nodes import quick_genesis
from tests.support.commands import pocqueue
from tests.support.waiting import until

MIN_ACCURACY = 0.8


def _files(folder: Path) -> tuple[Path, Path]:
    """Return files of the built-in digits with other names for them, as pictures: to train on, and to test."""
    names = np.random.default_rng(0).permutation(10)
    parts = load("digits")._asdict()
    found = {
        f"{axis}_{part}": values
        for part, samples in parts.items()
        for axis, values in (("x", samples.x.reshape(-1, 8, 8)), ("y", names[samples.y]))
    }
    hidden = {name: found.pop(name) for name in ("x_test", "y_test")}
    return write(folder / "own.safetensors", found), write(folder / "hidden.safetensors", hidden)


@pytest.mark.long
async def test_data_of_ones_own_come_to_those_who_train_and_evaluate(tmp_path: Path) -> None:
    """The hidden part last of all; a miner that was killed while it trained goes on with what it had of them."""
    network = quick_genesis(tmp_path, reveal_blocks=10, result_blocks=5)
    own, hidden = _files(tmp_path)
    supervisor = NodeProcess(tmp_path / "supervisor", "supervisor", network, options="--no-mine")
    others = [
        NodeProcess(tmp_path / name, name.partition("_")[0], network, supervisor)
        for name in ("miner_1", "miner_2", "evaluator")
    ]
    nodes = [supervisor, *others]
    try:
        supervisor.start()
        await asyncio.to_thread(supervisor.until_past, "blockchain_height", 0)
        for one in others:
            one.start()
        await asyncio.to_thread(supervisor.until_past, "blockchain_height", 2)
        argv = ["--test", str(hidden), "--min-accuracy", str(MIN_ACCURACY), "--name", "mine"]
        argv += ["--bootstrap", f"127.0.0.1:{supervisor.port}", "--watch", "--json"]
        client = asyncio.create_task(
            asyncio.to_thread(
                pocqueue,
                tmp_path / "client",
                *("pouw", "task", "submit", str(own), *argv),
                POCQUEUE_POUW_NETWORK=network,
            )
        )
        miner = others[1]
        await until(lambda: client.done() or _slots(supervisor) > 0)
        assert (miner.folder / "data").is_dir()
        miner.kill()
        miner.start()
        done = await client
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["state"] == "settled"
        assert found["closing"]["is_revealed"]
        # Trained until x_val says what was asked for; the hidden part decides, and is worth most of the reward.
        closing = found["closing"]
        assert closing["correct"] >= MIN_ACCURACY * closing["total"]
        assert found["quality"] >= 0.9
        paid = {line["for"] for line in found["payouts"] if line["amount"]}
        assert {"training", "certifying", "evaluating"} <= paid
        # Everybody had both files; the hidden one only who evaluates.
        counts = [len(list((one.folder / "data").glob("*.manifest"))) for one in nodes]
        assert counts == [1, 1, 1, 2]
    finally:
        for one in nodes:
            one.stop()


def _slots(one: NodeProcess) -> int:
    tasks = one.ask("tasks")
    return int(tasks[0]["slots"]) if tasks else 0
