"""The gate: what it lets in, what it refuses and how, and what it counts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from pocqueue.served.gate import GateMiddleware, InferenceGate, is_inference
from tests.support.waiting import Clock, until

WINDOW_S = 330.0


class Inner:
    """The application behind the gate; its requests wait while `finish` is not set."""

    def __init__(self) -> None:
        self.finish = asyncio.Event()
        self.scopes: list[Scope] = []
        self.failure: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        await self.finish.wait()
        if self.failure is not None:
            raise self.failure


class Exchange:
    """One request through the middleware: its task, and what was sent back."""

    def __init__(self, middleware: GateMiddleware, scope: Scope) -> None:
        self.sent: list[Any] = []
        self.received = 0
        self.task = asyncio.ensure_future(middleware(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        self.received += 1
        return {"type": "websocket.connect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


def post(path: str = "/v1/completions", **changes: Any) -> Scope:
    return {"type": "http", "method": "POST", "path": path, "headers": []} | changes


@pytest.mark.parametrize(
    "path",
    [
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/audio/transcriptions",
        "/v2/rerank",
        "/inference/v1/generate",
        "/generate",
        "/invocations",
        "/pooling",
        "/classify",
        "/score",
        "/rerank",
    ],
)
def test_what_makes_the_engine_work_is_inference(path: str) -> None:
    """POST only, below a root path as well; a WebSocket is whatever its method."""
    assert is_inference(post(path))
    assert is_inference(post(f"/root{path}", root_path="/root"))
    assert is_inference(post(path, root_path="/root"))
    assert is_inference({"type": "websocket", "path": path})
    for method in ("GET", "HEAD", "OPTIONS", "DELETE"):
        assert not is_inference(post(path, method=method))


@pytest.mark.parametrize(
    "path",
    [
        "/health",
        "/metrics",
        "/tokenize",
        "/generated",
        "/v10/completions",
        "/api/v1/pow/init/generate",
        "/api/v1/pow/distances",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/",
    ],
)
def test_everything_else_is_not(path: str) -> None:
    """Health, metrics, text tools and the proof's own routes; names that only begin alike."""
    assert not is_inference(post(path))
    assert not is_inference({"type": "websocket", "path": path})


async def test_start_and_end_of_the_server_pass() -> None:
    """A closed gate does not keep the application from starting."""
    gate, inner = InferenceGate(WINDOW_S), Inner()
    gate.close()
    inner.finish.set()
    await Exchange(GateMiddleware(inner, gate), {"type": "lifespan"}).task
    assert inner.scopes == [{"type": "lifespan"}]


async def test_running_requests_are_counted_until_they_end() -> None:
    """However they end, and whatever the gate does meanwhile."""
    gate, inner = InferenceGate(WINDOW_S), Inner()
    middleware = GateMiddleware(inner, gate)
    exchanges = [Exchange(middleware, post()) for _ in range(3)]
    passing = Exchange(middleware, post("/health"))
    await until(lambda: len(inner.scopes) == 4)
    assert gate.running == 3
    gate.close()
    assert gate.running == 3
    exchanges[0].task.cancel()
    await until(lambda: gate.running == 2)
    inner.failure = ValueError("broken")
    inner.finish.set()
    results = await asyncio.gather(
        passing.task, *(exchange.task for exchange in exchanges), return_exceptions=True
    )
    assert [type(result) for result in results] == [
        ValueError,
        asyncio.CancelledError,
        ValueError,
        ValueError,
    ]
    assert gate.running == 0
    assert await gate.drained(0)


async def test_drained_waits_for_the_last_request() -> None:
    """True where nothing runs any more, false where the time is up first."""
    gate = InferenceGate(WINDOW_S)
    assert await gate.drained(0)
    with gate.entered():
        with gate.entered():
            assert not await gate.drained(0.01)
            waiting = asyncio.create_task(gate.drained(60))
        assert not await gate.drained(0)
        assert not waiting.done()
    assert await waiting


async def test_closed_gate_refuses_in_openais_words() -> None:
    """503 with Retry-After and the error body that OpenAI clients read; the application sees nothing."""
    gate, inner = InferenceGate(WINDOW_S), Inner()
    gate.close()
    exchange = Exchange(GateMiddleware(inner, gate), post())
    await exchange.task
    start, body = exchange.sent
    assert start["status"] == 503
    headers = dict(start["headers"])
    assert headers[b"retry-after"] == b"60"
    assert headers[b"content-type"] == b"application/json"
    error = json.loads(body["body"])["error"]
    assert error["message"].endswith("Try again in 60 seconds.")
    assert (error["type"], error["param"], error["code"]) == ("service_unavailable", None, 503)
    assert inner.scopes == []
    assert gate.running == 0


async def test_closed_gate_refuses_websockets() -> None:
    """Before they are accepted, with the code for 'try again later'."""
    gate, inner = InferenceGate(WINDOW_S), Inner()
    gate.close()
    exchange = Exchange(GateMiddleware(inner, gate), {"type": "websocket", "path": "/v1/realtime"})
    await exchange.task
    assert exchange.received == 1
    [message] = exchange.sent
    assert (message["type"], message["code"]) == ("websocket.close", 1013)
    assert inner.scopes == []


async def test_open_gate_passes_websockets_without_counting_them() -> None:
    """One that idles for hours must not hold up a round."""
    gate, inner = InferenceGate(WINDOW_S), Inner()
    exchange = Exchange(GateMiddleware(inner, gate), {"type": "websocket", "path": "/v1/realtime"})
    await until(lambda: inner.scopes)
    assert gate.running == 0
    inner.finish.set()
    await exchange.task
    assert gate.running == 0


async def test_opening_has_effect_for_the_very_next_request() -> None:
    """No pause in between."""
    gate, inner = InferenceGate(WINDOW_S), Inner()
    inner.finish.set()
    middleware = GateMiddleware(inner, gate)
    gate.close()
    refused = Exchange(middleware, post())
    await refused.task
    assert gate.closed
    gate.open()
    assert not gate.closed
    await Exchange(middleware, post()).task
    assert len(inner.scopes) == 1


@pytest.mark.parametrize(
    ("closed_for_s", "retry_after"), [(0, 60), (269.5, 60), (270.5, 60), (300.5, 30), (1000, 1)]
)
def test_retry_after_is_what_is_left_of_the_window(closed_for_s: float, retry_after: int) -> None:
    """At most a minute, as a round may be stopped early; at least a second. Closing again changes nothing."""
    clock = Clock()
    gate = InferenceGate(WINDOW_S, clock)
    gate.close()
    clock.now_s += closed_for_s
    gate.close()
    assert gate.retry_after == retry_after
