"""Wallets with machines of every kind, as a page shows them."""

from __future__ import annotations

import math
from typing import Final

from pocqueue.hosts.records import Gpu, Node, Report
from pocqueue.hosts.store import HostStore
from pocqueue.hosts.store.health import LOAD_STEP_MS
from pocqueue.hosts.tables import gpu_load
from tests.hosts.parts import joined, new_wallet, running, sleep

#: What goes wrong, in turn: each machine has one of these, or nothing.
WRONG: Final = ("", "gpu", "offline", "", "driver", "held", "drained", "")


def fleet(store: HostStore, num: int) -> str:
    """Let a new wallet have machines; return it."""
    wallet = new_wallet()
    store.owners.issue_token(wallet, proven=True)  # the wallet is known, and one token waits
    nodes = [_machine(store, wallet, number) for number in range(num)]
    for node in nodes[:60]:
        if node.proven and node.relay is not None and node.state == "active":
            done = store.jobs.submit(sleep(5, only_node=node.id))
            running(store, done.id)
            store.leases.finish(done.id, node.id, Report("completed"))
            store.ledger.correct(node.id, 50_000, f"five seconds of {node.id}")
    if nodes:
        at_work = store.jobs.submit(sleep(3600, only_node=nodes[0].id, gpus=1, kind="container"))
        running(store, at_work.id)
        store.ledger.pay_out()
        store.ledger.correct(nodes[0].id, 1_250_000, "a long night")
    return wallet


def _machine(store: HostStore, wallet: str, number: int) -> Node:
    wrong = WRONG[number % len(WRONG)]
    num_gpus = 8 if number % 5 == 2 else 1 + number % 2
    name = "NVIDIA H100 80GB HBM3" if num_gpus == 8 else "NVIDIA GeForce RTX 4090"
    gpus = tuple(Gpu(f"GPU-{number}-{at}", name, 81_559, "9.0") for at in range(num_gpus))
    node = joined(
        store,
        wallet=wallet,
        hostname=f"gpu-rig-{number:02}.rack-{number % 7}.example.com",
        gpus=gpus,
        proven=wrong != "held",
        connect=wrong != "offline",
    )
    if wrong == "gpu":
        row = {
            "name": "gpu_memory",
            "state": "fail",
            "measured": "uncorrected errors: 3",
            "wanted": "none",
            "remedy": "reset it: `sudo nvidia-smi -i 0 --gpu-reset`",
            "gpu": gpus[0].uuid,
        }
        store.health.set_self_test(
            node.id, [row], {gpus[0].uuid: "gpu_memory: uncorrected errors: 3"}
        )
    elif wrong == "driver":
        row = {
            "name": "driver",
            "state": "fail",
            "measured": "driver 535.104 and kernel module 550.54 differ",
            "wanted": "the same version",
            "remedy": "restart the machine",
        }
        store.health.set_self_test(node.id, [row], {})
    elif wrong == "held":
        store.ledger.correct(node.id, 50_000, f"the test job of {node.id}")
    elif wrong == "drained":
        store.nodes.set_state(node.id, "draining", actor="admin")
    elif wrong != "offline":
        _load(store, node, number)
    return store.nodes.get(node.id)


def _load(store: HostStore, node: Node, number: int) -> None:
    newest = store.now_ms() // LOAD_STEP_MS
    rows = [
        {
            "node_id": node.id,
            "uuid": gpu.uuid,
            "from_ms": (newest - back) * LOAD_STEP_MS,
            "percent": 50 + 49 * math.sin(back / 9 + at + number),
            "samples": 60,
        }
        for at, gpu in enumerate(node.gpus)
        for back in range(96)
        if back % 31
    ]
    with store.database.write() as connection:
        connection.execute(gpu_load.insert(), rows)
