"""How often somebody may ask, in one gateway process.

Whoever has shown nothing is counted by network address (IPv6 by its /64), never by the wallet or the node that he
names: nobody uses up what is somebody else's. Who has shown it, a wallet in its session or a node with its token, has a
count of its own, and one of its address, which is wider.

Each process counts by itself: what is kept from an abuser is work and rows of the database, not a secret. Wrong
tokens are counted elsewhere (`web.failure_limit`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, unique

from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from typing_extensions import override

from pocqueue.errors import PocqueueError
from pocqueue.web.failure_limit import subscriber
from pocqueue.words import counted

#: Open sockets of one address, pages that are told what changes included.
MAX_SOCKETS = 200
#: Open pages of one wallet that are told what changes: of its session, and of each address without one.
MAX_PAGES = 20
#: Messages a second of one machine, and how many it may send at once.
MESSAGES_PER_S, MESSAGES_BURST = 20.0, 100.0


class RateLimited(PocqueueError):
    """Somebody asks too often.

    Attributes:
        retry_after_s: seconds after which it is listened to again.
    """

    http_status = 429

    def __init__(self, limit: Limit, retry_after_s: float) -> None:
        self.retry_after_s = max(1.0, retry_after_s)
        item = limit.value
        what = counted(item.amount, limit.noun)
        super().__init__(
            f"Too many requests: {what} in {counted(item.get_expiry(), 'second')} are allowed; try again in "
            f"{self.retry_after_s:.0f} s."
        )


class TooManyPages(PocqueueError):
    """As many pages of one wallet, or one network address, are open as may be."""

    http_status = 429
    retry_after_s = 60.0

    def __init__(self, limit: int, of: str) -> None:
        super().__init__(
            f"{counted(limit, 'page')} of this {of} are open already: close one of them."
        )


@unique  # two of the same size would be one
class Limit(Enum):
    """What is limited, and to how much. The names are labels of a metric."""

    TOKENS_OF_ADDRESS = parse("10/hour")
    TOKENS_OF_WALLET = parse("20 per 1 hour")  #: in its session
    #: In sessions: wallets cost nothing, and each of their machines is paid for a test job.
    TOKENS_PROVEN_OF_ADDRESS = parse("30/hour")
    CHALLENGES = parse("30/minute")
    REQUESTS = parse("120/minute")
    CONNECTS = parse("20/minute")  #: sockets, and new nodes that have none
    ANNOUNCEMENTS = parse("50/day")
    #: At whether it is ready. Apart from the rest: whoever watches is not to be shut out by a page.
    LOOKS = parse("90/minute")
    JOBS = parse("60/minute")
    PIECES = parse("240/hour")
    POLLS = parse("100/minute")  #: of a node that has no socket
    POLLS_OF_ADDRESS = parse(
        "2000/minute"
    )  #: of all of them there, before the database is asked who it is
    KEYS = parse("12/hour")  #: new ones of a node

    value: RateLimitItem

    @property
    def noun(self) -> str:
        """What is counted."""
        return self.name.partition("_")[0].lower().removesuffix("s")


class Counts(MemoryStorage):
    """The library's counts in memory, looked through now and then.

    It does that at every hit: with thousands of addresses most of what letting one of them in takes.

    Args:
        look_s: seconds between two looks for what has expired and is not asked for any more.
        most: counts that are kept; beyond it the oldest is forgotten.
    """

    def __init__(self, look_s: float = 60.0, most: int = 200_000) -> None:
        super().__init__()
        self._look_s, self._next_look, self._most = look_s, 0.0, most

    @override
    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count some more, and forget what has expired if it is time to; nothing of it waits."""
        await self.get(key)  # which forgets it if it has expired
        now, count = time.time(), self.storage[key] + amount
        self.storage[key] = count
        if count == amount:
            if len(self.expirations) >= self._most:
                self._forget(next(iter(self.expirations)))
            self.expirations[key] = now + expiry
        # The clock on the wall may go back.
        if (at_s := time.monotonic()) >= self._next_look:
            self._next_look = at_s + self._look_s
            for old in [one for one, until in self.expirations.items() if until <= now]:
                self._forget(old)
        return count

    def _forget(self, key: str) -> None:
        del self.expirations[key]
        self.storage.pop(key, None)
        self.locks.pop(key, None)


class RateLimits:
    """The limits of one process.

    Args:
        factor: by which all of them are larger; for benchmarks, in which one address is a thousand machines.
        on_limited: called with each one that struck.
    """

    def __init__(
        self, factor: float = 1.0, on_limited: Callable[[Limit], None] = lambda _limit: None
    ) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(Counts())
        self._factor = factor
        self._on_limited = on_limited
        self._sockets = Counter[str]()
        self._pages = Counter[tuple[str, str]]()

    async def count(self, limit: Limit, who: str) -> None:
        """Count one more.

        Args:
            who: an address, a wallet or a node.

        Raises:
            RateLimited: it is one too many; it is not counted then.
        """
        item = limit.value
        if self._factor != 1.0:
            item = type(item)(round(item.amount * self._factor), item.multiples)
        if not await self._limiter.hit(item, limit.name, who):
            self._on_limited(limit)
            reset_s, _ = await self._limiter.get_window_stats(item, limit.name, who)
            raise RateLimited(limit, reset_s - time.time())

    async def count_address(self, limit: Limit, address: str) -> None:
        """Count one more of a network address; see `count`."""
        await self.count(limit, subscriber(address))

    def open_socket(self, address: str) -> bool:
        """Count an open socket; False: there are as many as an address may have, and it is not counted."""
        if not self.has_room(address):
            self._on_limited(Limit.CONNECTS)
            return False
        self._sockets[subscriber(address)] += 1
        return True

    def has_room(self, address: str) -> bool:
        """Say whether an address may have one more open socket."""
        return self._sockets[subscriber(address)] < MAX_SOCKETS * self._factor

    @contextmanager
    def socket(self, address: str) -> Iterator[None]:
        """Count an open socket for as long as the block lasts, whether there is room for it or not."""
        self._sockets[subscriber(address)] += 1
        try:
            yield
        finally:
            self.close_socket(address)

    def has_page(self, wallet: str, address: str | None) -> bool:
        """Say whether one more page of a wallet may be open; see `page`."""
        return self._pages[_watcher(wallet, address)] < MAX_PAGES

    @contextmanager
    def page(self, wallet: str, address: str | None) -> Iterator[None]:
        """Count an open page for as long as the block lasts, whether there is room for it or not.

        Args:
            address: of who watches; None: the wallet's owner does, in its session.
        """
        who = _watcher(wallet, address)
        self._pages[who] += 1
        try:
            yield
        finally:
            self._pages[who] -= 1
            if self._pages[who] <= 0:
                del self._pages[who]

    def close_socket(self, address: str) -> None:
        """Take an open socket from the count."""
        who = subscriber(address)
        self._sockets[who] -= 1
        if self._sockets[who] <= 0:
            del self._sockets[who]


def _watcher(wallet: str, address: str | None) -> tuple[str, str]:
    return wallet, "" if address is None else subscriber(address)


@dataclass(slots=True, eq=False)
class MessageBudget:
    """The messages of one socket: a bucket that fills at `MESSAGES_PER_S` up to `MESSAGES_BURST`."""

    clock: Callable[[], float] = time.monotonic
    _left: float = field(default=MESSAGES_BURST, init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._at = self.clock()

    def take(self) -> bool:
        """Take one; False: there is none left."""
        now = self.clock()
        self._left = min(MESSAGES_BURST, self._left + (now - self._at) * MESSAGES_PER_S)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
