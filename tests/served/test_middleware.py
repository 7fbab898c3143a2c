"""The middleware: the plugin's routes, gate and end on a server that loads no plugins."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from pocqueue.engine.base import EXTENSION
from pocqueue.engine.torch_model.embedded import ensure_embedded_model
from pocqueue.served.middleware import PoCMiddleware
from pocqueue.served.routes import MAX_BODY_BYTES
from tests.support.callback_receiver import receiving
from tests.support.engine_client import EngineTwin
from tests.support.waiting import until

BODY = {
    "block_hash": "block-1",
    "block_height": 7,
    "public_key": "key-1",
    "r_target": 2.0,
    "batch_size": 4,
    "seq_len": 8,
}
TOKEN = "a-token-of-sixteen-letters"


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment of the test's own."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setenv("POCQUEUE_STATE_DIR", str(tmp_path))


@pytest.fixture
def twin(tmp_path: Path) -> Iterator[EngineTwin]:
    """An engine that has loaded the embedded model."""
    twin = EngineTwin()
    twin.vllm_config.model_config.model = str(ensure_embedded_model(tmp_path))
    yield twin
    twin.gate.set()


async def _health(request: Request) -> dict[str, str]:
    """Read the state of the application that the request says it is for."""
    return {"model": request.app.state.args.served_model_name[0]}


async def _completion() -> dict[str, str]:
    return {"text": "w1"}


@asynccontextmanager
async def served(twin: EngineTwin) -> AsyncIterator[httpx.AsyncClient]:
    """Build an application as vLLM 0.25 does, start it as its server does, and end it."""
    ends: list[str] = []

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        ends.append("application")

    app = FastAPI(lifespan=lifespan)
    app.add_api_route("/health", _health)
    app.add_api_route("/v1/completions", _completion, methods=["POST"])
    app.add_middleware(PoCMiddleware)
    app.state.engine_client = twin
    app.state.args = Namespace(api_key=None, served_model_name=["tiny"], api_server_count=1)

    to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    from_app: asyncio.Queue[Any] = asyncio.Queue()
    scope = {"type": "lifespan", "state": {}}
    life = asyncio.create_task(app(scope, to_app.get, from_app.put))
    await to_app.put({"type": "lifespan.startup"})
    assert (await from_app.get())["type"] == "lifespan.startup.complete"
    transport = httpx.ASGITransport(app)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            yield http
    finally:
        await to_app.put({"type": "lifespan.shutdown"})
        # From here on nothing is waited for: what has not ended by now is cut.
        assert (await from_app.get())["type"] == "lifespan.shutdown.complete"
        assert ends == ["application"]
        life.cancel()


async def test_a_round_on_a_server_with_the_middleware(twin: EngineTwin) -> None:
    """A search closes the gate, a stop opens it; what is the server's sees nothing of it."""
    async with served(twin) as http:
        assert (await http.get("/health")).json() == {"model": "tiny"}
        assert (await http.get("/api/v1/pow/status")).json()["state"] == "IDLE"
        twin.hold_after = 3
        assert (await http.post("/api/v1/pow/init/generate", json=BODY)).status_code == 200
        await until(lambda: twin.running)
        refused = await http.post("/v1/completions")
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert (await http.get("/health")).status_code == 200
        status = (await http.post("/api/v1/pow/stop")).json()["pow_status"]
        assert (status["state"], status["valid_nonces"]) == ("STOPPED", list(range(8)))
        assert (await http.post("/v1/completions")).json() == {"text": "w1"}
        assert "/api/v1/pow/init/generate" in (await http.get("/openapi.json")).json()["paths"]


async def test_the_routes_are_behind_door_and_limit(
    twin: EngineTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token of the settings, and a size for bodies; the server's own routes have neither of ours."""
    monkeypatch.setenv("POCQUEUE_VLLM_TOKEN", TOKEN)
    async with served(twin) as http:
        assert (await http.get("/api/v1/pow/status")).status_code == 401
        assert (await http.post("/v1/completions")).status_code == 200
        http.headers["Authorization"] = f"Bearer {TOKEN}"
        assert (await http.get("/api/v1/pow/status")).status_code == 200
        large = await http.post("/api/v1/pow/init", content=b" " * (MAX_BODY_BYTES + 1))
        assert large.status_code == 413


async def test_a_server_without_the_extension_says_how_to_start_it(twin: EngineTwin) -> None:
    """As the plugin does, and the server serves."""
    twin.vllm_config.parallel_config.worker_extension_cls = ""
    async with served(twin) as http:
        answer = await http.get("/api/v1/pow/status")
        assert answer.status_code == 503
        assert f"--worker-extension-cls {EXTENSION}" in answer.json()["detail"]
        assert (await http.post("/v1/completions")).status_code == 200


async def test_the_end_of_the_server_ends_the_round(twin: EngineTwin) -> None:
    """Callbacks that wait are delivered before the server has ended."""
    async with receiving() as receiver:
        async with served(twin) as http:
            receiver.gate.clear()
            twin.hold_after = 3
            body = BODY | {"callback_url": receiver.url}
            await http.post("/api/v1/pow/init/generate", json=body)
            await until(lambda: twin.running)
            receiver.gate.set()
        assert [n for body in receiver.accepted for n in body["nonces"]] == list(range(8))
