"""The proof routes of a vLLM server that takes no endpoint plugins, one before 0.26: the same, as middleware.

    vllm serve MODEL --middleware pocqueue.served.middleware.PoCMiddleware --worker-extension-cls pocqueue.engine.vllm.worker.PoCWorker

vLLM adds the class to its application, whose first call, at the start of the server, makes an object of it. By then
the model is loaded, and the engine client is in the application's state.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from pocqueue.served.plugin import PoCEndpoints


class PoCMiddleware:
    """Lays what the plugin adds to an application around one whose own middleware is settled.

    Args:
        app: what is behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._plugin = PoCEndpoints()
        self._added = FastAPI(openapi_url=None)
        self._plugin.attach_router(self._added)
        for layer in reversed(self._added.user_middleware):
            app = layer.cls(app, *layer.args, **layer.kwargs)
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is for the server; at its start, add the routes and look at the engine."""
        if scope["type"] == "lifespan":
            server: FastAPI = scope["app"]
            server.router.routes.extend(self._added.routes)
            self._plugin.end_with(server)
            engine_client, args = server.state.engine_client, server.state.args
            await self._plugin.init_state(engine_client, server.state, args)
        await self._app(scope, receive, send)
