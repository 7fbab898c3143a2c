"""Counts the wrong tokens that come from an address, and tells addresses that try too many to wait.

A right token is not refused for them: behind one address, of a proxy or a NAT, there may be many clients. So
what keeps a token from being guessed is its length; the limit keeps guesses from Redis, and its answer says when
a mistake in somebody's settings may be tried again.

Each process counts on its own before it awaits anything, so that a burst of guesses is judged in the order in which
it came. With a shared store, all processes of a service count together as well; while that store is away, the
limit of each process still holds.

IPv6 addresses count by their /64, which is what one subscriber has.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from pocqueue.errors import StoreError, TooManyFailures

#: Wrong tokens are counted over this long, from the first one on.
WINDOW_S = 60
#: Wrong tokens of one window that are still answered as such, by default.
MAX_FAILURES = 20
#: Addresses that are remembered; beyond it, the one whose window began first is forgotten.
_MANY = 10_000


@dataclass(eq=False)
class FailureLimit:
    """The wrong tokens of each address."""

    #: Wrong tokens from one address in `WINDOW_S` that are still answered as such.
    max_failures: int = MAX_FAILURES
    clock: Callable[[], float] = time.monotonic  #: seconds that only go forward
    #: Counts one more for all processes of a service; returns how many it is in this window, and the seconds
    #: that are left of that. Raises `StoreError` while its store is away. None: there is none (yet).
    shared: Callable[[str], Awaitable[tuple[int, float]]] | None = None
    #: By address: wrong tokens, and when they are forgotten.
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict, init=False)

    async def count(self, address: str) -> None:
        """Count a wrong token.

        Args:
            address: an IP address, or any other text.

        Raises:
            TooManyFailures: it is one too many.
        """
        address, now = subscriber(address), self.clock()
        count, until = self._seen.get(address, (0, 0.0))
        count += 1
        if until <= now:
            # At the end of them all, which are in the order in which their windows began.
            self._seen.pop(address, None)
            count, until = 1, now + WINDOW_S
            if len(self._seen) >= _MANY:
                del self._seen[next(iter(self._seen))]
        # Before anything is awaited: those that came at the same time are judged after it.
        self._seen[address] = count, until
        # Once an address is over the limit, its guesses do not reach the store.
        if self.shared is not None and count <= self.max_failures + 1:
            with contextlib.suppress(StoreError):
                count, left_s = await self.shared(address)
                if count > self.max_failures:
                    self._seen[address] = count, self.clock() + left_s
        count, until = self._seen.get(address, (0, 0.0))
        if count > self.max_failures:
            raise TooManyFailures(until - self.clock())


def subscriber(address: str) -> str:
    """Return what an address is counted by: itself, or the /64 of an IPv6 one."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((found, 64), strict=False).network_address)
