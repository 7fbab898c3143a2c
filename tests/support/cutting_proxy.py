"""A proxy that breaks connections in the middle of a reply, and takes hardly more of it than it passes on."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

#: Of the proxy's own socket towards the service: what it has not read lies in the service's kernel.
_HOLDS = 4096
_AT_ONCE = 1024


@contextlib.contextmanager
def cutting(port: int, after: int) -> Iterator[int]:
    """Pass connections on to a port of this machine; yields the proxy's own port.

    Args:
        after: bytes of each reply that are passed on before both connections are broken.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, port, after), daemon=True).start()
        yield listener.getsockname()[1]
        # Wakes who accepts, unlike close.
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, port: int, after: int) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client, socket.socket() as service:
            service.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _HOLDS)
            service.connect(("127.0.0.1", port))
            threading.Thread(target=_pass_on, args=(client, service), daemon=True).start()
            left = after
            while left > 0 and (part := service.recv(min(left, _AT_ONCE))):
                client.sendall(part)
                left -= len(part)
            # Wakes who reads from the client, and would keep its connection from being broken.
            client.shutdown(socket.SHUT_RD)
            for end in (client, service):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _pass_on(client: socket.socket, service: socket.socket) -> None:
    """Pass on what the client sends, until either end is closed."""
    with contextlib.suppress(OSError):
        while part := client.recv(65536):
            service.sendall(part)
