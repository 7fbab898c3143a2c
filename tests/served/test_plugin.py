"""The plugin: what it adds to a vLLM server, when its routes work, and what they say where they cannot."""

from __future__ import annotations

import os
import threading
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub.constants
import pytest
import uvicorn
from fastapi import FastAPI

from pocqueue.engine import fingerprint as fingerprint_module
from pocqueue.engine.base import EXTENSION
from pocqueue.engine.fingerprint import fingerprint
from pocqueue.engine.torch_model.embedded import EMBEDDED_FINGERPRINT, ensure_embedded_model
from pocqueue.served.plugin import PoCEndpoints
from pocqueue.settings import ALL
from tests.support.callback_receiver import receiving
from tests.support.engine_client import MAX_BATCH_SIZE, EngineTwin, artifact_of
from tests.support.fake_hub import REPO, FakeHub, running_hub
from tests.support.waiting import until

BODY = {
    "block_hash": "block-1",
    "block_height": 7,
    "public_key": "key-1",
    "r_target": 2.0,
    "batch_size": 4,
    "seq_len": 8,
}


class PluggedIn:
    """A server's application with the plugin, between its start and its end.

    Attributes:
        events: "start" and "end" of the application's own life.
    """

    def __init__(self, twin: EngineTwin | None, max_round_s: float) -> None:
        self.twin = twin
        self.plugin = PoCEndpoints(max_round_s=max_round_s)
        self.events: list[str] = []
        self.app = FastAPI(lifespan=self._lifespan)
        self.app.add_api_route("/v1/completions", self._completion, methods=["POST"])
        self.plugin.attach_router(self.app)
        transport = httpx.ASGITransport(self.app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://server")

    async def engine_loaded(self, **args: Any) -> None:
        """Tell the plugin that the engine is there, as the server does; with the server's arguments."""
        fields: dict[str, Any] = {"api_key": None, "served_model_name": None}
        namespace = Namespace(**{"api_server_count": 1} | fields | args)
        await self.plugin.init_state(self.twin, self.app.state, namespace)

    async def pow(
        self, method: str, route: str, body: Any = None, token: str | None = None
    ) -> httpx.Response:
        """Call a proof route."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return await self.http.request(method, f"/api/v1/pow/{route}", json=body, headers=headers)

    async def reason(self, route: str = "status") -> str:
        """Return why a route is answered with 503."""
        response = await self.pow("GET", route)
        assert response.status_code == 503, response.text
        return str(response.json()["detail"])

    async def hashed(self) -> None:
        """Wait until the model's files are hashed, or cannot be."""
        await until(lambda: self.plugin.hashing is not None and self.plugin.hashing.done())

    async def model(self) -> dict[str, Any]:
        """Return the description of the model once it is known."""
        await self.hashed()
        response = await self.pow("GET", "model")
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[dict[str, str]]:
        self.events.append("start")
        yield {"left": "alone"}
        self.events.append("end")

    async def _completion(self) -> dict[str, str]:
        return {"text": "w1"}


@asynccontextmanager
async def plugged_in(
    twin: EngineTwin | None, *, max_round_s: float = 3600.0
) -> AsyncIterator[PluggedIn]:
    """Start an application with the plugin, and end it."""
    server = PluggedIn(twin, max_round_s)
    async with server.app.router.lifespan_context(server.app) as state, server.http:
        assert state == {"left": "alone"}
        try:
            yield server
        finally:
            if twin is not None:
                twin.gate.set()


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment of the test's own."""
    # The plugin sets it for its process; whatever it was, it is so again afterwards.
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "")
    monkeypatch.delenv("FORWARDED_ALLOW_IPS")
    prefixes = tuple(kind.variable("") for kind in ALL)
    for name in [name for name in os.environ if name.startswith(prefixes)]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setenv("POCQUEUE_STATE_DIR", str(tmp_path))


@pytest.fixture
def twin(tmp_path: Path) -> EngineTwin:
    """An engine that has loaded the embedded model."""
    twin = EngineTwin()
    twin.vllm_config.model_config.model = str(ensure_embedded_model(tmp_path))
    return twin


def test_vllm_finds_the_plugin() -> None:
    """By the entry point, for models that generate."""
    [entry] = entry_points(group="vllm.endpoint_plugins", name="pocqueue")
    assert entry.load() is PoCEndpoints
    assert (PoCEndpoints.name, PoCEndpoints.required_tasks) == ("pocqueue", ("generate",))


