"""The plugin that an unmodified vLLM server loads: proof routes on the model that it already serves.

    VLLM_PLUGINS=pocqueue vllm serve MODEL --worker-extension-cls pocqueue.engine.vllm.worker.PoCWorker

vLLM finds the class through the entry point group ``vllm.endpoint_plugins``, has it add its routes, and
hands it the engine client once the model is loaded. Where the proof cannot be made on this server, the
routes say why, and everything else works. `middleware.py` has the same for servers that load no plugin.
"""

from __future__ import annotations

import asyncio
import logging
import os
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from pocqueue.engine.base import EXTENSION
from pocqueue.engine.fingerprint import WEIGHT_NAMES
from pocqueue.engine.hub import cached_folder
from pocqueue.engine.vllm.ranks import read_description
from pocqueue.errors import EngineError, EngineUnavailable, ModelNotFound, PocqueueError
from pocqueue.poc.artifact.scheme import Artifact
from pocqueue.rounds.spec import RoundSpec
from pocqueue.served.artifacts import Artifacts, make_round_sender
from pocqueue.served.gate import GateMiddleware, InferenceGate
from pocqueue.served.model import ServedModel
from pocqueue.served.prover import Prover
from pocqueue.served.routes import add_routes
from pocqueue.served.state import RouteState
from pocqueue.settings import ArtifactSettings, Settings
from pocqueue.web.door import digest

logger = logging.getLogger("vllm.pocqueue")

#: How long a round closes the gate, as a rule.
_WINDOW_S: float = RoundSpec.model_fields["window_s"].default
#: A round that nobody stopped ends after this time.
MAX_ROUND_S = 3600.0


class PoCEndpoints:
    """Fits vLLM's ``EndpointPlugin``."""

    name = "pocqueue"
    #: Models that generate text; servers for embeddings only do not load it.
    required_tasks = ("generate",)

    def __init__(self, *, max_round_s: float = MAX_ROUND_S) -> None:
        self._max_round_s = max_round_s
        self._state = RouteState()
        self.gate = InferenceGate(_WINDOW_S)
        self.hashing: asyncio.Task[None] | None = None
        self._closing = False

    def attach_router(self, app: FastAPI) -> None:
        """Add routes, gate and a clean end to the server's application."""
        add_routes(app, self._state)
        app.add_middleware(GateMiddleware, gate=self.gate)
        self.end_with(app)

    def end_with(self, app: FastAPI) -> None:
        """Have what runs here end where the application ends."""
        around = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[Any]:
            async with around(app) as state:
                try:
                    yield state
                finally:
                    await self._close()

        app.router.lifespan_context = lifespan

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Look at the engine; from here on the routes work, or say why not."""
        try:
            settings = Settings.load()
            # Read when the server begins to listen, which is next; unset, whatever comes from loopback is believed.
            os.environ.setdefault("FORWARDED_ALLOW_IPS", settings.trusted_proxies or "")
            self._state.tokens = _tokens(settings, args)
            artifact_settings = ArtifactSettings.load()
            prover = await self._make_prover(engine_client, args, settings, artifact_settings)
        except PocqueueError as exc:
            self._state.reason = f"PoC not enabled: {exc}"
            logger.error("pocqueue: %s", self._state.reason)
            return
        self._state.names = _names(prover, engine_client.vllm_config, args)
        self._state.artifacts = Artifacts(prover, artifact_settings)
        state.poc_service = prover
        self.hashing = asyncio.create_task(
            self._fingerprint(prover.model, engine_client.vllm_config)
        )
        logger.info("pocqueue: /api/v1/pow is ready on model %s.", prover.model.info.model)

    async def _make_prover(
        self,
        engine_client: Any,
        args: Namespace,
        settings: Settings,
        artifact_settings: ArtifactSettings,
    ) -> Prover:
        """Ask the workers what they have, and set up the service.

        Raises:
            EngineError: the proof cannot be made on this server; says why.
        """
        if engine_client is None:
            raise EngineError("this server has no engine.")
        if (getattr(args, "api_server_count", None) or 1) > 1:
            raise EngineError(
                "the server runs several API processes, and a round lives in one. Start it with "
                "--api-server-count 1."
            )
        extension = engine_client.vllm_config.parallel_config.worker_extension_cls
        if not extension:
            raise EngineError(f"start the server with --worker-extension-cls {EXTENSION}.")
        try:
            info, limits = read_description(await engine_client.collective_rpc("poc_describe"))
        except EngineError:
            raise
        except Exception as exc:
            # What a worker raises arrives as text, of whatever class it was.
            raise EngineError(str(exc)[:500]) from exc
        names = getattr(args, "served_model_name", None)
        info = replace(info, model=names[0] if names else info.model)
        model = ServedModel(
            engine_client,
            info,
            limits,
            timeouts_s={Artifact.name: artifact_settings.rpc_timeout_ms / 1000},
            decode_share=settings.vllm_decode_share,
        )
        sender = make_round_sender(artifact_settings)
        return Prover(model, self.gate, settings.vllm_drain_seconds, self._max_round_s, sender)

    async def _fingerprint(self, served: ServedModel, config: Any) -> None:
        """Hash the model's files in the background; a large model takes minutes."""
        from pocqueue.engine.fingerprint import fingerprint

        try:
            weights, configuration = await asyncio.to_thread(_model_folders, config)
            digits = await asyncio.to_thread(
                fingerprint, weights, config_dir=configuration, on_bytes=self._go_on
            )
        except Exception as exc:  # noqa: BLE001 - the hub's errors have no common class
            self._state.model_error = f"the model's files cannot be hashed ({str(exc)[:300]})"
            logger.error("pocqueue: %s", self._state.model_error)
            return
        served.info = replace(served.info, fingerprint=digits)
        self._state.model_error = None

    def _go_on(self, _done: int, _total: int) -> None:
        """End the hashing thread when the server ends, which would wait for it for minutes.

        Raises:
            EngineUnavailable: the server ends.
        """
        if self._closing:
            raise EngineUnavailable("the server ends")

    async def _close(self) -> None:
        self._closing = True
        if self.hashing is not None:
            self.hashing.cancel()
        if self._state.artifacts is not None:
            await self._state.artifacts.close()


