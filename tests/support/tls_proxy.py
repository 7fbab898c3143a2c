"""TLS in front of a server on loopback that has none: the bundled Redis is built without it."""

from __future__ import annotations

import contextlib
import selectors
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typing_extensions import override


@contextlib.contextmanager
def tls_proxy(target: str, cert: Path, key: Path) -> Iterator[int]:
    """Listen with TLS on a port of loopback, which is yielded, and pass on to a Unix socket."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)

    class Handler(socketserver.BaseRequestHandler):
        @override
        def handle(self) -> None:
            with (
                contextlib.suppress(OSError),
                context.wrap_socket(self.request, server_side=True) as outer,
                socket.socket(socket.AF_UNIX) as inner,
                selectors.DefaultSelector() as both,
            ):
                inner.connect(target)
                both.register(outer, selectors.EVENT_READ, inner)
                both.register(inner, selectors.EVENT_READ, outer)
                while True:
                    for found, _ in both.select():
                        end: Any = found.fileobj
                        data = end.recv(1 << 16)
                        while isinstance(end, ssl.SSLSocket) and end.pending():
                            data += end.recv(end.pending())
                        if not data:
                            return
                        found.data.sendall(data)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
