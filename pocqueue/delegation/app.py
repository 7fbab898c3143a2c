"""The delegation service: its application, the composition root of each of its processes, and what runs it.

All that sessions are is in Redis: processes may come and go in the middle of one, and any of them
answers any request.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from types import FrameType

from fastapi import FastAPI
from starlette.middleware import Middleware

from pocqueue.delegation.access import PREFIX, BodyToken, RedisFailures, asks, token_of
from pocqueue.delegation.customers import Customers, TokensFile, tokens_path
from pocqueue.delegation.routes import Delegation, delegation_router, metrics_router
from pocqueue.errors import SettingsError
from pocqueue.logs import log_to_stderr
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.sessions.control import SessionControl
from pocqueue.rounds.sessions.reader import SessionReader
from pocqueue.settings import DELEGATION_PREFIX, MIN_TOKEN_LENGTH, DelegationSettings, Settings
from pocqueue.web.app import make_app
from pocqueue.web.door import Access, Door
from pocqueue.web.failure_limit import FailureLimit
from pocqueue.web.listener import address_of, listen
from pocqueue.web.requests import request_histogram
from pocqueue.web.serve import serve as serve_app
from pocqueue.web.tls import Certificate, check_certificate
from pocqueue.words import counted

logger = logging.getLogger(__name__)

APP = "pocqueue.delegation.app:create_app"

#: Requests have no lists in them: the longest texts and the parameters take a few thousand bytes.
MAX_BODY_BYTES = 64 << 10

_DESCRIPTION = """
Searches nonces for small nodes on the GPUs of a big one.

A small node starts a *session*, fetches its *batches* until a reply has `session_active: false`, and
signs them with a key that never leaves it. Sessions end by themselves after their window. Every route
is also there without its prefix. Errors are `{"detail": sentence}`.
"""


def service_token(delegation: DelegationSettings) -> str:
    """Return the token that a big node has to have.

    Raises:
        SettingsError: there is none, or it can be guessed.
    """
    token = "" if delegation.auth_token is None else delegation.auth_token.get_secret_value()
    if len(token) < MIN_TOKEN_LENGTH:
        found = f"has {len(token)} characters" if token else "is not set"
        raise SettingsError(
            f"DELEGATION_AUTH_TOKEN {found}; a big node needs one of {MIN_TOKEN_LENGTH} or more, the "
            "same as on its small nodes. Make one with `python3 -c 'import secrets; "
            "print(secrets.token_urlsafe(32))'`."
        )
    return token


def create_app(
    settings: Settings | None = None, delegation: DelegationSettings | None = None
) -> FastAPI:
    """Make the application.

    Args:
        settings: of this process; None: from the environment, as uvicorn's processes want it, and
            logging is set up as well.
        delegation: of the service; None: from the environment.

    Raises:
        SettingsError: a setting is missing or not allowed, or the file of customers cannot be used.
    """
    if settings is None:
        settings = Settings.load()
        log_to_stderr(settings.log_level)
    delegation = delegation or DelegationSettings.load()
    customers = Customers(service_token(delegation), TokensFile(tokens_path(settings, delegation)))
    access = Access(
        customers.find,
        FailureLimit(delegation.auth_failures),
        if_missing="Invalid auth token: there is none; send it as `Authorization: Bearer TOKEN` or as "
        "`auth_token`.",
        if_wrong="Invalid auth token: check that DELEGATION_AUTH_TOKEN is the same on both nodes.",
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # A Redis that is away is waited for: until then every route says so.
        with Backend.open(settings, service=True) as backend:
            async with SessionReader(backend.url) as reader:
                access.limit.shared = RedisFailures(reader.client, reader.url).count
                app.state.delegation = Delegation(
                    settings=delegation,
                    backend=backend,
                    sessions=SessionControl(
                        backend,
                        max_sessions=delegation.max_sessions,
                        window_s=delegation.window_seconds,
                        any_model=delegation.any_model,
                        callback_private=settings.callback_private,
                    ),
                    reader=reader,
                )
                with _ending_waits(reader):
                    yield

    histogram = request_histogram("delegation")
    asked = partial(asks, public_status=delegation.public_status)
    app = make_app(
        "pocqueue delegation",
        _DESCRIPTION,
        lifespan,
        max_body_bytes=MAX_BODY_BYTES,
        histogram=histogram,
        prefix=PREFIX,
        middleware=[Middleware(BodyToken), Middleware(Door, access, asks=asked, token=token_of)],
    )
    router = delegation_router()
    app.include_router(router, prefix=PREFIX)
    # Once is enough in the OpenAPI document.
    app.include_router(router, include_in_schema=False)
    app.include_router(metrics_router(histogram))
    return app


def serve(settings: Settings, delegation: DelegationSettings, *, num_processes: int) -> None:
    """Serve until a signal ends it. The processes read their settings from the environment.

    Args:
        settings: of all processes.
        delegation: of the service.
        num_processes: that share the port.

    Raises:
        SettingsError: a setting is missing or not allowed, or the port cannot be had.
        ProcessError: the bundled Redis did not start.
    """
    log_to_stderr(settings.log_level)
    # All that can be wrong is found here, before there are processes to find it.
    certificate = check_service(settings, delegation)
    Backend.open(settings, service=True).close()
    listener = listen(delegation.host, delegation.port, DELEGATION_PREFIX)
    scheme = "http" if certificate is None else "https"
    processes = counted(num_processes, "process")
    logger.info("DELEGATION serves on %s://%s with %s.", scheme, address_of(listener), processes)
    serve_app(
        APP,
        listener,
        num_processes=num_processes,
        certificate=certificate,
        trusted_proxies=settings.trusted_proxies,
    )


def check_service(settings: Settings, delegation: DelegationSettings) -> Certificate | None:
    """Find out what would keep the service from starting, but for its port; return its certificate.

    Raises:
        SettingsError: a setting is missing or not allowed, or a file cannot be read.
    """
    Customers(service_token(delegation), TokensFile(tokens_path(settings, delegation)))
    return check_certificate(delegation.tls_cert, delegation.tls_key)


@contextmanager
def _ending_waits(reader: SessionReader) -> Iterator[None]:
    """End all long polls once the server is told to end.

    The server answers all requests before it ends the application, whose lifespan would be too late.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}

    def end(signum: int, frame: FrameType | None) -> None:
        reader.end_waits()
        handler = before[signal.Signals(signum)]
        if callable(handler):
            handler(signum, frame)

    for signum in before:
        signal.signal(signum, end)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
