"""The guests and what they wrote, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from typing_extensions import override

from pocqueue.closing import Closing
from pocqueue.errors import PocqueueError
from pocqueue.web.door import digest
from pocqueue.web.sqlite_file import FileRole, SqliteFile


class GuestBookError(PocqueueError):
    """The file of the guest book cannot be used."""

    http_status = 503


class Guest(NamedTuple):
    """Somebody with a token."""

    name: str
    is_host: bool


ROLE = FileRole(
    name="guest book",
    owner="guest book service",
    if_shared="two would number their pages alike",
    setting="GUEST_BOOK_DIR",
    if_lost="what guests wrote is then gone",
    error=GuestBookError,
)
UPGRADES = (
    """
    CREATE TABLE guest (sha256 TEXT PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE note (id INTEGER PRIMARY KEY, name TEXT NOT NULL, text TEXT NOT NULL);
    """,
    "ALTER TABLE guest ADD COLUMN is_host INTEGER NOT NULL DEFAULT 0;",
)


class GuestBook(Closing):
    """The guest book."""

    def __init__(self, path: Path) -> None:
        self._file = SqliteFile(path, ROLE, UPGRADES)

    @override
    def close(self) -> None:
        self._file.close()

    def invite(self, name: str, token: str, *, is_host: bool = False) -> None:
        """Give a token to somebody."""
        with self._file.transaction() as db:
            db.execute("INSERT INTO guest VALUES (?, ?, ?)", (digest(token), name, is_host))

    def find(self, token: str) -> Guest | None:
        """Return whoever has a token."""
        with self._file.transaction() as db:
            # By its digest, a secret's: how far it is like another one tells nothing about the token.
            row = db.execute(
                "SELECT name, is_host FROM guest WHERE sha256 = ?", (digest(token),)
            ).fetchone()
        return None if row is None else Guest(row[0], bool(row[1]))

    def write(self, name: str, text: str) -> int:
        """Add a note; return how many there are."""
        with self._file.transaction() as db:
            db.execute("INSERT INTO note (name, text) VALUES (?, ?)", (name, text))
            [num] = db.execute("SELECT count(*) FROM note").fetchone()
        return int(num)
