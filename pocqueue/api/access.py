"""Lets those in that have a token, and shuts addresses out that try too many wrong ones.

Wrong tokens are counted in Redis, by the client's address (an IPv6 one by its /64, which is what one
subscriber has), so that all processes of a service count together. An address over the limit hears
429 for the rest of its minute, even with a right token: a lucky guess gains nothing. Each process
remembers the addresses that it refuses, so that a right token costs no question to Redis.

A missing token is refused and not counted: it is no guess.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

import redis.asyncio

from pocqueue.api.customers import Customer, Customers
from pocqueue.errors import InvalidToken, TooManyFailures
from pocqueue.rounds.connection import store_errors
from pocqueue.rounds.store import Keys

#: Wrong tokens are counted over this long, from the first one on.
WINDOW_S = 60
#: Addresses remembered as refused; beyond it, those whose time is over are forgotten.
_MANY = 10_000


class Access:
    """The door of a service.

    Args:
        customers: who has which token.
        client: Redis.
        url: of that Redis, for messages.
        max_failures: wrong tokens from one address in `WINDOW_S` that are still answered as such.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        customers: Customers,
        client: redis.asyncio.Redis,
        url: str,
        max_failures: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._customers = customers
        self._client = client
        self._url = url
        self._max_failures = max_failures
        self._clock = clock
        self._blocked_until: dict[str, float] = {}

    async def admit(self, address: str, token: str | None) -> Customer:
        """Return whose token it is.

        Args:
            address: the client's, an IP address or any other text.
            token: as the client sent it; None or empty: it sent none.

        Raises:
            InvalidToken: it is missing or wrong.
            TooManyFailures: too many wrong ones came from there.
            StoreError: Redis is away, and the failure could not be counted.
        """
        if self._blocked_until:
            self._refuse_blocked(address)
        if not token:
            raise InvalidToken(
                "Invalid auth token: there is none; send it as `Authorization: Bearer TOKEN` or as "
                "`auth_token`."
            )
        customer = self._customers.find(token)
        if customer is None:
            await self._count_failure(subscriber(address))
            raise InvalidToken(
                "Invalid auth token: check that DELEGATION_AUTH_TOKEN is the same on both nodes."
            )
        return customer

    def _refuse_blocked(self, address: str) -> None:
        left_s = self._blocked_until.get(subscriber(address), 0.0) - self._clock()
        if left_s > 0:
            raise TooManyFailures(left_s)

    async def _count_failure(self, address: str) -> None:
        key = f"{Keys.AUTH_FAILURES}:{address}"
        with store_errors(self._url):
            async with self._client.pipeline(transaction=True) as pipe:
                # First, so that no counter is ever without an end.
                pipe.set(key, 0, ex=WINDOW_S, nx=True)
                pipe.incr(key)
                pipe.pttl(key)
                pipe.hincrby(Keys.METRICS, "auth_failures", 1)
                _, count, left_ms, _ = await pipe.execute()
        if count > self._max_failures:
            now = self._clock()
            if len(self._blocked_until) >= _MANY:
                self._blocked_until = {a: t for a, t in self._blocked_until.items() if t > now}
            left_s = max(left_ms, 1) / 1000
            self._blocked_until[address] = now + left_s
            raise TooManyFailures(left_s)


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
