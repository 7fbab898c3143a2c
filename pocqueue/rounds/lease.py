"""Which scheduler leads: a key in Redis that its holder has to renew."""

from __future__ import annotations

import uuid

import redis

from pocqueue.rounds.scripts import Scripts
from pocqueue.rounds.store import Keys

#: A leader that does not renew for this long loses the lead.
LEASE_MS = 3000


class LeaderLease:
    """The lead among schedulers, as one of them sees it."""

    def __init__(self, client: redis.Redis, url: str) -> None:
        self.id = uuid.uuid4().hex
        self._scripts = Scripts(client, url)

    def hold(self) -> bool:
        """Take or renew the lead; say whether this scheduler has it."""
        return bool(self._scripts.run("lead", [Keys.LEADER], [self.id, LEASE_MS]))

    def resign(self) -> None:
        """Give the lead up so that another scheduler need not wait for it to run out."""
        # One millisecond left is as good as none, and the script checks whose lead it is.
        self._scripts.run("lead", [Keys.LEADER], [self.id, 1])
