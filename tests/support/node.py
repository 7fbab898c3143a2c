"""What tests of the small node are made of: big nodes of both kinds over HTTP, rounds, a node at work."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn
from aiohttp import web
from fastapi import FastAPI
from pydantic import SecretStr
from typing_extensions import override

from pocqueue.delegation.app import create_app
from pocqueue.delegation.client import RemoteModel
from pocqueue.errors import OutboxError
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.keys import SigningKey
from pocqueue.node.outbox import OUTBOX_NAME, Outbox
from pocqueue.node.round import NodeRound, SearchRequest
from pocqueue.node.service import NodeService
from pocqueue.poc.distance.scheme import Distance
from pocqueue.poc.proofs import ReceivedBatch
from pocqueue.settings import DelegationSettings, NodeSettings, Settings
from pocqueue.web.listener import address_of, listen
from tests.support.callback_receiver import answering
from tests.support.delegation_server import TOKEN, make_delegation
from tests.support.fake_engine import FakeEngine
from tests.support.waiting import until

#: Where nothing listens and nobody looks.
NOWHERE = "http://127.0.0.1:9/v1/poc-batches"


def make_round(url: str = NOWHERE, **changes: Any) -> NodeRound:
    """Make the round of `factories.make_spec`, as the chain asks a small node for it."""
    fields: dict[str, Any] = {
        "block_hash": "block-1",
        "block_height": 7,
        "public_key": "key-1",
        "node_id": 0,
        "node_count": 1,
        "batch_size": 10,
        "r_target": 1.0,
        "seq_len": 8,
        "params": {},
        "url": url,
    }
    return NodeRound(**(fields | changes))


def make_request(
    node_round: NodeRound | None = None, *, left_s: float = 60.0, model: RemoteModel | None = None
) -> SearchRequest:
    """Make the search of a round whose window closes in so many seconds."""
    return SearchRequest(
        round=node_round or make_round(),
        gpu_count=1,
        deadline_s=time.time() + left_s,
        model=model or RemoteModel(),
    )


def batch(*nonces: int, dist: float = 0.5, **changes: Any) -> dict[str, Any]:
    """Make a batch of `make_round` as it goes over the wire."""
    fields: dict[str, Any] = {
        "public_key": "key-1",
        "block_hash": "block-1",
        "block_height": 7,
        "nonces": list(nonces),
        "dist": [dist] * len(nonces),
        "node_id": 0,
    }
    return fields | changes


def received(body: dict[str, Any]) -> ReceivedBatch:
    """Return such a batch as it is received."""
    return Distance.read(Distance.batch_model()(**body))


class LegacyBigNode:
    """Answers as the public big nodes do: token in body and query, each batch handed out once.

    Attributes:
        url: of the node.
        pages: what the next requests for batches get, one each; nothing once they are used up.
        requests: (method, path, query, body) of each.
        failures: statuses to answer with instead, in order; None: with the answer itself.
        gate: requests for batches wait here, with what they will answer, while it is cleared.
        stopped: ids of sessions that were told to end, and do once the pages are used up.
        claims: what its answer to a start says beside the rest.
        ends: a session ends by itself once the pages are used up.
    """

    def __init__(self) -> None:
        self.url = ""
        self.pages: deque[list[dict[str, Any]]] = deque()
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.failures: Iterator[int | None] = iter(())
        self.gate = asyncio.Event()
        self.gate.set()
        self.stopped: list[str] = []
        self.started = 0
        self.claims: dict[str, Any] = {}
        self.ends = False

    async def answer(self, request: web.Request) -> web.Response:
        body: Any = await request.json() if request.can_read_body else None
        self.requests.append((request.method, request.path, dict(request.query), body))
        status = next(self.failures, None)
        if status is not None:
            return _error(status, "Big node in trouble" if status >= 500 else "Session not found")
        name = request.path.removeprefix("/api/v1/delegation")
        token = (body or request.query).get("auth_token")
        if token is None:
            missing = [{"loc": ["query", "auth_token"], "msg": "Field required", "input": None}]
            return web.json_response({"detail": missing}, status=422)
        if token != TOKEN:
            return _error(400, "Invalid auth token")
        if name == "/start":
            self.started += 1
            answer: dict[str, Any] = {"session_id": f"old-{self.started}", "status": "initializing"}
            answer |= {"message": "Session created with 3 GPU groups", "gpu_count": 3}
            return web.json_response(answer | self.claims)
        if name == "/stop":
            self.stopped.append(body["session_id"])
            return web.json_response({"session_id": body["session_id"], "status": "stopped"})
        page = self.pages.popleft() if self.pages else []
        session_id = name.rpartition("/")[2]
        over = (self.ends or session_id in self.stopped) and not self.pages
        await self.gate.wait()
        answer = {"session_id": session_id, "batches": page}
        answer |= {"session_active": not over, "status": "stopped" if over else "generating"}
        return web.json_response(answer | {"total_batches_generated": 1})

    @property
    def polls(self) -> int:
        """How often batches were asked for with the token where it is read."""
        return sum("/batches/" in path and "auth_token" in q for _, path, q, _ in self.requests)


@contextlib.asynccontextmanager
async def legacy_big_node(port: int = 0) -> AsyncIterator[LegacyBigNode]:
    """Serve one until left."""
    node = LegacyBigNode()
    async with answering(node.answer, port=port) as node.url:
        yield node
        node.gate.set()


@contextlib.contextmanager
def big_node(settings: Settings, **changes: Any) -> Iterator[str]:
    """Serve our delegation API in a thread; yields its URL."""
    with serving_in_thread(create_app(settings, make_delegation(**changes))) as url:
        yield url


@contextlib.contextmanager
def serving_in_thread(app: FastAPI) -> Iterator[str]:
    """Serve an application on a loopback port; yields its URL."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    with listen("127.0.0.1", 0, "TEST_") as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://{address_of(listener)}"
        finally:
            # A small node's long poll is not waited for.
            server.should_exit = server.force_exit = True
            thread.join()


