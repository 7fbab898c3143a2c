"""Where the callbacks of rounds may go: to public addresses, unless the operator allows others.

The callback URL of a round comes from outside, and the io worker that posts to it may stand inside a network
that is closed to those who chose it. Promises:

- Only http and https, without a user name or password in the URL.
- No connection to an address that is private, loopback, link-local, multicast, unspecified or
  reserved, whichever way it is written: in an IPv6 address that carries an IPv4 one (mapped,
  compatible, NAT64, 6to4, Teredo) it is the IPv4 one that counts.
- The address that was judged is the address that is connected to: names are resolved once a
  connection, the answers are judged, and what is left is what the socket gets. A name that resolves
  to something else a moment later (DNS rebinding) gains nothing.

`POCQUEUE_CALLBACK_PRIVATE` lifts the second promise, for receivers on one's own network.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any, TypeAlias

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from typing_extensions import override
from yarl import URL

from pocqueue.errors import CallbackForbidden, InvalidRound
from pocqueue.poc.callback import without_secrets

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Translation prefixes of RFC 6052 and RFC 8215. The first has the IPv4 address in its last 32 bits;
#: in the second its place differs from network to network.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")
#: RFC 4291, 2.5.5.1: "::a.b.c.d". `::` and `::1` are in it too, as 0.0.0.0 and 0.0.0.1.
_COMPATIBLE = ipaddress.IPv6Network("::/96")

ALLOWED = (
    "an http:// or https:// URL with a public address, without a user name or password; "
    "POCQUEUE_CALLBACK_PRIVATE=1 allows private and loopback addresses too"
)


def is_public(address: Address) -> bool:
    """Say whether an address is one of the public internet, and one receiver's alone."""
    inner = _carried(address)
    if inner:
        return all(is_public(one) for one in inner)
    if address.version == 6 and address in _NAT64_LOCAL:
        return False
    # `is_global` alone lets multicast through, and site-local addresses on some versions of Python.
    return address.is_global and not (
        address.is_multicast
        or address.is_reserved
        or address.is_link_local
        or address.is_loopback
        or address.is_unspecified
        or getattr(address, "is_site_local", False)
    )


def check_url(url: str, *, allow_private: bool) -> None:
    """Refuse a callback URL for what can be told of it without asking a name server.

    Args:
        url: the callback URL of a round.
        allow_private: addresses that are not public will do.

    Raises:
        InvalidRound: scheme, user name or a literal address is not allowed; the field is
            ``callback_url``, and no secret of the URL is in the message.
    """
    where = without_secrets(url)
    try:
        parts = URL(url)
    except ValueError:
        raise InvalidRound("callback_url", where, ALLOWED) from None
    # The host as the client will see it, which turns ① into 1 and an ideographic stop into a dot.
    host = (parts.host or "").rstrip(".").lower()
    if not host or parts.user is not None or parts.password is not None:
        raise InvalidRound("callback_url", where, ALLOWED)
    if allow_private:
        return
    address = _literal(host)
    is_local_name = host == "localhost" or host.endswith(".localhost")  # RFC 6761
    if is_local_name or (address is not None and not is_public(address)):
        raise InvalidRound("callback_url", where, ALLOWED)


def checked_connector(allow_private: bool) -> aiohttp.TCPConnector:
    """Make a connector that reaches allowed addresses only; within a running event loop.

    A connection that may not be made fails with a client error caused by `CallbackForbidden`.
    """
    if allow_private:
        return aiohttp.TCPConnector()
    # Both are needed: a literal address never comes by the resolver, and only the resolver knows
    # that all answers were forbidden, so that trying again would not help.
    return aiohttp.TCPConnector(resolver=_PublicResolver(), socket_factory=_public_socket)


class _PublicResolver(AbstractResolver):
    """The system's resolver, with what is not public left out."""

    def __init__(self) -> None:
        # Not aiohttp's default: with aiodns installed that would read other files than the system.
        self._resolver = ThreadedResolver()

    @override
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        public = [one for one in found if is_public(ipaddress.ip_address(one["host"]))]
        if found and not public:
            raise CallbackForbidden(host)
        return public

    @override
    async def close(self) -> None:
        await self._resolver.close()


def _public_socket(info: tuple[Any, ...]) -> socket.socket:
    """Make the socket for a connection to an address, the last thing before it is made."""
    family, kind, protocol, _, where = info
    if not is_public(ipaddress.ip_address(where[0])):
        raise CallbackForbidden(str(where[0]))
    return socket.socket(family=family, type=kind, proto=protocol)


def _carried(address: Address) -> list[Address]:
    """Return the IPv4 addresses that an IPv6 address stands for; none for any other."""
    if address.version == 4:
        return []
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.sixtofour is not None:
        return [address.sixtofour]
    if address.teredo is not None:
        return list(address.teredo)
    if address in _NAT64 or address in _COMPATIBLE:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    return []


def _literal(host: str) -> Address | None:
    """Return the address that a host is written as; None: it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        # The forms that the C library reads as well: 127.1, 0x7f.1, 2130706433.
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None
