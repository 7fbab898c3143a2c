"""The application of a service: FastAPI, with the middleware that all services share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from prometheus_client import Histogram
from starlette.middleware import Middleware

from pocqueue import __version__
from pocqueue.web.body_limit import BodyLimit
from pocqueue.web.errors import ERROR_FIELD
from pocqueue.web.requests import RequestTimes


def make_app(
    title: str,
    description: str,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    *,
    max_body_bytes: int,
    histogram: Histogram | None = None,
    prefix: str = "",
    error_field: str = "detail",
    middleware: Sequence[Middleware] = (),
) -> FastAPI:
    """Make an application without routes.

    Args:
        title, description: of its OpenAPI document.
        lifespan: what lives as long as it does.
        max_body_bytes: largest body of a request.
        histogram: keeps the times of its requests, from `request_histogram`; None: they are not kept.
        prefix: of its routes, not shown in the histogram.
        error_field: what its error answers call their sentence.
        middleware: its own, such as its `Door`, the outermost first.
    """
    app = FastAPI(
        title=title,
        version=__version__,
        description=description,
        lifespan=lifespan,
        # A path is one thing: no redirects from `/status/`.
        redirect_slashes=False,
        middleware=[
            Middleware(RequestTimes, histogram=histogram, prefix=prefix),
            Middleware(BodyLimit, max_bytes=max_body_bytes),
            *middleware,
        ],
    )
    setattr(app.state, ERROR_FIELD, error_field)
    return app
