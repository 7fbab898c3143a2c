"""Short ways to a node that has joined and a job that runs."""

from __future__ import annotations

import secrets
from itertools import count
from typing import Any

from nacl.signing import SigningKey

from pocqueue.hosts import wallets
from pocqueue.hosts.records import Attempt, Gpu, HostFacts, NewJob, Node
from pocqueue.hosts.store import HostStore
from tests.support.node_key import NodeKey

_NUMBERS = count(1)


class Wallet:
    """A wallet with its key."""

    def __init__(self) -> None:
        self._key = SigningKey.generate()
        self.address = wallets.encode(bytes(self._key.verify_key))

    def sign(self, text: str) -> bytes:
        """Sign a text."""
        return self._key.sign(text.encode()).signature


def new_wallet() -> str:
    """Return an address that nobody else has."""
    return wallets.encode(secrets.token_bytes(32))


def gpus(num: int, vram_mib: int = 24_576) -> tuple[Gpu, ...]:
    """Return GPUs with uuids that nobody else has."""
    return tuple(
        Gpu(f"GPU-{next(_NUMBERS):06}", "NVIDIA GeForce RTX 4090", vram_mib, "8.9")
        for _ in range(num)
    )


def facts(**changes: Any) -> HostFacts:
    """Return what a machine with one GPU and our agent says of itself."""
    fields: dict[str, Any] = {
        "hostname": "gpu-rig-01",
        "os": "Debian 12",
        "gpus": gpus(1),
        "protocol": 2,
        "agent_version": "0.1.0",
        "isolation": "bubblewrap",
        "kinds": ("test", "command", "container"),
    }
    return HostFacts(**fields | changes)


def joined(
    store: HostStore,
    *,
    wallet: str | None = None,
    proven: bool = True,
    address: str = "192.0.2.1",
    key: NodeKey | None = None,
    connect: bool = True,
    **changes: Any,
) -> Node:
    """Let a node in with a token of its own, and connect it to relay ``here``."""
    owner = wallet or new_wallet()
    token = store.owners.issue_token(owner, proven=proven).token
    public = (key or NodeKey.generate()).public_hex if changes.get("protocol", 2) > 1 else None
    node = store.nodes.register(token, facts(**changes), address=address, key=public)
    if connect:
        store.presence.connected(node.id, "here", f"socket of {node.id}")
    return store.nodes.get(node.id)


def sleep(seconds: int = 5, **changes: Any) -> NewJob:
    """Return a job of an admin that takes so many seconds."""
    fields: dict[str, Any] = {
        "kind": "command",
        "spec": {"argv": ["sleep", str(seconds)], "text": f"sleep {seconds}"},
        "submitter": "admin",
        "timeout_s": 60,
    }
    return NewJob(**fields | changes)


def running(store: HostStore, job_id: str) -> Attempt:
    """Place a job, send it and have its node begin."""
    turn = store.places.place(job_id)
    assert isinstance(turn, Attempt), turn
    store.leases.sent(job_id, turn.n)
    return store.leases.started(job_id, turn.n, turn.node_id)
