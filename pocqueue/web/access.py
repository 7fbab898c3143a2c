"""Lets those in that have a token, and shuts addresses out that try too many wrong ones.

Wrong tokens are counted in Redis, by the client's address (an IPv6 one by its /64, which is what one
subscriber has), so that all processes of a service count together. An address over the limit hears
429 for the rest of its minute, even with a right token: a lucky guess gains nothing. Each process
counts for itself too, before it asks Redis: a burst of guesses, or a Redis that is away, gets nobody
past the limit, and a right token costs no question to Redis.

A missing token is refused and not counted: it is no guess.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import Callable

import redis.asyncio

from pocqueue.delegation.customers import Customer, Customers
from pocqueue.errors import InvalidToken, StoreError, TooManyFailures
from pocqueue.rounds.connection import store_errors
from pocqueue.rounds.store import Keys

#: Wrong tokens are counted over this long, from the first one on.
WINDOW_S = 60
#: Wrong tokens that are counted at the same time.
_TURNS = 8
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
        #: By address: wrong tokens seen by this process, and when they are forgotten.
        self._seen: dict[str, tuple[int, float]] = {}
        # Of the connections that sessions are read by, guesses get a few.
        self._turns = asyncio.Semaphore(_TURNS)

    async def admit(self, address: str, token: str | None) -> Customer:
        """Return whose token it is.

        Args:
            address: the client's, an IP address or any other text.
            token: as the client sent it; None or empty: it sent none.

        Raises:
            InvalidToken: it is missing or wrong.
            TooManyFailures: too many wrong ones came from there.
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
        now = self._clock()
        count, until = self._seen.get(address, (0, 0.0))
        count, until = (1, now + WINDOW_S) if until <= now else (count + 1, until)
        if len(self._seen) >= _MANY:
            self._seen = {a: seen for a, seen in self._seen.items() if seen[1] > now}
        self._seen[address] = count, until
        if count > self._max_failures:
            # Before anything is waited for: those that came at the same time are judged after it.
            self._block(address, until - now)
        # Where Redis is away, each process counts for itself alone.
        with contextlib.suppress(StoreError):
            await self._count_in_redis(address)
        self._refuse_blocked(address)

    async def _count_in_redis(self, address: str) -> None:
        key = f"{Keys.AUTH_FAILURES}:{address}"
        async with self._turns:
            with store_errors(self._url):
                count, left_ms = await self._increment(key)
        if count > self._max_failures:
            self._block(address, max(left_ms, 1) / 1000)

    async def _increment(self, key: str) -> tuple[int, int]:
        async with self._client.pipeline(transaction=True) as pipe:
            # First, so that no counter is ever without an end.
            pipe.set(key, 0, ex=WINDOW_S, nx=True)
            pipe.incr(key)
            pipe.pttl(key)
            pipe.hincrby(Keys.METRICS, "auth_failures", 1)
            _, count, left_ms, _ = await pipe.execute()
        return int(count), int(left_ms)

    def _block(self, address: str, left_s: float) -> None:
        """Refuse an address from now on."""
        now = self._clock()
        if len(self._blocked_until) >= _MANY:
            self._blocked_until = {a: t for a, t in self._blocked_until.items() if t > now}
        self._blocked_until[address] = now + left_s


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
