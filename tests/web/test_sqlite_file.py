"""A database file: one process at a time, upgraded step by step, never half."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from pocqueue.web.sqlite_file import SqliteFile
from tests.web.guest_book.store import ROLE, GuestBookError

TABLES = "CREATE TABLE account (name TEXT PRIMARY KEY, coins INTEGER NOT NULL);"
#: Makes a table anew that another refers to: SQLite wants foreign keys off for this.
NOTES = """
CREATE TABLE note (account TEXT NOT NULL REFERENCES account (name), text TEXT NOT NULL);
CREATE TABLE account_2 (name TEXT PRIMARY KEY, coins INTEGER NOT NULL, owner TEXT NOT NULL);
INSERT INTO account_2 SELECT name, coins, 'nobody' FROM account;
DROP TABLE account;
ALTER TABLE account_2 RENAME TO account;
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is not there yet, in a folder that is not either."""
    return tmp_path / "state" / "ledger.sqlite3"


def test_an_upgrade_keeps_what_is_there(path: Path) -> None:
    """Applied once, to a file of the version before; a new file gets all of them."""
    with SqliteFile(path, ROLE, [TABLES]) as file, file.transaction() as db:
        db.execute("INSERT INTO account VALUES ('a', 5)")
    for _ in range(2):
        with SqliteFile(path, ROLE, [TABLES, NOTES]) as file, file.transaction() as db:
            assert db.execute("SELECT * FROM account").fetchall() == [("a", 5, "nobody")]
            assert db.execute("PRAGMA user_version").fetchone() == (2,)
    with SqliteFile(path.with_name("new"), ROLE, [TABLES, NOTES]) as file:
        with file.transaction() as db:
            db.execute("INSERT INTO account VALUES ('b', 1, 'me')")
        with pytest.raises(GuestBookError, match="FOREIGN KEY"), file.transaction() as db:
            db.execute("INSERT INTO note VALUES ('nobody has it', '')")


def test_an_upgrade_that_fails_changes_nothing(path: Path) -> None:
    """The file can be used on by the version that wrote it."""
    with SqliteFile(path, ROLE, [TABLES]) as file, file.transaction() as db:
        db.execute("INSERT INTO account VALUES ('a', 5)")
    broken = "\n".join((NOTES, "INSERT INTO no_such_table VALUES (1);"))
    with pytest.raises(GuestBookError, match="no_such_table"):
        SqliteFile(path, ROLE, [TABLES, broken])
    with SqliteFile(path, ROLE, [TABLES]) as file, file.transaction() as db:
        assert db.execute("SELECT * FROM account").fetchall() == [("a", 5)]


def test_a_transaction_is_all_or_nothing(path: Path) -> None:
    """Whatever ends its block."""
    with SqliteFile(path, ROLE, [TABLES]) as file:
        with contextlib.suppress(ZeroDivisionError), file.transaction() as db:
            db.execute("INSERT INTO account VALUES ('a', 5)")
            _ = 1 // 0
        with file.transaction() as db:
            assert db.execute("SELECT count(*) FROM account").fetchone() == (0,)


def test_only_the_transaction_that_says_so_is_not_durable(path: Path) -> None:
    """Those after it are on disk again when they end, also if it failed; another reader sees what it wrote."""
    with SqliteFile(path, ROLE, [TABLES]) as file:
        with file.transaction(durable=False) as db:
            assert db.execute("PRAGMA synchronous").fetchone() == (1,)
            db.execute("INSERT INTO account VALUES ('a', 5)")
        with pytest.raises(GuestBookError), file.transaction(durable=False) as db:
            db.execute("INSERT INTO account VALUES ('a', 6)")
        with file.transaction() as db:
            assert db.execute("PRAGMA synchronous").fetchone() == (2,)
        with contextlib.closing(sqlite3.connect(path)) as other:
            assert other.execute("SELECT * FROM account").fetchall() == [("a", 5)]


def test_messages_name_the_role(path: Path) -> None:
    """In use, of a newer version, another program's, damaged."""
    with (
        SqliteFile(path, ROLE, [TABLES, NOTES]),
        pytest.raises(
            GuestBookError,
            match=r"The guest book .* in use by another guest book service, and two would number .*: .* GUEST_BOOK_DIR",
        ),
    ):
        SqliteFile(path, ROLE, [TABLES, NOTES])
    with pytest.raises(GuestBookError, match="version 2, and this pocqueue knows versions up to 1"):
        SqliteFile(path, ROLE, [TABLES])
    with contextlib.closing(sqlite3.connect(path.with_name("other"))) as db:
        db.execute("CREATE TABLE people (name)")
    with pytest.raises(GuestBookError, match="database of another program"):
        SqliteFile(path.with_name("other"), ROLE, [TABLES])
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(
        GuestBookError, match=r"with the guest book service stopped, .* is then gone"
    ):
        SqliteFile(path, ROLE, [TABLES])


def test_only_the_owner_can_read_it(path: Path) -> None:
    """The file, what SQLite puts beside it, and the lock."""
    with SqliteFile(path, ROLE, [TABLES]) as file, file.transaction() as db:
        db.execute("INSERT INTO account VALUES ('a', 5)")
        modes = {found.name: found.stat().st_mode & 0o777 for found in path.parent.iterdir()}
    assert len(modes) == 4
    assert set(modes.values()) == {0o600}