def delegating(url: str, **changes: Any) -> DelegationSettings:
    """Make the settings of a node that delegates, and asks old big nodes often."""
    fields: dict[str, Any] = {"url": url, "auth_token": SecretStr(TOKEN), "poll_seconds": 0.1}
    return DelegationSettings(**(fields | changes))


def host_of(settings: Settings, engine: FakeEngine) -> EngineHost:
    """Return the place of an engine that is there already."""
    return EngineHost(settings, lambda *_: engine)


def honest(_: int) -> float:
    """Return the distance that every nonce of `batch` has."""
    return 0.5


def made_up(_: int) -> float:
    """Return a distance that no valid nonce has."""
    return 1.5


@contextlib.asynccontextmanager
async def node_at_work(
    settings: Settings,
    delegation: DelegationSettings | None = None,
    *,
    work: str = "auto",
    engine: FakeEngine | None = None,
    host: EngineHost | None = None,
    outbox: Outbox | None = None,
) -> AsyncIterator[NodeService]:
    """Run the state of a small node; its key and outbox are in the state folder and stay there."""
    service = NodeService(
        settings,
        delegation or DelegationSettings(),
        NodeSettings.model_validate({"work": work}),
        make_key(settings.state_dir),
        outbox or Outbox(settings.state_dir / OUTBOX_NAME),
        host or host_of(settings, engine or FakeEngine()),
    )
    await service.start()
    try:
        yield service
    finally:
        await service.close()


class TroubledOutbox(Outbox):
    """An outbox on a disk that is full for the next `trouble` transactions."""

    trouble = 0

    @override
    @contextlib.contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        if self.trouble:
            self.trouble -= 1
            raise OutboxError("The outbox cannot be used: disk full.")
        with super().transaction(durable=durable) as db:
            yield db


def messages_in(outbox: Outbox, session_id: str, state: str | None = None) -> list[Any]:
    """Return the messages of a session as they are in the file, in order; None: of every state."""
    with outbox.transaction() as db:
        found = db.execute(
            "SELECT * FROM messages WHERE session_id = ? AND coalesce(?, state) = state ORDER BY id",
            (session_id, state),
        )
        names = [name for name, *_ in found.description]
        return [SimpleNamespace(**dict(zip(names, row, strict=True))) for row in found]


def make_key(folder: Path) -> SigningKey:
    """Return the key in a folder, which is made if it is not there."""
    path = folder / "node-key.pem"
    if not path.exists():
        SigningKey.generate().save_pem(path)
    return SigningKey.load(path)


async def shows(service: NodeService, **fields: object) -> None:
    """Wait until the status, or its part about the outbox, shows these fields."""

    async def is_shown() -> bool:
        status = await service.report.status()
        return bool(fields.items() <= (status | status["outbox"]).items())

    await until(is_shown)


def nonces_in(bodies: list[Any]) -> list[int]:
    """Return the nonces of bodies, in order."""
    return [nonce for body in bodies for nonce in body["nonces"]]


def _error(status: int, detail: str) -> web.Response:
    return web.Response(
        text=json.dumps({"detail": detail}), status=status, content_type="application/json"
    )
