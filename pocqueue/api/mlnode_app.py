"""The small node's application: its routes over one `NodeService`, which lives as long as it does.

One process: the searches that it follows and its outbox belong to it alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from pocqueue import __version__
from pocqueue.api.mlnode_routes import VersionPrefix, mlnode_router
from pocqueue.node.keys import SigningKey, key_path
from pocqueue.node.outbox import OUTBOX_NAME, Outbox
from pocqueue.node.service import NodeService
from pocqueue.settings import DelegationSettings, NodeSettings, Settings


def create_app(settings: Settings, delegation: DelegationSettings, node: NodeSettings) -> FastAPI:
    """Make the application.

    Raises:
        KeyFileError: the signing key cannot be read, or others can read it.
        NodeError: the outbox cannot be opened.
    """
    key = SigningKey.load(key_path(settings, node))
    outbox = Outbox(settings.state_dir / OUTBOX_NAME)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service = NodeService(settings, delegation, node, key, outbox)
        app.state.service = service
        await service.start()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="pocqueue small node",
        version=__version__,
        description="Owns a key: has rounds searched by a big node or by itself, signs what is found and "
        "sends it to the chain.",
        lifespan=life,
    )
    app.add_middleware(VersionPrefix)
    app.include_router(mlnode_router(node))
    return app