async def test_a_round_on_a_server_with_the_plugin(twin: EngineTwin) -> None:
    """From the start of the server to a round that closes the gate, and a stop that opens it."""
    async with plugged_in(twin) as server:
        assert await server.reason() == "Engine not available: the server is still starting."
        assert (await server.http.post("/v1/completions")).status_code == 200
        await server.engine_loaded()
        twin.hold_after = 3
        assert (await server.pow("POST", "init/generate", BODY)).status_code == 200
        await until(lambda: twin.running)
        assert (await server.http.post("/v1/completions")).status_code == 503
        status = (await server.pow("POST", "stop")).json()["pow_status"]
        assert (status["state"], status["valid_nonces"]) == ("STOPPED", list(range(8)))
        assert (await server.http.post("/v1/completions")).status_code == 200


@pytest.mark.parametrize("theirs", [None, "192.0.2.1"])
async def test_proxies_are_believed_that_a_setting_names(
    twin: EngineTwin, monkeypatch: pytest.MonkeyPatch, theirs: str | None
) -> None:
    """Loopback's are not, unless the server's own variable says so."""
    monkeypatch.setenv("POCQUEUE_TRUSTED_PROXIES", "10.0.0.0/8")
    if theirs is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", theirs)
    async with plugged_in(twin) as server:
        await server.engine_loaded()
        config = uvicorn.Config(server.app)
    assert config.forwarded_allow_ips == (theirs or "10.0.0.0/8")


