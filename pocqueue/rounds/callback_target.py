"""Where the callbacks of rounds may go: to public addresses, unless the operator allows others.

The callback URL of a round comes from outside, and the io worker that posts to it may stand inside a network
that is closed to those who chose it. Promises:

- Only http and https, without a user name or password in the URL.
- No connection to an address that is private, loopback, link-local, multicast, unspecified or
  reserved, whichever way it is written: in an IPv6 address that carries an IPv4 one (mapped,
  NAT64, 6to4) it is the IPv4 one that counts.
- The address that was judged is the address that is connected to: names are resolved once a
  connection, the answers are judged, and what is left is what the socket gets. A name that resolves
  to something else a moment later (DNS rebinding) gains nothing.

`POCQUEUE_CALLBACK_PRIVATE` lifts the second promise, for receivers on one's own network.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from typing import Any, TypeAlias

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver
from typing_extensions import override
from yarl import URL

from pocqueue.errors import CallbackForbidden, InvalidRound
from pocqueue.poc.callback import without_secrets

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Translation prefix of RFC 6052: the IPv4 address is in its last 32 bits.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: All that is given out of IPv6 for single receivers (RFC 4291, 2.4).
_UNICAST = ipaddress.IPv6Network("2000::/3")

ALLOWED = (
    "an http:// or https:// URL with a public address, without a user name or password; "
    "POCQUEUE_CALLBACK_PRIVATE=1 allows private and loopback addresses too"
)


def is_public(address: Address) -> bool:
    """Say whether an address is one of the public internet, and one receiver's alone."""
    if address.version == 6:
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is None:
            return address in _UNICAST and address.is_global
        address = inner
    # `is_global` alone lets multicast through.
    return address.is_global and not address.is_multicast


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
        # The host as the client will see it, which turns ① into 1 and an ideographic stop into a dot.
        host = (parts.host or "").rstrip(".").lower()
        is_good = bool(host) and parts.user is None and parts.password is None
    except ValueError:
        is_good = False
    if not is_good or not (allow_private or _may_be_public(host)):
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


# Not of aiohttp's default: with aiodns installed that would read other files than the system.
class _PublicResolver(ThreadedResolver):
    """The system's resolver, with what is not public left out."""

    @override
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        public = [one for one in found if is_public(ipaddress.ip_address(one["host"]))]
        if found and not public:
            raise CallbackForbidden(host)
        return public


def _public_socket(info: tuple[Any, ...]) -> socket.socket:
    """Make the socket for a connection to an address, the last thing before it is made."""
    family, kind, protocol, _, where = info
    if not is_public(ipaddress.ip_address(where[0])):
        raise CallbackForbidden(str(where[0]))
    return socket.socket(family=family, type=kind, proto=protocol)


def _may_be_public(host: str) -> bool:
    """Say whether a host is a public address, or a name that may lead to one."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761
        return False
    with contextlib.suppress(ValueError):
        return is_public(ipaddress.ip_address(host))
    with contextlib.suppress(OSError, UnicodeError):
        # The forms that the C library reads as well: 127.1, 0x7f.1, 2130706433.
        return is_public(ipaddress.IPv4Address(socket.inet_aton(host)))
    return True
