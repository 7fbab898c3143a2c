"""The delegation application in memory, on a real Redis, as its clients see it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import SecretStr

from pocqueue.delegation.access import PREFIX
from pocqueue.delegation.app import create_app
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.records import AssignedRange, Outcome
from pocqueue.settings import DelegationSettings, Settings
from tests.support.factories import make_gpu
from tests.support.rounds import assign, commit

TOKEN = "a-token-of-the-big-node"
#: A session of `make_gpu`'s model, as a small node asks for it.
BODY: dict[str, Any] = {
    "node_id": 0,
    "node_count": 1,
    "block_hash": "block-1",
    "block_height": 7,
    "public_key": "key-1",
    "batch_size": 10,
    "r_target": 1.0,
    "fraud_threshold": 0.01,
    "params": {"seq_len": 8},
}


def make_delegation(**changes: Any) -> DelegationSettings:
    """Make the settings of a service."""
    return DelegationSettings(**{"auth_token": SecretStr(TOKEN)} | changes)


def live_gpus(backend: Backend, num: int = 1, **changes: Any) -> None:
    """Let the pool have GPUs whose heartbeat lasts for the whole test."""
    for i in range(num):
        backend.pool.beat(make_gpu(f"gpu{i}", ttl_ms=600_000, **changes))


class Client:
    """A small node, or whoever else asks the service.

    Args:
        http: of the service.
        token: sent as a header; None: sent not at all.
    """

    def __init__(self, http: httpx.AsyncClient, token: str | None = TOKEN) -> None:
        self.http = http
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    async def get(self, path: str, **query: Any) -> httpx.Response:
        """Send a GET to a path behind the prefix."""
        return await self.http.get(f"{PREFIX}/{path}", params=query, headers=self.headers)

    async def post(self, path: str, body: Any) -> httpx.Response:
        """Send a POST to a path behind the prefix."""
        return await self.http.post(f"{PREFIX}/{path}", json=body, headers=self.headers)

    async def start(self, **changes: Any) -> str:
        """Start a session; return its id."""
        reply = await self.post("start", BODY | changes)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["session_id"])

    async def batches(self, session_id: str, **query: Any) -> dict[str, Any]:
        """Fetch batches."""
        reply = await self.get(f"batches/{session_id}", **query)
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    async def drain(self, session_id: str) -> tuple[list[int], dict[str, Any]]:
        """Fetch batches as legacy clients do, until the session is not active; return the nonces."""
        nonces: list[int] = []
        for _ in range(1000):
            answer = await self.batches(session_id)
            nonces += nonces_of(answer)
            if not answer["session_active"]:
                return nonces, answer
        raise AssertionError(f"the session does not end: {answer}")

    async def stop(self, session_id: str) -> dict[str, Any]:
        """Stop a session."""
        reply = await self.post("stop", {"session_id": session_id})
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    async def status(self) -> dict[str, Any]:
        """Return the status of the caller's sessions."""
        reply = await self.get("status")
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer


class Work:
    """Does the GPUs' work on a session: every batch of 10 nonces has valid ones, from its first index on."""

    def __init__(self, backend: Backend, session_id: str) -> None:
        self.backend = backend
        self.session_id = session_id
        self.nonces: list[int] = []
        self._out: AssignedRange = assign(backend.store, session_id, 1_000_000)
        self._next = self._out.start

    def batch(self, num_valid: int = 2) -> None:
        """Commit one more batch."""
        start, self._next = self._next, self._next + 10
        valid = list(range(start, start + num_valid))
        done = commit(
            self.backend.store, self.session_id, self._out.range_id, start, self._next, valid
        )
        assert done.outcome is Outcome.COMMITTED, done
        self.nonces += valid


def nonces_of(answer: dict[str, Any]) -> list[int]:
    """Return the nonces of a reply with batches."""
    return [nonce for batch in answer["batches"] for nonce in batch["nonces"]]


@asynccontextmanager
async def serving(
    settings: Settings, delegation: DelegationSettings | None = None, address: str = "192.0.2.1"
) -> AsyncIterator[Client]:
    """Run the application; yields a client with the right token at that address."""
    app = create_app(settings, delegation or make_delegation())
    async with app.router.lifespan_context(app), http_client(app, address) as http:
        yield Client(http)


def http_client(app: FastAPI, address: str = "192.0.2.1") -> httpx.AsyncClient:
    """Return a client of an application that runs, as if it came from that address."""
    transport = httpx.ASGITransport(app, client=(address, 40_000))
    return httpx.AsyncClient(transport=transport, base_url="http://service")
