"""A small node as the network's chain sees it: over HTTP, on a pool of engines in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx

from pocqueue.node.app import create_app
from pocqueue.settings import DelegationSettings, NodeSettings, Settings
from tests.support.artifacts import K_DIM, artifact_of
from tests.support.fake_engine import FakeEngine
from tests.support.node import host_of, make_key

PREFIX = "/api/v1/inference/pow"
#: Of the proxy's answers, as it has no other one in tests.
PORT = 8080
#: A round of the model of `factories.make_info`.
ROUND: dict[str, Any] = {
    "block_hash": "9F2C64B1",
    "block_height": 7,
    "public_key": "02ab",
    "node_id": 1,
    "node_count": 3,
    "params": {"model": "twin", "seq_len": 8, "k_dim": K_DIM},
}


@asynccontextmanager
async def mlnode(
    settings: Settings,
    work: str = "queue",
    *,
    engine: FakeEngine | None = None,
    delegation: DelegationSettings | None = None,
    **node: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """Run a small node; yields a client of it. It ends as a process does, and may be run again.

    Args:
        settings: state folder and Redis.
        work: what the node works with itself.
        engine: its own.
        delegation: the big node; None: there is none.
        node: other settings of its own.
    """
    make_key(settings.state_dir)
    app = create_app(
        settings,
        delegation or DelegationSettings(),
        NodeSettings.model_validate({"work": work, "port": PORT} | node),
        host_of(settings, engine or FakeEngine(artifact_of)),
    )
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://node", timeout=120) as http,
    ):
        yield http


def asked(nonces: Sequence[int], **fields: Any) -> dict[str, Any]:
    """Return a request for given nonces."""
    return ROUND | {"nonces": list(nonces)} | fields


def claims(vectors: dict[int, str], **fields: Any) -> dict[str, Any]:
    """Return a request to validate somebody's artifacts, by the bounds of the chain."""
    listed = [{"nonce": nonce, "vector_b64": text} for nonce, text in vectors.items()]
    bounds = {"dist_threshold": 0.4, "p_mismatch": 0.1, "p_value_threshold": 0.05}
    validation = {"validation": {"artifacts": listed}, "stat_test": bounds}
    return asked(list(vectors), **validation | fields)
