"""Runs the application of a service on its port: in one process or several until a signal ends it, or in a thread."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Sequence
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from typing_extensions import override

from pocqueue.closing import Closing
from pocqueue.web.connection import Connection
from pocqueue.web.tls import Certificate

logger = logging.getLogger(__name__)

#: Clients that poll ask every few seconds; an idle connection is kept for longer than that.
KEEP_ALIVE_S = 75
#: Requests at work when the service is told to end may take this long.
END_S = 10
#: Longest WebSocket message, in bytes.
MAX_MESSAGE_BYTES = 4 << 20
#: Seconds of silence after which a WebSocket is sent a ping, and until one that is not answered ends it.
PING_S, PONG_S = 20.0, 20.0


def _options(
    app: ASGIApp | str,
    certificate: Certificate | None,
    trusted_proxies: str | None,
    *,
    websockets: bool,
) -> dict[str, Any]:
    options: dict[str, Any] = {
        "factory": isinstance(app, str),
        "loop": "uvloop",
        "http": Connection,
        "ws": "none",
        # The server's own log of requests has tokens in it that clients send in the query; see `requests`. Of
        # WebSockets it has another one, at level INFO.
        "access_log": False,
        "log_config": None,
        "log_level": "warning",
        "server_header": False,
        # None would be uvicorn's own variable, or loopback.
        "forwarded_allow_ips": trusted_proxies or "",
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": END_S,
    }
    if websockets:
        from pocqueue.web.websocket import LiveSocket

        options |= {
            "ws": LiveSocket,
            "ws_max_size": MAX_MESSAGE_BYTES,
            "ws_per_message_deflate": False,
            "ws_ping_interval": PING_S,
            "ws_ping_timeout": PONG_S,
        }
    if certificate is not None:
        options |= {"ssl_certfile": certificate.cert, "ssl_keyfile": certificate.key}
    return options


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
        websockets: the application has WebSocket routes.
    """
    host, port = listener.getsockname()[:2]
    options = _options(app, certificate, trusted_proxies, websockets=websockets)
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


class ServerThread(Closing):
    """Serves in a thread, for a process whose main thread has something else to do.

    Args:
        app: the application.
        listeners: from `listener.listen`; each serves all of it. Closed at the end.
        certificate, trusted_proxies: as in `serve`.
        ping_s: a WebSocket that was silent for so many seconds is sent a ping.
        pong_s: seconds until a ping of a WebSocket that is not answered ends it.
        end_s: requests at work at the end may take this long, in seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        listeners: Sequence[socket.socket],
        *,
        certificate: Certificate | None = None,
        trusted_proxies: str | None = None,
        ping_s: float = PING_S,
        pong_s: float = PONG_S,
        end_s: int = END_S,
    ) -> None:
        options = _options(app, certificate, trusted_proxies, websockets=True)
        options |= {
            "ws_ping_interval": ping_s,
            "ws_ping_timeout": pong_s,
            "timeout_graceful_shutdown": end_s,
        }
        self._server = uvicorn.Server(uvicorn.Config(app, **options))
        self._listeners = list(listeners)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)

    def start(self) -> bool:
        """Begin; return once requests are answered. False: the application did not start, its log says why."""
        self._thread.start()
        while not self._server.started and not self._ended.wait(0.01):
            pass
        return self._server.started

    @override
    def close(self) -> None:
        """Tell clients, let requests at work end, and wait for that; may be called again."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        for listener in self._listeners:
            listener.close()

    def _run(self) -> None:
        try:
            self._server.run(sockets=self._listeners)
        except SystemExit:
            # How uvicorn says that the application did not start.
            logger.debug("the application did not start")
        finally:
            self._ended.set()
