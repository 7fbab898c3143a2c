"""The composition root of what a process has to do with rounds: one client, and what stands on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import redis
from typing_extensions import override

from pocqueue.closing import Closing
from pocqueue.rounds.callbacks import Callbacks
from pocqueue.rounds.connection import connect, redis_url
from pocqueue.rounds.pool import Pool
from pocqueue.rounds.store import RoundStore
from pocqueue.settings import Settings


@dataclass(frozen=True)
class Backend(Closing):
    """Store, pool and callbacks on one Redis client; a context manager that closes it."""

    client: redis.Redis
    url: str
    store: RoundStore
    pool: Pool
    callbacks: Callbacks

    @classmethod
    def open(cls, settings: Settings, *, service: bool = False) -> Self:
        """Connect to the Redis server of these settings.

        Args:
            service: of a process that runs for long: start the bundled server if no URL is set and none runs,
                and put up with one that is away for now; see `connect`.

        Raises:
            StoreError, ProcessError: see the classes.
        """
        url = redis_url(settings, start=service)
        client = connect(url, service=service)
        store = RoundStore(client, url)
        return cls(client, url, store, Pool(client, url), Callbacks(client, url, store))

    @override
    def close(self) -> None:
        """Close the client."""
        self.client.close()
