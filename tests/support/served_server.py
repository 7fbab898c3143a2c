"""A server with inference and proof routes, over an engine in memory, as its clients see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from pocqueue.served.artifacts import Artifacts
from pocqueue.served.gate import GateMiddleware
from pocqueue.served.prover import Prover
from pocqueue.served.routes import add_routes
from pocqueue.served.state import RouteState
from pocqueue.settings import ArtifactSettings
from tests.support.engine_client import EngineTwin, round_of, serving

BODY: dict[str, Any] = round_of().model_dump(exclude_none=True)


class Server:
    """A server with inference and proof routes, as its clients see it.

    Attributes:
        twin: its engine.
        state: of the proof routes.
        prover: of the rounds.
        artifacts: of the network's requests.
        finish: completions wait for this, and streams between their two parts.
        events: what happened, in order: "completion" for each that ended, "batch" for each that began.
    """

    def __init__(
        self, twin: EngineTwin, prover: Prover, settings: ArtifactSettings, **kwargs: Any
    ) -> None:
        self.twin = twin
        self.prover = prover
        self.artifacts = Artifacts(prover, settings, **kwargs)
        self.state = RouteState()
        self.state.artifacts = self.artifacts
        self.state.names = ("/models/twin", "twin")
        self.state.model_error = None
        self.finish = asyncio.Event()
        self.events: list[str] = []
        twin.on_batch = lambda: self.events.append("batch")
        app = FastAPI()
        add_routes(app, self.state)
        app.add_middleware(GateMiddleware, gate=prover.gate)
        app.add_api_route("/v1/completions", self._completion, methods=["POST"])
        app.add_api_route("/v1/stream", self._stream, methods=["POST"])
        for path in ("/health", "/v1/models"):
            app.add_api_route(path, self._nothing, methods=["GET"])
        app.add_api_route("/tokenize", self._nothing, methods=["POST"])
        transport = httpx.ASGITransport(app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://server")

    async def pow(self, method: str, route: str, body: Any = None, **kwargs: Any) -> httpx.Response:
        """Call a proof route."""
        return await self.http.request(method, f"/api/v1/pow/{route}", json=body, **kwargs)

    async def post(self, route: str, **changes: Any) -> dict[str, Any]:
        """Call a route that changes the round, and return the status it answers with."""
        body = BODY | changes if route.startswith("init") else None
        response = await self.pow("POST", route, body)
        assert response.status_code == 200, response.text
        answer = response.json()
        assert answer["status"] == "OK"
        status: dict[str, Any] = answer["pow_status"]
        return status

    async def status(self) -> dict[str, Any]:
        """Return the status of the round."""
        response = await self.pow("GET", "status")
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def refusal(self, method: str, route: str, body: Any = None) -> tuple[int, str]:
        """Return status and sentence of an answer that is an error."""
        response = await self.pow(method, route, body)
        [(key, sentence)] = response.json().items()
        assert key == "detail"
        return response.status_code, sentence

    def completion(self) -> asyncio.Task[httpx.Response]:
        """Begin a completion, which ends once `finish` is set."""
        return asyncio.create_task(self.http.post("/v1/completions"))

    async def serves(self) -> bool:
        """Say whether a completion is served that asks just now."""
        self.finish.set()
        return (await self.completion()).status_code == 200

    async def _completion(self) -> dict[str, str]:
        await self.finish.wait()
        self.events.append("completion")
        return {"text": "w1 w2"}

    async def _stream(self) -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            yield "first "
            self.events.append("first")
            await self.finish.wait()
            yield "second"

        return StreamingResponse(parts())

    async def _nothing(self) -> dict[str, str]:
        return {}


@asynccontextmanager
async def server_with(
    settings: ArtifactSettings | None = None, wait_s: float = 300.0, **kwargs: Any
) -> AsyncIterator[Server]:
    """Set up a server.

    Args:
        settings: of artifacts; None: the defaults.
        wait_s: longest time that a client waits for artifacts.
        kwargs: see `serving`.
    """
    twin = EngineTwin()
    settings = settings or ArtifactSettings()
    timings = {name: kwargs[name] for name in ("backoff", "refusal_backoff") if name in kwargs}
    async with serving(twin, settings=settings, **kwargs) as prover:
        server = Server(twin, prover, settings, wait_s=wait_s, timings=timings)
        async with server.http:
            try:
                yield server
            finally:
                twin.gate.set()
                await server.artifacts.close()
