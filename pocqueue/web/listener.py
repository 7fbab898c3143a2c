"""Takes the port of a service before anything of it starts, so that one that is taken is known at once."""

from __future__ import annotations

import os
import socket

from pocqueue.errors import SettingsError


def listen(
    host: str,
    port: int,
    prefix: str,
    *,
    host_variable: str = "HOST",
    otherwise: str = "choose another with --port",
) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: name or address of this machine; empty: every interface.
        port: 0 takes a free one.
        prefix: of the variables HOST and PORT, for messages.
        host_variable: the first one, if it has another name.
        otherwise: what to do about a port that is taken, beside ending what uses it.

    Raises:
        SettingsError: the port cannot be had.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as exc:
        raise SettingsError(
            f"{prefix}{host_variable} is {host!r}, which is no address ({getattr(exc, 'strerror', None) or exc}); "
            "allowed: an address of this machine, such as 0.0.0.0 or 127.0.0.1."
        ) from None
    try:
        listener = socket.create_server(
            place, family=family, backlog=2048, dualstack_ipv6=family == socket.AF_INET6
        )
    except OSError as exc:
        why = os.strerror(exc.errno) if exc.errno else exc
        raise SettingsError(
            f"{prefix}PORT is {port} on {host}, which cannot be listened on ({why}): end what "
            f"uses it, or {otherwise}."
        ) from None
    listener.set_inheritable(True)
    return listener


def address_of(listener: socket.socket) -> str:
    """Return host and port as they are written in a URL."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url_of(address: str, port: int) -> str:
    """Return the URL by which this machine reaches what listens there; every interface: loopback."""
    host = "127.0.0.1" if address in {"", "0.0.0.0", "::"} else address  # noqa: S104 - only compared
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
