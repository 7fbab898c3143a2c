"""Results of jobs on disk, from the end of the job until the server has acknowledged them.

`(job, attempt)` is the key. An attempt that is in the spool is never run again, and one that was acknowledged is never
sent again: its key stays for a day, as the server may deliver a job twice. What was running when an agent died is not
in here; its sandbox died with it, and the server gives the job again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from pocqueue.hosts.agent.errors import SpoolError
from pocqueue.web.sqlite_file import FileRole, SqliteFile

#: Name of the file in the folder of a server.
SPOOL_NAME: Final = "results.sqlite3"
#: Seconds for which an acknowledged attempt is remembered.
KEEP_S: Final = 86_400.0

_ROLE = FileRole(
    name="spool of results",
    owner="agent",
    if_shared="two would be the same node",
    setting="POCQUEUE_STATE_DIR",
    if_lost="results in it that were not sent yet are then lost",
    error=SpoolError,
)


class Attempt(NamedTuple):
    """What a result is known by."""

    job: str
    attempt: int


class Spool(SqliteFile):
    """The results in a file, made if it is not there; a context manager.

    Every method raises SpoolError if the file is in trouble.

    Args:
        path: the file; `PATH.lock` beside it keeps other agents away.
        clock: Unix time.

    Raises:
        SpoolError: another agent has it open, it is of a newer version, damaged, or no spool.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        script = Path(__file__).with_name("spool.sql").read_text("utf-8")
        super().__init__(path, _ROLE, [script])

    def add(self, key: Attempt, body: str) -> None:
        """Keep a result; one that is there already stays as it is."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO results VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (*key, body, self._clock()),
            )

    def knows(self, key: Attempt) -> bool:
        """Say whether an attempt has a result, acknowledged or not."""
        with self.transaction() as db:
            found = db.execute("SELECT 1 FROM results WHERE job = ? AND attempt = ?", key)
            return found.fetchone() is not None

    def waiting(self) -> list[Attempt]:
        """Return the attempts whose results are not acknowledged, oldest first."""
        with self.transaction() as db:
            rows = db.execute(
                "SELECT job, attempt FROM results WHERE body IS NOT NULL ORDER BY changed_s, rowid"
            )
            return [Attempt(*row) for row in rows]

    def body(self, key: Attempt) -> str | None:
        """Return a result as it is sent; None: it is acknowledged or not there."""
        with self.transaction() as db:
            found = db.execute("SELECT body FROM results WHERE job = ? AND attempt = ?", key)
            row = found.fetchone()
            return None if row is None else row[0]

    def acknowledge(self, key: Attempt) -> None:
        """Note that the server has a result, and forget those that it has had for a day."""
        with self.transaction() as db:
            now_s = self._clock()
            db.execute(
                "UPDATE results SET body = NULL, changed_s = ? WHERE job = ? AND attempt = ?",
                (now_s, *key),
            )
            db.execute(
                "DELETE FROM results WHERE body IS NULL AND changed_s < ?", (now_s - KEEP_S,)
            )
