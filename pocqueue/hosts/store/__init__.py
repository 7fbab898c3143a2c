"""Everything about GPU hosts that is kept: the only place with SQL.

`HostStore` has one object a noun. Each method is one transaction, all of it or nothing, and safe to repeat when its
answer was lost. They block and are quick; call them from a thread (`asyncio.to_thread`), any thread. All of them
raise `DatabaseUnavailable` or `DatabaseUnfit` (`store.database`) if the database is in trouble.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from typing_extensions import override

from pocqueue.closing import Closing
from pocqueue.hosts.store.database import BUSY_TIMEOUT_S, FILE_NAME, Database, file_url
from pocqueue.hosts.store.health import Health
from pocqueue.hosts.store.jobs import Jobs
from pocqueue.hosts.store.leases import Leases
from pocqueue.hosts.store.ledger import Ledger
from pocqueue.hosts.store.nodes import Nodes
from pocqueue.hosts.store.overview import Overview
from pocqueue.hosts.store.owners import Owners
from pocqueue.hosts.store.places import Places
from pocqueue.hosts.store.presence import Presence
from pocqueue.hosts.store.tokens import Tokens
from pocqueue.settings import HostsSettings, Settings

__all__ = ["HostStore"]

FORGET_EVERY_MS: Final = 3_600_000


class HostStore(Closing):
    """The store on an open database; a context manager that closes it.

    Args:
        database: an open one.
        hosts: how long tokens live and how long nodes may be silent, and the pay.
        clock: Unix time in seconds, that of everything that is kept.
    """

    def __init__(
        self, database: Database, hosts: HostsSettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        def now_ms() -> int:
            return int(1000 * clock())

        self.database = database
        self.now_ms = now_ms
        self._forgot_ms = 0
        self.offline_ms = int(1000 * hosts.offline_seconds)
        self.ledger = Ledger(database, now_ms)
        self.owners = Owners(database, now_ms, token_ms=int(1000 * hosts.token_seconds))
        self.nodes = Nodes(database, now_ms, self.offline_ms)
        self.presence = Presence(database, now_ms, self.offline_ms)
        self.health = Health(database, now_ms)
        self.jobs = Jobs(database, now_ms, rate_micro=hosts.rate_micro)
        self.places = Places(database, now_ms, offline_ms=self.offline_ms)
        self.leases = Leases(database, now_ms)
        self.tokens = Tokens(database, now_ms)
        self.overview = Overview(database)

    @classmethod
    def open(
        cls,
        settings: Settings,
        hosts: HostsSettings,
        *,
        wait: bool = False,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> HostStore:
        """Open the database of the settings and see that its tables are right; SQLite gets them by itself.

        Args:
            wait: until it answers: for a service, which may start before its database.
            busy_timeout_s: seconds to wait for a lock that somebody else holds.

        Raises:
            DatabaseUnavailable: it does not answer, and is not waited for.
            DatabaseUnfit: somebody has to mend it, or to run `pocqueue hosts migrate`.
        """
        database = Database(database_url(settings, hosts), busy_timeout_s=busy_timeout_s)
        try:
            database.wait(database.check) if wait else database.check()
        except BaseException:
            database.close()
            raise
        return cls(database, hosts)

    def forget(self) -> None:
        """Delete what is over, such as sessions that ended; once an hour, however often it is asked for."""
        now_ms = self.now_ms()
        if now_ms - self._forgot_ms >= FORGET_EVERY_MS:
            self.owners.forget()
            self.health.forget()
            self._forgot_ms = now_ms

    @override
    def close(self) -> None:
        """Close the database; may be called again."""
        self.database.close()


def database_url(settings: Settings, hosts: HostsSettings) -> str:
    """Return the URL of the database: that of the settings, or of a file in the state folder."""
    if hosts.database_url is not None:
        return hosts.database_url.get_secret_value()
    return file_url(settings.state_dir / FILE_NAME)
