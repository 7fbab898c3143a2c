"""The file of an outbox: its lock, its version, its tables, and what can be wrong with it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from pocqueue.errors import OutboxError
from pocqueue.files import FileLock

#: Of the tables in `outbox.sql`, kept in the file's user_version.
VERSION = 1


@contextlib.contextmanager
def outbox_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite raises within the block into `OutboxError`."""
    try:
        yield
    except sqlite3.Error as exc:
        what = str(exc).rstrip(".")
        raise OutboxError(f"The outbox {path} cannot be used: {what}. {_advice(what)}") from exc


def lock_outbox(path: Path) -> FileLock:
    """Return the outbox's lock, held until it is closed or the process ends.

    Raises:
        OutboxError: another process holds it, or the folder cannot be written.
    """
    # A file of its own: SQLite's locks are of another kind, and are lost when anything in this process
    # opens and closes the database file.
    try:
        return FileLock(path.with_name(f"{path.name}.lock"), wait=False)
    except BlockingIOError:
        raise OutboxError(
            f"The outbox {path} is in use by another small node, and two would send everything twice: "
            "stop that one, or set POCQUEUE_STATE_DIR to another folder."
        ) from None
    except OSError as exc:
        raise OutboxError(
            f"The outbox {path} cannot be opened ({exc.strerror}): mend its folder, or set "
            "POCQUEUE_STATE_DIR to another."
        ) from None


def open_outbox(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """Return a connection to an outbox, made if it is not there. May be used from any thread, one at a time.

    Raises:
        OutboxError: it is of a newer version, corrupt, no outbox, or cannot be written.
    """
    # Made here, so that it never has another mode; SQLite gives its -wal and -shm files the same. A
    # session's request may hold a token.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
    except OSError as exc:
        raise OutboxError(
            f"The outbox {path} cannot be opened ({exc.strerror}): it has to be a file that the node's "
            "user may write to."
        ) from None
    # Transactions are begun by hand (isolation_level None); the mutex keeps threads apart.
    db = sqlite3.connect(
        path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
    )
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        [version] = db.execute("PRAGMA user_version").fetchone()
        [num_tables] = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if version > VERSION:
            raise OutboxError(
                f"The outbox {path} is of version {version}, and this pocqueue knows versions up to "
                f"{VERSION}: use the newer pocqueue that wrote it."
            )
        if version == 0 and num_tables > 0:
            raise OutboxError(f"{path} is the database of another program: name another file.")
        if version == 0:
            schema = resources.files(__package__).joinpath("outbox.sql").read_text("utf-8")
            db.executescript(f"BEGIN IMMEDIATE;\n{schema}\nCOMMIT;")
        [verdict] = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"database disk image is malformed ({verdict})")
    except BaseException:
        db.close()
        raise
    return db


def _advice(what: str) -> str:
    if "malformed" in what or "not a database" in what:
        return (
            "The file is damaged: with the node stopped, move it and its -wal file away (what waits in "
            "it is then not sent), or restore them together from a backup."
        )
    if "full" in what:
        return "Make room on its disk; nothing is lost until then."
    return "Check its disk and the rights of its folder."
