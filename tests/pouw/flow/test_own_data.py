"""A client's own data on a network of a supervisor and two miners: they get them from it, and train on them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from pocqueue.pouw.blockchain import MLTask
from pocqueue.pouw.economics import NodeRole
from tests.pouw.data.files import vectors, write
from tests.pouw.flow.nodes import begin, node, quick_genesis, running
from tests.support.waiting import PATIENCE_S

MIN_ACCURACY = 0.75
ENDS = {"settled", "refunded"}


async def test_a_clients_data_are_trained_on(tmp_path: Path) -> None:
    """What comes of them is far above the commonest answer; those who trained had each a copy."""
    network = quick_genesis(tmp_path)
    own = write(tmp_path / "own.safetensors", vectors(num_train=600, num_val=150))
    supervisor = node("supervisor", NodeRole.SUPERVISOR, network)
    async with running(supervisor):
        await begin(supervisor, mine=False)
        miners = [node(f"miner_{n}", NodeRole.MINER, network, supervisor) for n in (1, 2)]
        client = node("client", NodeRole.PEER, network, supervisor)
        async with running(client, *miners):
            for miner in miners:
                await begin(miner)
            await client.start()
            name = await client.add_dataset(own)
            task = MLTask(
                task_id="own",
                task_type="classification",
                dataset_hash=name,
                model_requirements={"min_accuracy": MIN_ACCURACY, "hidden": [16], "min_miners": 2},
                reward_amount=50.0,
                deadline=int(time.time() + 3600),
            )
            ordered = await client.order_task(task, fee=5.0)
            assert client._life is not None
            async with asyncio.timeout(PATIENCE_S):
                while (found := await client.views.task(ordered))["state"] not in ENDS:
                    await client._life._core.chain_changed.heard(1.0)
            assert found["state"] == "settled", found
            assert found["accuracy"] >= MIN_ACCURACY
