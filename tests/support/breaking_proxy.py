"""A proxy before a Unix socket whose connections break when a test says so."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from typing import Any

from typing_extensions import override

#: With it a socket that is closed tells the other end that the connection is broken, and not over.
_BREAKS = struct.pack("ii", 1, 0)


class Line:
    """The connections at hand.

    Attributes:
        port: on loopback, where they come in.
        is_up: whether a new one is passed on; else it is broken at once.
    """

    def __init__(self) -> None:
        self.port = 0
        self.is_up = True
        #: A reply to a request with these bytes in it is not passed on; its connection breaks instead. Once.
        self.loses_reply_to: bytes | None = None
        self._ends: set[socket.socket] = set()

    def cut(self) -> int:
        """Break all of them; return how many."""
        ends = set(self._ends)
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RD)
        return len(ends) // 2

    def pass_on(self, client: socket.socket, service: socket.socket) -> None:
        """Pass on what both ends send, until one is over or broken."""
        pair = {client, service}
        for end in pair:
            if end.family != socket.AF_UNIX:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _BREAKS)
        self._ends |= pair
        back = threading.Thread(target=self._copy, args=(service, client), daemon=True)
        back.start()
        try:
            self._copy(client, service, asks=True)
        finally:
            back.join()
            self._ends -= pair

    def _copy(self, source: socket.socket, target: socket.socket, *, asks: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                lost = self.loses_reply_to
                if asks and lost is not None and lost in data:
                    self.loses_reply_to = None
                    # No reply is read from now on; the request is, as it is there before the end.
                    source.shutdown(socket.SHUT_WR)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def breaking(path: str) -> Iterator[Line]:
    """Listen on a port of loopback, and pass on to a Unix socket."""
    line = Line()

    class Handler(socketserver.BaseRequestHandler):
        @override
        def handle(self) -> None:
            if line.is_up:
                with socket.socket(socket.AF_UNIX) as service:
                    service.connect(path)
                    line.pass_on(self.request, service)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

        @override
        def shutdown_request(self, request: Any) -> None:
            self.close_request(request)  # without a word, as a broken connection ends

    with Server(("127.0.0.1", 0), Handler) as server:
        line.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield line
        finally:
            server.shutdown()
            line.cut()
            thread.join()
