"""The gateways of GPU hosts that are there: each says so every few seconds.

The leading scheduler asks, so that it sends the gateways' regular work to nobody's queue only where nobody is.
"""

from __future__ import annotations

from typing import Any

from pocqueue.rounds.connection import OnRedis
from pocqueue.rounds.store import Keys

#: How often a gateway says that it is there, and after how much silence it is not.
BEAT_S = 2.0
TTL_MS = 15_000


class Relays(OnRedis):
    """Safe to share between threads."""

    def beat(self, name: str) -> None:
        """Say that a gateway is there."""
        with self._errors():
            self.client.zadd(Keys.HOSTS_RELAYS, {name: self._now_ms()})

    def leave(self, name: str) -> None:
        """Say that a gateway ends."""
        with self._errors():
            self.client.zrem(Keys.HOSTS_RELAYS, name)

    def live(self) -> list[str]:
        """Return the names of those that are there."""
        with self._errors():
            since = self._now_ms() - TTL_MS
            names: Any = self.client.zrangebyscore(Keys.HOSTS_RELAYS, since, "+inf")
        return sorted(names)