def _names(prover: Prover, vllm_config: Any, args: Namespace) -> set[str]:
    """Return what the model may be called: where it was loaded from, and each name that it is served under."""
    served = getattr(args, "served_model_name", None) or []
    return {str(vllm_config.model_config.model), prover.model.info.model, *served}


def _tokens(settings: Settings, args: Namespace) -> list[str]:
    """Return the digest of each token that opens the routes; none: they are open to all.

    The server's own keys count if no other token is set: a client that may not ask for a completion must
    not stop all of them either.
    """
    if settings.vllm_token is not None:
        tokens = [settings.vllm_token.get_secret_value()]
    else:
        tokens = list(getattr(args, "api_key", None) or [os.environ.get("VLLM_API_KEY")])
    return [digest(token) for token in tokens if token]


def _model_folders(vllm_config: Any) -> tuple[Path, Path]:
    """Return where vLLM loaded its weights from, and its configuration.

    Raises:
        ModelNotFound: it has them from elsewhere than a folder or the hub's cache.
    """
    model = vllm_config.model_config
    folder = Path(model.model)
    if folder.is_dir():
        return folder.resolve(), folder.resolve()
    # vLLM has downloaded them; weights into a folder of their own if it was told so.
    weights = cached_folder(
        model.model,
        WEIGHT_NAMES,
        revision=model.revision,
        cache_dir=vllm_config.load_config.download_dir,
    )
    config = cached_folder(model.model, ["config.json"], revision=model.revision)
    if weights is None or config is None:
        raise ModelNotFound(
            f"the hub's cache has no config.json and no {' or '.join(WEIGHT_NAMES)} of {model.model}"
        )
    return weights, config
