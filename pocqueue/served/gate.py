"""The gate in front of a server's inference routes: open as a rule, closed while a proof round runs.

Promises:
- A request that was let in is never cut: it runs to its end, whatever the gate does meanwhile.
- While the gate is closed a new one gets 503 at once, with ``Retry-After`` and an error body in
  OpenAI's shape, so that clients and load balancers go elsewhere or come again. The network's servers have two
  bodies, which differ in what `error` is: OpenAI's object, as its clients can read no other, or the text
  ``poc_generation_active`` with ``reason`` and ``retry_after_ms``. Ours is the object, with those two beside it.
- Opening has effect for the very next request.
Health, metrics, lists of models and the proof's own routes always pass.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

#: Paths below which POST requests and WebSockets make the engine work, in vLLM 0.25 to 0.33.
INFERENCE_PREFIXES = (
    "/v1",
    "/v2",
    "/inference",
    "/cohere",
    "/generate",
    "/generative_scoring",
    "/invocations",
    "/pooling",
    "/classify",
    "/embed",
    "/score",
    "/rerank",
)
#: Paths below those that do not make it work.
_LIGHT = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/inference/v1/abort_requests")
#: A round may be stopped early, so nobody is sent away for longer.
_MAX_RETRY_AFTER_S = 60.0


@dataclass(eq=False)
class InferenceGate:
    """Lets inference requests in, or not, and counts those that run.

    Used from the event loop only.
    """

    window_s: (
        float  #: seconds that it is closed for, as a rule; tells refused clients when to come again
    )
    clock: Callable[[], float] = time.monotonic  #: seconds that only go forward

    def __post_init__(self) -> None:
        self._closed_at: float | None = None
        #: Requests that were let in and have not ended.
        self.running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def closed(self) -> bool:
        """Whether new requests are refused."""
        return self._closed_at is not None

    @property
    def retry_after(self) -> int:
        """Whole seconds for ``Retry-After``: what is left of the window, 1 to 60."""
        closed_for_s = self.clock() - (self._closed_at or 0.0)
        return max(1, math.ceil(min(_MAX_RETRY_AFTER_S, self.window_s - closed_for_s)))

    def close(self) -> None:
        """Let nothing more in."""
        if self._closed_at is None:
            self._closed_at = self.clock()

    def open(self) -> None:
        """Let everything in again."""
        self._closed_at = None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Count a request for as long as it runs."""
        self.running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no request runs; say whether that is so when the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


@dataclass(eq=False)
class GateMiddleware:
    """ASGI middleware that asks a gate."""

    app: ASGIApp  #: what comes behind
    gate: InferenceGate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        works, is_socket = is_inference(scope), scope["type"] == "websocket"
        if works and self.gate.closed and is_socket:
            await receive()  # the connect event, which has to be read first
            await send({"type": "websocket.close", "code": 1013, "reason": "proof round"})
        elif works and self.gate.closed:
            await _refuse(self.gate.retry_after)(scope, receive, send)
        elif works and not is_socket:
            with self.gate.entered():
                await self.app(scope, receive, send)
        else:
            # WebSockets are not counted: one may stay open for hours, at work or not.
            await self.app(scope, receive, send)


def is_inference(scope: Scope) -> bool:
    """Say whether a request would make the engine work."""
    if scope["type"] != "websocket" and scope.get("method") != "POST":
        return False
    path: str = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
    if path.startswith(_LIGHT) or path.endswith("/cancel"):
        return False
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in INFERENCE_PREFIXES)


def _refuse(retry_after: int) -> JSONResponse:
    return JSONResponse(
        {
            "error": {
                "message": "PoC generation is active. Inference requests are temporarily unavailable. "
                f"Try again in {retry_after} seconds.",
                "type": "service_unavailable",
                "param": None,
                "code": 503,
            },
            "reason": "poc_generation_active",
            "retry_after_ms": 1000 * retry_after,
        },
        status_code=503,
        headers={"Retry-After": str(retry_after)},
    )
