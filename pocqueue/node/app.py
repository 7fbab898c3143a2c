"""The small node's application: its routes over one `NodeService`, which lives as long as it does.

One process: the searches that it follows and its outbox belong to it alone.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware

from pocqueue.errors import SettingsError
from pocqueue.node.engine_host import EngineHost
from pocqueue.node.keys import SigningKey, key_path
from pocqueue.node.mlnode.proxy import Proxy
from pocqueue.node.mlnode.routes import mlnode_router
from pocqueue.node.outbox import OUTBOX_NAME, Outbox
from pocqueue.node.routes import VersionPrefix, node_router
from pocqueue.node.searches import local_work
from pocqueue.node.service import NodeService
from pocqueue.settings import DelegationSettings, NodeSettings, Settings
from pocqueue.web.app import make_app
from pocqueue.web.origin import OwnOrigin, host_names
from pocqueue.web.tls import tls_context

logger = logging.getLogger(__name__)

#: A proof of 100 000 nonces takes some 4 MB.
MAX_BODY_BYTES = 16 << 20

_DESCRIPTION = """
Owns a key: has rounds searched by a big node or by itself, signs what is found (distances; artifacts have no
signatures) and sends it to the chain.

The chain *inits* a round, which is searched in its *phase* `generate`; batches are posted to
`{url}/generated` until they are taken, and verdicts on proofs of others to `{url}/validated`. Chains of the public
network, which take artifacts, ask by `/api/v1/inference/pow/…`. Paths may begin with a version (`/v3.0.8/api/v1/…`). No token is asked for. Errors are `{"detail": sentence}`.
"""


def create_app(
    settings: Settings,
    delegation: DelegationSettings,
    node: NodeSettings,
    engine: EngineHost | None = None,
) -> FastAPI:
    """Make the application.

    Args:
        settings: of all processes.
        delegation: of the big node.
        node: of this one.
        engine: its own, if it works with one; None: that of the settings.

    Raises:
        SettingsError: a setting cannot be used, or not beside another.
        KeyFileError: the signing key cannot be read, or others can read it.
        OutboxError: the outbox cannot be opened.
    """
    check_settings(delegation, node)
    key = SigningKey.load(key_path(settings, node))
    outbox = Outbox(settings.state_dir / OUTBOX_NAME)
    service = NodeService(settings, delegation, node, key, outbox, engine)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.close()

    app = make_app(
        "pocqueue small node",
        _DESCRIPTION,
        life,
        max_body_bytes=MAX_BODY_BYTES,
        middleware=[
            Middleware(
                OwnOrigin,
                own=host_names(f"{settings.host_name},{node.host}"),
                allowed=host_names(node.allowed_hosts),
                setting=NodeSettings.variable("allowed_hosts"),
            ),
            Middleware(VersionPrefix),
        ],
    )
    app.include_router(node_router(node, service))
    app.include_router(mlnode_router(Proxy(service, node)))
    return app


def check_settings(delegation: DelegationSettings, node: NodeSettings) -> None:
    """Find at the start what would be found in the middle of a round; warn of what is half set.

    Raises:
        SettingsError: a setting cannot be used, or not beside another.
    """
    if delegation.tls_ca is not None:
        tls_context(delegation.tls_ca, "DELEGATION_TLS_CA")
    if delegation.fallback == "local" and local_work(delegation, node) == "none":
        raise SettingsError(
            "DELEGATION_FALLBACK is local, and this node has nothing to work with itself: set "
            "POCQUEUE_NODE_WORK to engine or queue, or DELEGATION_FALLBACK to none."
        )
    if delegation.url is not None and delegation.auth_token is None:
        logger.warning(
            "DELEGATION_URL is set and DELEGATION_AUTH_TOKEN is not: this node works by itself."
        )
