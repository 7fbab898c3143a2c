"""Which scheduler leads: a key in Redis that its holder has to renew."""

from __future__ import annotations

import uuid

import redis

from pocqueue.rounds.scripts import OnRedis
from pocqueue.rounds.store import Keys

#: A leader that does not renew for this long loses the lead.
LEASE_S = 3.0


class LeaderLease(OnRedis):
    """The lead among schedulers, as one of them sees it.

    Args:
        client: of the Redis server.
        url: its address, for messages.
        lease_s: seconds after which a leader that does not renew loses the lead.
    """

    def __init__(self, client: redis.Redis, url: str, lease_s: float = LEASE_S) -> None:
        super().__init__(client, url)
        self.id = uuid.uuid4().hex
        self._lease_ms = round(1000 * lease_s)

    def hold(self) -> bool:
        """Take or renew the lead; say whether this scheduler has it."""
        return bool(self._run("lead", [Keys.LEADER], [self.id, self._lease_ms]))

    def resign(self) -> None:
        """Give the lead up so that another scheduler need not wait for it to run out."""
        # One millisecond left is as good as none, and the script checks whose lead it is.
        self._run("lead", [Keys.LEADER], [self.id, 1])
