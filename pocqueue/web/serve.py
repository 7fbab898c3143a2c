"""Runs the application of a service on its port, in one process or several, until a signal ends it."""

from __future__ import annotations

import contextlib
import signal
import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from pocqueue.web.connection import Connection
from pocqueue.web.tls import Certificate

#: Clients that poll ask every few seconds; an idle connection is kept for longer than that.
KEEP_ALIVE_S = 75
#: Requests at work when the service is told to end may take this long.
END_S = 10
#: Longest WebSocket message, in bytes.
MAX_MESSAGE_BYTES = 4 << 20


def serve(
    app: ASGIApp | str,
    listener: socket.socket,
    *,
    num_processes: int = 1,
    certificate: Certificate | None = None,
    trusted_proxies: str | None = None,
    websockets: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT; the listener is closed then.

    Args:
        app: the application, or ``module:function`` of what makes it, which several processes need.
        listener: from `listener.listen`.
        num_processes: that share the port. Each calls the function, and reads its settings itself.
        certificate: for https; None: http.
        trusted_proxies: addresses and networks, with commas between, whose X-Forwarded-For is believed; None:
            nobody's.
        websockets: the application has WebSocket routes; the package `websockets` is needed then.
    """
    host, port = listener.getsockname()[:2]
    options: dict[str, Any] = {
        "factory": isinstance(app, str),
        "loop": "uvloop",
        "http": Connection,
        "ws": "websockets-sansio" if websockets else "none",
        "ws_max_size": MAX_MESSAGE_BYTES,
        "ws_per_message_deflate": False,
        # The server's own log of requests has tokens in it that clients send in the query; see `requests`.
        "access_log": False,
        "log_config": None,
        "server_header": False,
        # None would be uvicorn's own variable, or loopback.
        "forwarded_allow_ips": trusted_proxies or "",
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": END_S,
    }
    if certificate is not None:
        options |= {"ssl_certfile": certificate.cert, "ssl_keyfile": certificate.key}
    # The server ends by itself on these, and raises them once more for the handlers that were there before.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: None)
    if num_processes == 1:
        with contextlib.closing(listener):
            uvicorn.Server(uvicorn.Config(app, **options)).run(sockets=[listener])
    else:
        # Several processes get the port from their parent, which takes no open one from us.
        listener.close()
        uvicorn.run(app, host=str(host), port=port, workers=num_processes, **options)