async def test_the_fingerprint_is_computed_in_the_background(
    twin: EngineTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the folder that vLLM loaded. Rounds do not wait for it; workers are told to."""
    go_on = threading.Event()

    def slowly(folder: Path, **kwargs: Any) -> str:
        assert go_on.wait(120)
        return fingerprint(folder, **kwargs)

    monkeypatch.setattr(fingerprint_module, "fingerprint", slowly)
    async with plugged_in(twin) as server:
        await server.engine_loaded()
        hashing = "Engine not available: the model's weights are being hashed."
        assert await server.reason("model") == hashing
        body = {"block_hash": "b", "public_key": "k", "nonces": [1], "batch_size": 4, "seq_len": 8}
        assert (await server.pow("POST", "distances", body)).status_code == 503
        assert (await server.pow("POST", "init/generate", BODY)).status_code == 200
        await until(lambda: twin.answered)
        go_on.set()
        model = await server.model()
        assert model == twin.description["info"] | {
            "fingerprint": EMBEDDED_FINGERPRINT,
            "max_batch_size": MAX_BATCH_SIZE,
            "max_pass_nonces": MAX_BATCH_SIZE,
            "max_tokens": None,
        }
        answer = (await server.pow("POST", "distances", body)).json()
        assert (answer["fingerprint"], answer["dtype"]) == (EMBEDDED_FINGERPRINT, "float32")


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("apart", [False, True])
async def test_a_model_of_the_hub_is_hashed_as_far_as_it_is_loaded(
    twin: EngineTwin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, apart: bool
) -> None:
    """Not with its pictures and weights in other formats; weights may be in a folder of their own."""
    config = twin.vllm_config.model_config
    files = _files(Path(config.model))
    cache, weights = tmp_path / "cache", tmp_path / "weights" if apart else tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    config.model, config.revision = REPO, None
    twin.vllm_config.load_config.download_dir = str(weights) if apart else None
    with running_hub() as hub:
        FakeHub.files = {**files, "chart.png": b"x", "pytorch_model.bin": b"x"}
        # What vLLM downloads.
        for folder, pattern in (weights, "*.safetensors"), (cache, "*.json"):
            huggingface_hub.snapshot_download(
                REPO, endpoint=hub, cache_dir=folder, allow_patterns=pattern
            )
    async with plugged_in(twin) as server:
        await server.engine_loaded()
        assert (await server.model())["fingerprint"] == EMBEDDED_FINGERPRINT


async def test_the_model_has_the_name_that_it_is_served_under(twin: EngineTwin) -> None:
    """The first, where there are several."""
    async with plugged_in(twin) as server:
        await server.engine_loaded(served_model_name=["tiny", "small"])
        assert (await server.model())["model"] == "tiny"


@pytest.mark.parametrize("damage", ["no weights", "no such model"])
async def test_a_model_that_cannot_be_hashed_serves_rounds_only(
    twin: EngineTwin, tmp_path: Path, damage: str
) -> None:
    """Workers are told why; nothing else suffers."""
    config = twin.vllm_config.model_config
    if damage == "no weights":
        (Path(config.model) / "model.safetensors").unlink()
    else:
        config.model = "nobody/has-this-model"
    async with plugged_in(twin) as server:
        await server.engine_loaded()
        await server.hashed()
        reason = await server.reason("model")
        assert reason.startswith("Engine not available: the model's files cannot be hashed (")
        assert (await server.pow("POST", "init/generate", BODY)).status_code == 200
        await until(lambda: twin.answered)
        assert (await server.pow("POST", "stop")).status_code == 200


@pytest.mark.parametrize("source", ["settings", "arguments", "environment"])
async def test_a_token_may_come_from_three_places(
    twin: EngineTwin, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """pocqueue's own, or else the server's keys: those of the command line, or that of the environment."""
    monkeypatch.setenv("VLLM_API_KEY", "environment")
    if source == "settings":
        monkeypatch.setenv("POCQUEUE_VLLM_TOKEN", "settings")
    keys = None if source == "environment" else ["arguments", "arguments-2"]
    async with plugged_in(twin) as server:
        await server.engine_loaded(api_key=keys)
        opened = [
            token
            for token in (None, "", "settings", "arguments", "arguments-2", "environment")
            if (await server.pow("GET", "status", token=token)).status_code == 200
        ]
        assert opened == (["arguments", "arguments-2"] if source == "arguments" else [source])


@pytest.mark.parametrize("keys", [None, [], [""]])
async def test_without_any_token_the_routes_are_open(
    twin: EngineTwin, monkeypatch: pytest.MonkeyPatch, keys: list[str] | None
) -> None:
    """As the inference routes of such a server are; an empty one is none."""
    monkeypatch.setenv("POCQUEUE_VLLM_TOKEN", "")
    monkeypatch.setenv("VLLM_API_KEY", "")
    async with plugged_in(twin) as server:
        await server.engine_loaded(api_key=keys)
        assert (await server.pow("GET", "status")).status_code == 200


async def test_a_server_without_the_extension_says_how_to_start_it(twin: EngineTwin) -> None:
    """Its workers could not compute distances; they are not asked."""
    twin.vllm_config.parallel_config.worker_extension_cls = ""
    async with plugged_in(twin) as server:
        await server.engine_loaded()
        wanted = f"PoC not enabled: start the server with --worker-extension-cls {EXTENSION}."
        assert await server.reason() == wanted
        assert (await server.http.post("/v1/completions")).status_code == 200
        assert twin.calls == []


@pytest.mark.parametrize("count", [2, 8])
async def test_several_api_processes_cannot_share_a_round(twin: EngineTwin, count: int) -> None:
    """Each would have a round and a gate of its own."""
    async with plugged_in(twin) as server:
        await server.engine_loaded(api_server_count=count)
        assert (await server.reason()).endswith("Start it with --api-server-count 1.")


@pytest.mark.parametrize("count", [None, 0, 1])
async def test_one_api_process_is_one_however_it_is_said(
    twin: EngineTwin, count: int | None
) -> None:
    """vLLM has several ways."""
    async with plugged_in(twin) as server:
        await server.engine_loaded(api_server_count=count)
        assert (await server.pow("GET", "status")).status_code == 200


async def test_a_server_without_an_engine_says_so() -> None:
    """As one that only renders prompts."""
    async with plugged_in(None) as server:
        await server.engine_loaded()
        assert await server.reason() == "PoC not enabled: this server has no engine."


async def test_workers_that_cannot_prove_say_why(twin: EngineTwin) -> None:
    """What they raise arrives as text."""
    twin.failure = RuntimeError(
        "EngineError: pipeline parallelism; use tensor parallelism." + "x" * 999
    )
    async with plugged_in(twin) as server:
        await server.engine_loaded()
        reason = await server.reason()
        assert reason.startswith("PoC not enabled: EngineError: pipeline parallelism")
        assert len(reason) < 600


@pytest.mark.parametrize("field", ["max_batch_size", "hidden_size", "dtype"])
async def test_workers_of_another_version_are_not_used(twin: EngineTwin, field: str) -> None:
    """The missing field is named."""
    twin.description.pop(field, None)
    twin.description["info"].pop(field, None)
    async with plugged_in(twin) as server:
        await server.engine_loaded()
        reason = await server.reason()
        assert reason.startswith("PoC not enabled: ")
        assert field in reason


async def test_a_setting_that_cannot_be_is_named(
    twin: EngineTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server serves all the same."""
    monkeypatch.setenv("POCQUEUE_VLLM_DRAIN_SECONDS", "soon")
    async with plugged_in(twin) as server:
        await server.engine_loaded()
        assert "POCQUEUE_VLLM_DRAIN_SECONDS cannot be 'soon'" in await server.reason()
        assert (await server.http.post("/v1/completions")).status_code == 200


async def test_a_round_that_nobody_stops_ends(twin: EngineTwin) -> None:
    """Also one whose first batch waits for running requests."""
    async with plugged_in(twin, max_round_s=0.02) as server:
        await server.engine_loaded()
        with server.plugin.gate.entered():
            await server.pow("POST", "init/generate", BODY)
            await until(lambda: not server.plugin.gate.closed)
        status = (await server.pow("GET", "status")).json()
        assert (status["failed"], status["total_checked"]) == (True, 0)
        assert "nobody stopped the round" in status["error"]


ARTIFACTS = {
    "block_hash": "9F2C",
    "block_height": 7,
    "public_key": "02ab",
    "node_id": 0,
    "node_count": 1,
    "batch_size": 4,
}


@pytest.mark.parametrize("name", ["small", "path"])
async def test_artifacts_by_each_name_of_the_model(twin: EngineTwin, name: str) -> None:
    """Those that it is served under, and the path; another one is told all of them."""
    path = twin.vllm_config.model_config.model
    async with plugged_in(twin) as server:
        await server.engine_loaded(served_model_name=["tiny", "small"])
        body = ARTIFACTS | {"nonces": [1], "wait": True}
        params = {"model": path if name == "path" else name, "seq_len": 8}
        answer = await server.pow("POST", "generate", body | {"params": params})
        assert answer.json()["artifacts"] == [
            {"nonce": 1, "vector_b64": artifact_of("9F2C", "02ab", 1)}
        ]
        other = {"params": {"model": "other", "seq_len": 8}}
        refused = (await server.pow("POST", "generate", body | other)).json()
        assert refused["detail"]["deployed"]["model"] == sorted([path, "small", "tiny"])


async def test_the_end_of_the_server_delivers_artifacts_and_results(
    twin: EngineTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be posted at the next interval, or is being tried again."""
    monkeypatch.setenv("POC_CALLBACK_INTERVAL_SEC", "600")
    async with receiving() as receiver:
        async with plugged_in(twin) as server:
            await server.engine_loaded(served_model_name=["tiny"])
            body = ARTIFACTS | {"url": receiver.url, "params": {"model": "tiny", "seq_len": 8}}
            receiver.gate.clear()
            asked = (await server.pow("POST", "generate", body | {"nonces": [9]})).json()
            await until(lambda: receiver.received)
            twin.hold_after = 3
            await server.pow("POST", "init/generate", body)
            await until(lambda: twin.running)
            receiver.gate.set()
        assert sorted(len(taken["artifacts"]) for taken in receiver.accepted) == [1, 4]
        assert {taken.get("request_id") for taken in receiver.accepted} == {
            None,
            asked["request_id"],
        }


async def test_a_setting_of_artifacts_that_cannot_be_is_named(
    twin: EngineTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POC_MAX_QUEUED_NONCES", "many")
    async with plugged_in(twin) as server:
        await server.engine_loaded()
        assert "POC_MAX_QUEUED_NONCES cannot be 'many'" in await server.reason()


async def test_settings_bound_the_wait_for_requests(
    twin: EngineTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zero does not wait at all."""
    monkeypatch.setenv("POCQUEUE_VLLM_DRAIN_SECONDS", "0")
    async with plugged_in(twin) as server:
        await server.engine_loaded()
        with server.plugin.gate.entered():
            await server.pow("POST", "init/generate", BODY)
            await until(lambda: twin.answered)


async def test_settings_say_what_running_requests_get(
    twin: EngineTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of the time, unless told otherwise."""
    for value, share in ((None, 0.1), ("0.25", 0.25)):
        if value is not None:
            monkeypatch.setenv("POCQUEUE_VLLM_DECODE_SHARE", value)
        async with plugged_in(twin) as server:
            await server.engine_loaded()
            assert server.app.state.poc_service.model.decode_share == share


async def test_the_end_of_the_server_ends_the_round(twin: EngineTwin) -> None:
    """Callbacks that wait are delivered, before the application's own end."""
    async with receiving() as receiver:
        async with plugged_in(twin) as server:
            await server.engine_loaded()
            receiver.gate.clear()
            twin.hold_after = 3
            await server.pow("POST", "init/generate", BODY | {"callback_url": receiver.url})
            await until(lambda: twin.running)
            assert server.events == ["start"]
            receiver.gate.set()
        assert server.events == ["start", "end"]
        assert [n for body in receiver.accepted for n in body["nonces"]] == list(range(8))
        assert not server.plugin.gate.closed
        prover = server.app.state.poc_service
        assert prover.status()["state"] == "STOPPED"


async def test_a_server_that_ends_before_its_engine_is_there(twin: EngineTwin) -> None:
    """There is nothing to end but the application itself."""
    async with plugged_in(twin) as server:
        pass
    assert server.events == ["start", "end"]
