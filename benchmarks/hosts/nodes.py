"""Machines that joined long ago: they are in the database, and their agents have the keys.

Written at once and without waiting for the disk, as joining is not what is measured; 5,000 tokens would take a minute.
"""

from __future__ import annotations

import secrets
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import insert

from pocqueue.hosts import wallets
from pocqueue.hosts.gateway.job_message import sleep_job
from pocqueue.hosts.store.database import FILE_NAME, Database, file_url
from pocqueue.hosts.tables import job, node, node_gpu, wallet
from tests.support.node_key import NodeKey

#: Machines of one owner.
NODES_PER_WALLET = 10


@dataclass(frozen=True, slots=True)
class Seat:
    """What the agent of a node knows, and where it is."""

    node_id: str
    wallet: str
    key: NodeKey
    address: str  #: on loopback, of its own: a gateway bounds what comes from one


def address_of(number: int) -> str:
    """Return the address of a machine, among sixteen millions of loopback's.

    >>> address_of(0), address_of(300)
    ('127.1.0.1', '127.1.1.51')
    """
    block, last = divmod(number, 250)
    return f"127.{1 + block // 250}.{block % 250}.{last + 1}"


def write_nodes(state_dir: Path, num: int) -> list[Seat]:
    """Make a database with so many nodes of one GPU each, which have done their test job."""
    now_ms = int(1000 * time.time())
    num_wallets = -(-num // NODES_PER_WALLET)
    owners = [wallets.encode(secrets.token_bytes(32)) for _ in range(num_wallets)]
    seats = [
        Seat(str(uuid.uuid4()), owners[n // NODES_PER_WALLET], NodeKey.generate(), address_of(n))
        for n in range(num)
    ]
    with Database(file_url(state_dir / FILE_NAME)) as database:
        database.migrate()
        with database.write() as connection:
            connection.execute(
                insert(wallet), [{"address": one, "proven_ms": now_ms} for one in owners]
            )
            connection.execute(insert(node), [_node(seat, now_ms) for seat in seats])
            connection.execute(insert(node_gpu), [_gpu(seat) for seat in seats])
            connection.execute(insert(job), [_test_job(seat, now_ms) for seat in seats])
    return seats


def gpu_of(seat: Seat) -> dict[str, object]:
    """Return a node's GPU as its agent tells of it."""
    return {
        "uuid": f"GPU-{seat.node_id}",
        "name": "NVIDIA GeForce RTX 4090",
        "index": 0,
        "vramMib": 24_564,
    }


def _node(seat: Seat, now_ms: int) -> dict[str, object]:
    return {
        "id": seat.node_id,
        "wallet": seat.wallet,
        "proven": True,
        "state": "active",
        "hostname": "gpu-rig",
        "os": "Debian 12",
        "key": seat.key.public_hex,
        "protocol": 2,
        "agent_version": "bench",
        "isolation": "bubblewrap",
        "kinds": ["test", "command"],
        "address": seat.address,
        "first_ms": now_ms,
        "last_ms": now_ms,
    }


def _gpu(seat: Seat) -> dict[str, object]:
    return {
        "node_id": seat.node_id,
        "uuid": f"GPU-{seat.node_id}",
        "position": 0,
        "name": "NVIDIA GeForce RTX 4090",
        "vram_mib": 24_564,
        "healthy": True,
    }


def _test_job(seat: Seat, now_ms: int) -> dict[str, object]:
    new = sleep_job(seat.node_id, 5)
    return {
        "id": str(uuid.uuid4()),
        "kind": new.kind,
        "spec": new.spec,
        "submitter": new.submitter,
        "state": "completed",
        "priority": new.priority,
        "gpus": new.gpus,
        "vram_mib": new.vram_mib,
        "only_node": seat.node_id,
        "timeout_s": new.timeout_s,
        "rate_micro": 10_000,
        "max_attempts": new.max_attempts,
        "attempts": 0,
        "created_ms": now_ms,
        "ended_ms": now_ms,
    }
